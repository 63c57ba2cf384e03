"""Standing under the limits: what outcomes and grades are evidence of, excess by hand, and arms that move."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import Constraints, FilterSettings, Outcome
from bandit.standing import Standing

LIMITS = Constraints(p95_latency_s=2.0, max_error_rate=0.1, min_accuracy=0.7)


def standing(n=2, constraints=LIMITS):
    return Standing(n, constraints, FilterSettings())


def outcome(status="ok", latency_s=0.5, **kwargs):
    return Outcome("d", 0.0, "m", status, latency_s, **kwargs)


def evidence(s, arm):
    return [(s.filters.evidence(arm, i).calls, s.filters.evidence(arm, i).bad) for i in range(len(s.limits))]


def test_outcomes_are_evidence_on_all_limits_but_accuracy_and_grades_on_that_alone():
    s = standing()
    s.observe(0, outcome())
    s.observe(0, outcome(latency_s=9.0))
    s.observe(0, outcome("error"))
    s.observe(0, outcome("cancelled"))
    s.observe_accuracy(0, 0.75)
    assert evidence(s, 0) == [(3, 2.0), (3, 1.0), (1, 0.25)]
    assert evidence(s, 1) == [(0, 0.0)] * 3


def test_the_excess_is_the_worst_over_the_limits_by_hand():
    """A failure counts as ten times the limit in the recent p95: of (0.5, 20) that is 19.025, 8.5 times 2 over."""
    s = standing(3)
    s.observe(0, outcome())
    s.observe(0, outcome("timeout"))
    s.observe(1, outcome(latency_s=1.0))
    assert s.excess(np.array([0.9, 0.63, 0.7])) == pytest.approx([19.025 / 2 - 1, 0.1, 0.0], abs=1e-12)


def test_without_limits_nobody_is_over():
    assert standing(2, Constraints()).excess(np.array([0.0, 0.0])) == [0.0, 0.0]
    assert standing(2, Constraints()).observe_accuracy(0, 0.0) == []


def test_a_state_may_be_taken_over_for_other_arms():
    """Arm 0 becomes arm 2; arm 1 is new; the old arm 1 becomes arm 0."""
    old, new = standing(2), standing(3)
    for _ in range(3):
        old.observe(0, outcome(latency_s=9.0, time_to_first_token_s=0.2))
    old.observe(1, outcome(latency_s=1.5))
    new.load(old.state(), [1, None, 0])
    assert new.filters.states == ("unknown", "unknown", "filtered")
    assert [q.values() for q in new.latency] == [[1.5], [], [9.0] * 3]
    assert [q.count for q in new.time_to_first_token] == [0, 0, 3]
    assert evidence(new, 1) == [(0, 0.0)] * 3
    assert new.state() == {
        "filters": new.filters.state(),
        "latency": [[1.5], [], [9.0] * 3],
        "time_to_first_token": [[], [], [0.2] * 3],
    }


def test_drift_restarts_the_evidence_of_its_own_head_only():
    s = standing()
    s.observe(0, outcome())
    s.observe_accuracy(0, 1.0)
    s.drifted(0, 2, "drift in latency", worse=True)
    assert evidence(s, 0) == [(0, 0.0), (1, 0.0), (1, 0.0)]
