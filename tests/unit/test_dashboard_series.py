"""Counts over time: which bucket, how far back, and that a restart changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.snapshot import dumps, loads
from serving.dashboard.series import Bucket, Forecast, Series, quantiles, share_of

T0 = 1_800_000_000.0  # the start of a minute


def filled(times):
    series = Series()
    for ts in times:
        bucket = series.at(ts)
        bucket.cell("a").routed += 1
        bucket.took(0.1)
        bucket.forecast.add(("a", "b"), np.array([1.0, 3.0]), np.array([0.5, 0.25]))
    return series


def test_five_seconds_make_a_bucket_and_a_minute_is_their_sum():
    series = filled(T0 + s for s in (0, 4.9, 5, 59.9, 60, 61))
    assert [(b.start - T0, b.cells["a"].routed) for b in series.fine()] == [(0, 2), (5, 1), (55, 1), (60, 2)]
    assert [(b.start - T0, b.cells["a"].routed) for b in series.coarse()] == [(0, 4), (60, 2)]
    assert series.coarse()[0].forecast.by_model() == {"a": (4, 4.0, 2.0), "b": (4, 12.0, 1.0)}
    assert len(series.fine()) == 4  # to look changes nothing


def test_a_time_that_comes_late_counts_in_the_newest_bucket():
    series = filled([T0 + 20, T0 + 3])
    assert [(b.start - T0, b.cells["a"].routed) for b in series.fine()] == [(20, 2)]


def test_the_series_are_bounded():
    series = filled(T0 + 5 * i for i in range(12 * 400))  # 400 minutes
    assert (len(series.fine()), len(series.coarse())) == (120, 360)
    assert series.coarse()[-1].cells["a"].routed == 12


def test_nothing_is_there_before_anything_was_counted():
    assert (Series().fine(), Series().coarse()) == ([], [])


def test_a_state_comes_back_as_it_was():
    series, again = filled(T0 + 7 * i for i in range(100)), Series()
    again.load(loads(dumps(series.state())))
    for before, after in ((series.fine(), again.fine()), (series.coarse(), again.coarse())):
        assert [b.shown() for b in before] == [b.shown() for b in after]
    empty = Series()
    empty.load(loads(dumps(Series().state())))
    assert empty.fine() == []
    assert empty.at(T0).start == T0


def test_quantiles_are_within_two_percent_of_values_that_were_seen():
    """Of 1 to 1000 ms, one each: half are at most 500 ms, 95 % at most 950 ms, 99 % at most 990 ms."""
    bucket = Bucket(T0)
    for ms in range(1, 1001):
        bucket.took(ms / 1000)
    assert quantiles(bucket.latency) == pytest.approx([0.5, 0.95, 0.99], rel=0.021)
    assert quantiles({}) is None


def test_a_share_has_wilsons_interval():
    """8 of 10: (0.490, 0.943), as in Wilson's own formula."""
    assert share_of(8.0, 10) == pytest.approx([0.8, 0.4902, 0.9433, 10], abs=1e-4)
    assert share_of(0.0, 0) is None


def test_a_forecast_survives_a_model_that_joins_and_an_unknown_price():
    forecast = Forecast()
    forecast.add(("a",), np.array([1.0]), np.array([0.5]))
    forecast.add(("a", "b"), np.array([2.0, np.nan]), np.array([0.5, 1.0]))
    sums = forecast.by_model()
    assert sums["a"] == (2, 3.0, 1.0)
    assert sums["b"][0] == 1
    assert np.isnan(sums["b"][1])
