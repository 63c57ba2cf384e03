"""The pace: who may begin on a loop that is busy, and that a loop which is not holds nobody up."""

from __future__ import annotations

import pytest

from serving.traffic.pace import Pace

TARGET_S = 0.001


def busy(share: float = 1.0) -> Pace:
    """A pace that has seen a loop late for that share of the time, evenly, and late just now."""
    pace = Pace(TARGET_S)
    for i in range(2_000):
        pace.turn(0.004 if i % 100 < share * 100 else 0.0001, 0.004)
    pace.turn(0.004, 0.0)
    return pace


def begun(pace: Pace, *, most: int = 100) -> int:
    """How many begin until no more may."""
    count = 0
    while count < most and pace.may_begin():
        pace.began()
        count += 1
    return count


def test_nobody_is_held_up_before_the_loop_has_been_looked_at():
    assert begun(Pace(TARGET_S)) == 100


def test_a_pause_is_not_busy():
    pace = Pace(TARGET_S)
    pace.turn(0.05, 0.05)
    assert pace.busy_share == pytest.approx(0.5)
    assert begun(pace) == 100


def test_the_busy_share_is_that_of_the_time_not_of_the_looks():
    """100 looks in time that stand for 0.02 ms each are 2 ms of a window of 100 ms: 0.98 of what it was."""
    pace = busy()
    for _ in range(100):
        pace.turn(0.00002, 0.00002)
    assert pace.busy_share == pytest.approx(0.98, abs=0.001)


def test_on_a_busy_loop_that_is_late_none_begins():
    assert begun(busy()) == 0


def test_only_so_many_begin_between_two_looks():
    pace = busy()
    for _ in range(3):  # what was left over is not kept
        pace.turn(0.0002, 0.0002)
    assert begun(pace) == 8


def test_one_who_has_waited_begins_when_the_loop_has_been_in_time_for_long_enough():
    pace = busy()
    pace.turn(0.0006, 0.0006)
    assert not pace.may_begin(waited=True)
    pace.turn(0.0006, 0.0006)
    assert pace.may_begin(waited=True)
    pace.began()
    assert not pace.may_begin(waited=True)


def test_a_late_turn_begins_the_wait_anew():
    pace = busy()
    for took_s in (0.0009, 0.0011, 0.0009):
        pace.turn(took_s, took_s)
    assert not pace.may_begin(waited=True)


def test_a_loop_with_time_to_spare_holds_nobody_up_though_it_is_late_now():
    assert begun(busy(0.5)) == 100
