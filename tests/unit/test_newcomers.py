"""Shares of new arms: capped together, until each has evidence of its own."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.errors import InvalidInput
from bandit.newcomers import Newcomers

NAMES = ("a", "b", "new", "newer")


def capped(p, *names, share=0.25):
    newcomers = Newcomers(share)
    newcomers.replace(names)
    return newcomers.capped(np.array(p), NAMES).tolist()


def test_new_arms_together_keep_their_share_and_the_others_get_the_rest_in_proportion():
    """0.6 + 0.2 is cut to 0.25 (times 0.3125); 0.15 and 0.05 rise to 0.75 (times 3.75)."""
    assert capped([0.15, 0.05, 0.6, 0.2], "new", "newer") == pytest.approx([0.5625, 0.1875, 0.1875, 0.0625])


def test_what_is_within_the_share_stays_as_it_is():
    assert capped([0.4, 0.4, 0.2, 0.0], "new") == [0.4, 0.4, 0.2, 0.0]
    assert capped([0.1, 0.1, 0.4, 0.4]) == [0.1, 0.1, 0.4, 0.4]
    assert capped([0.4, 0.3, 0.2, 0.1], "new", "left long ago") == [0.4, 0.3, 0.2, 0.1]


def test_where_only_new_arms_can_be_chosen_they_are():
    assert capped([0.0, 0.0, 0.5, 0.5], "new", "newer") == [0.0, 0.0, 0.5, 0.5]


def test_an_arm_is_new_until_it_has_enough_graded_answers():
    newcomers = Newcomers(samples=30)
    newcomers.replace(["new", "newer"])
    newcomers.graded("new", 29.9)
    assert newcomers.names == {"new", "newer"}
    newcomers.graded("new", 30.0)
    newcomers.graded("a", 500.0)
    assert newcomers.names == {"newer"}


@pytest.mark.parametrize(("share", "samples"), [(0.0, 1), (1.1, 1), (float("nan"), 1), (0.5, -1)])
def test_shares_and_samples_out_of_range_are_refused(share, samples):
    with pytest.raises(InvalidInput, match="newcomers"):
        Newcomers(share, samples)
