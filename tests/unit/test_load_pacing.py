"""Due times of a stated rate, and what is said when callers do not keep them."""

from __future__ import annotations

import random

import pytest

from benchmarks.pacing import Pace


def pace(rate=10.0):
    return Pace(rate, 100.0, random.Random(7))


def test_due_times_go_on_and_come_at_the_rate():
    """Of 20,000 gaps of mean 0.1 s the mean is within 4 standard errors, 0.1 / √n each. Seed fixed."""
    one = pace()
    due = [one.due() for _ in range(20_000)]
    assert due == sorted(due)
    assert due[0] > 100.0
    assert (due[-1] - 100.0) / 20_000 == pytest.approx(0.1, abs=4 * 0.1 / 20_000**0.5)


def test_callers_in_time_are_not_late():
    one = pace()
    for _ in range(100):
        due = one.due()
        one.sent(due, due + 0.001)
    lines = one.report(due)
    assert lines[0].startswith("asked 10.0 calls/s, achieved ")
    assert "of 100 calls due" in lines[0]
    assert "100 were sent" in lines[0]
    assert "sent late by 1 ms at p50, 1 at p95, 1 at most" in lines[1]
    assert len(lines) == 2


def test_a_call_handed_out_but_not_yet_due_is_not_missing():
    one = pace()
    due = one.due()
    one.sent(due, due)
    one.due()
    assert "of 1 calls due" in one.report(due)[0]


def test_late_callers_are_told():
    """Nine in ten are in time, one is a second late: more than one in twenty."""
    one = pace()
    for i in range(100):
        due = one.due()
        one.sent(due, due + (1.0 if i % 10 == 0 else 0.0))
    assert "CALLERS WERE LATE: 10%" in one.report(due)[-1]


def test_calls_that_nobody_was_free_to_send_are_told():
    """One user who took the first call and is still busy ten seconds later: some hundred calls were due."""
    one = pace()
    due = one.due()
    one.sent(due, due)
    lines = one.report(110.0)
    assert "CALLERS WERE LATE" in lines[-1]
    assert 70 < int(lines[0].split("of ")[1].split()[0]) < 130


def test_nothing_sent_is_no_lateness():
    assert len(pace().report(100.0)) == 1


def test_no_rate_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        pace(0.0)
