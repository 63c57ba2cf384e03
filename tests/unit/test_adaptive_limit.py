"""The adaptive limit: it finds what the service can do, comes back, and does not mind a slow upstream."""

from __future__ import annotations

import pytest

from serving.traffic.adaptive import AdaptiveLimit

TARGET_S = 0.005


def judged(limit: AdaptiveLimit, turn_s: float, in_use: int, windows: int = 1) -> int:
    """The limit after whole windows in which every turn took that long and so many ran."""
    for _ in range(windows * 10):
        limit.turn(turn_s, in_use, in_use)
    return limit.limit


def test_it_starts_at_the_most_and_stays_there_while_the_loop_is_in_time():
    assert judged(AdaptiveLimit(4, 500, TARGET_S), 0.004, 80, windows=50) == 500


def test_a_late_loop_takes_it_below_what_ran_then():
    """Twice the target, 80 calls at most: 80 / sqrt(2) = 56.6."""
    assert judged(AdaptiveLimit(4, 500, TARGET_S), 0.010, 80) == 56


def test_one_step_down_is_a_third_at_most():
    assert judged(AdaptiveLimit(4, 500, TARGET_S), 5.0, 100) == 70


def test_it_never_leaves_its_bounds():
    limit = AdaptiveLimit(10, 40, TARGET_S)
    assert all(judged(limit, 1.0, 10) == 10 for _ in range(20)) or limit.limit == 10
    for _ in range(200):
        judged(limit, 0.0, limit.limit)
    assert limit.limit == 40


def test_a_single_pause_changes_nothing():
    """Four of ten turns are very late: the median is not."""
    limit = AdaptiveLimit(4, 500, TARGET_S)
    for took_s in (1.0,) * 4 + (0.001,) * 6:
        limit.turn(took_s, 80, 80)
    assert limit.limit == 500


def test_a_decrease_waits_until_the_one_before_has_had_its_effect():
    """Calls with a slow upstream go on for long: all 100 still run after one late window or five."""
    limit = AdaptiveLimit(4, 500, TARGET_S)
    assert judged(limit, 0.0201, 100) == 70
    assert judged(limit, 0.0201, 100, windows=4) == 70


def test_it_grows_only_while_calls_are_held_up():
    limit = AdaptiveLimit(4, 500, TARGET_S)
    judged(limit, 0.0201, 100)
    assert judged(limit, 0.0, 69, windows=100) == 70
    assert judged(limit, 0.0, 70) == 77


def test_near_the_target_it_grows_by_one():
    limit = AdaptiveLimit(4, 500, TARGET_S)
    judged(limit, 0.0201, 100)
    assert judged(limit, 0.0049, 70) == 71


@pytest.mark.parametrize("upstream_s", [0.02, 0.2, 2.0])
def test_it_settles_where_the_loop_is_just_busy_enough_whatever_the_upstream_takes(upstream_s):
    """Offered calls without end, it stays between a half and twice of those that a busy service has under way.

    500 a second are 500 x upstream_s at once (Little). A turn takes 1 ms until then, and more for each beyond.
    """
    knee = 500 * upstream_s
    limit, running, seen = AdaptiveLimit(4, 5000, TARGET_S), 0.0, []
    for window in range(1200):
        leaving = running * min(1.0, 0.1 / upstream_s)  # in a window of 100 ms
        running = max(running - leaving, min(float(limit.limit), running - leaving + 500))
        beyond = max(0.0, running - knee)
        judged(limit, 0.001 + beyond * 0.002 / 6, round(running))
        if window > 600:
            seen.append(limit.limit)
    assert min(seen) > 0.5 * knee
    assert max(seen) < 2.0 * knee + 30


def test_when_the_upstream_becomes_slow_it_finds_back_up():
    """From 50 places to a need of 2,000 with an idle loop: a tenth a window, some 40 windows of 100 ms."""
    limit = AdaptiveLimit(4, 5000, TARGET_S)
    judged(limit, 0.0101, 70)
    assert limit.limit < 50
    windows = 0
    while limit.limit < 2000:
        judged(limit, 0.0002, limit.limit)
        windows += 1
    assert windows < 60
