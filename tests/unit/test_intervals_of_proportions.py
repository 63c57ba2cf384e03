"""Wilson's interval against scipy's, by hand at its ends, and its cover of fractional grades."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from bandit.errors import InvalidInput
from bandit.intervals import wilson


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 10), (10, 10), (799, 1000), (1, 100_000)])
def test_it_is_scipys(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, "wilson")
    np.testing.assert_allclose(wilson(successes, n, confidence), expected, atol=1e-12)


def test_at_the_ends_it_is_z2_over_n_plus_z2():
    """With p = 0 the upper end is z²/(n + z²): 1.959964² = 3.841459, so 3.841459/13.841459 for ten trials."""
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775328, abs=1e-6))
    assert wilson(10, 10) == (pytest.approx(0.7224672, abs=1e-6), 1.0)


def test_without_a_trial_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)


def test_grades_between_right_and_wrong_are_covered_more_often_than_promised():
    """Grades of 0, ½ and 1, n = 50, 2,000 replicates: at least 95 % less three standard errors, here far above."""
    rng = np.random.default_rng(1)
    grades = rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.4, 0.4], size=(2_000, 50))
    covered = [low <= 0.6 <= high for low, high in (wilson(float(row.sum()), 50) for row in grades)]
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 2_000)


BAD_COUNTS = [((1, -1), "n"), ((-0.1, 1), "successes"), ((1.1, 1), "successes"), ((float("nan"), 1), "successes")]
BAD_CONFIDENCE = [((0, 1, 0.0), "confidence"), ((0, 1, 1.0), "confidence")]


@pytest.mark.parametrize(("arguments", "field"), BAD_COUNTS + BAD_CONFIDENCE)
def test_what_is_no_proportion_is_named(arguments, field):
    with pytest.raises(InvalidInput) as caught:
        wilson(*arguments)
    assert caught.value.field == field
