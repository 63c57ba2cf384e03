"""The rolling quantile against numpy on the same window."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from bandit.quantiles import RecentQuantile


@pytest.mark.parametrize("n", [1, 2, 3, 20, 64, 65, 200])
def test_it_is_the_quantile_of_the_last_values(n):
    """Between the neighbouring order statistics of the window, whatever the interpolation."""
    values = np.random.default_rng(n).exponential(size=n)
    recent = RecentQuantile(0.95, 64)
    for v in values:
        recent.add(v)
    window = values[-64:]
    low, high = (np.quantile(window, 0.95, method=m) for m in ("lower", "higher"))
    assert low <= recent.get() <= high
    assert recent.count == len(window)
    assert recent.values() == list(window)


def test_without_values_it_is_nan():
    assert isnan(RecentQuantile(0.95, 8).get())


def test_a_loaded_window_goes_on_like_the_original():
    a, b = RecentQuantile(0.95, 8), RecentQuantile(0.95, 8)
    for v in range(20):
        a.add(float(v))
    b.add(99.0)
    b.load(a.values())
    for v in (5.0, 50.0, 1.0):
        a.add(v)
        b.add(v)
        assert b.get() == a.get()
    b.load([])
    assert b.count == 0
    assert isnan(b.get())
