"""The pace: who may begin while the event loop is in time, and who while it is late."""

from __future__ import annotations

from serving.traffic.pace import Pace

TARGET_S = 0.001


def begun(pace: Pace, *, ahead: bool) -> int:
    """How many begin until no more may."""
    count = 0
    while pace.may_begin(ahead=ahead):
        pace.began()
        count += 1
    return count


def test_calls_begin_before_the_loop_has_been_looked_at():
    assert Pace(TARGET_S).may_begin(ahead=False)


def test_while_the_loop_is_late_only_calls_that_go_ahead_begin():
    pace = Pace(TARGET_S)
    assert not pace.turn(0.0011)
    assert (begun(pace, ahead=False), begun(pace, ahead=True)) == (0, 16)


def test_so_many_begin_between_two_looks_and_more_of_those_that_go_ahead():
    pace = Pace(TARGET_S)
    for _ in range(3):  # what was left over is not kept
        assert pace.turn(0.0002)
    assert (begun(pace, ahead=False), begun(pace, ahead=True)) == (8, 16)


def test_a_loop_in_time_again_lets_calls_begin_again():
    pace = Pace(TARGET_S)
    pace.turn(0.5)
    begun(pace, ahead=True)
    assert pace.turn(0.001)
    assert begun(pace, ahead=False) == 8
