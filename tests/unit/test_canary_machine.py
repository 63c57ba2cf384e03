"""A trial's groups, steps and ends, on decisions made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest

from bandit.canary import Plan, Trial
from bandit.errors import InvalidInput
from bandit.guardrails import Guardrails
from bandit.types import Context, Decision, Outcome

ARMS = ("old", "new", "other")
PLAN = Plan("new", (0.1, 0.5, 1.0), compare_to="old", min_calls=60, min_graded=60)


def decision(chosen: str, p: tuple[float, ...], ts: float = 1.0, mode: str = "canary") -> Decision:
    nan = np.full(3, np.nan)
    return Decision(
        decision_id="d",
        ts=ts,
        pool="pool",
        mode=mode,
        step=0,
        context=Context(np.zeros(1, np.float32), "v", 10),
        policy_version="x",
        arms=ARMS,
        feasible=np.ones(3, dtype=np.bool_),
        probabilities=np.array(p),
        chosen=chosen,
        propensity=p[ARMS.index(chosen)],
        predicted_quality=nan,
        predicted_cost_usd=nan,
        predicted_latency_s=nan,
    )


def outcome(model: str, status: str = "ok", *, attempt: int = 0, latency_s: float = 0.1) -> Outcome:
    return Outcome("d", 1.0, model, status, latency_s, cost_usd=0.001, attempt=attempt)


def shares(step: int, old: float = 0.4) -> tuple[float, ...]:
    """The pool's probabilities in a step of PLAN: `old` has that share of the rest, too."""
    s = PLAN.shares[step]
    c, rest = PLAN.control_share(step), 1.0 - s - PLAN.control_share(step)
    return c + rest * old, s, rest * (1.0 - old)


def feed(trial: Trial, step: int, n: int, *, new: float = 0.8, old: float = 0.8, ts: float = 1.0) -> list[str]:
    """`n` calls of each model with these qualities; makes the moves and returns what they were."""
    moves = []
    for _ in range(n):
        for model, quality in (("old", old), ("new", new)):  # the canary's own calls are looked at
            made = decision(model, shares(step), ts)
            for move in (trial.observe(made, outcome(model)), trial.grade(made, quality)):
                if move is not None:
                    moves.append(move.what)
                    trial.apply(move.what, move.after, ts + 1.0)
                    return moves
    return moves


def test_the_control_gets_as_much_as_the_canary_as_far_as_there_is_any():
    """Shares of 0.1, 0.5 and 1 leave 0.1, 0.5 and nothing."""
    trial = Trial(PLAN, 0.0)
    assert trial.parts() == (("new", 0.1), ("old", 0.1))
    assert [PLAN.control_share(step) for step in range(3)] == [0.1, 0.5, 0.0]
    assert Trial(replace(PLAN, compare_to=None), 0.0).parts() == (("new", 0.1),)


def test_a_step_needs_its_calls_and_grades_and_no_more():
    """Sixty of each, and not one fewer."""
    trial = Trial(PLAN, 0.0)
    assert feed(trial, 0, 59) == []
    assert trial.needs() == [
        "needs 1 more calls of new",
        "needs 1 more graded calls of new",
        "needs 1 more graded calls of the control",
    ]
    assert feed(trial, 0, 1) == ["canary_step"]
    assert trial.share == 0.5


def test_the_step_to_all_calls_needs_every_proof():
    """Two hundred grades, though all equal, prove no loss below 0.02; more do, and then no control is left."""
    trial = Trial(PLAN, 0.0)
    feed(trial, 0, 60)
    assert feed(trial, 1, 150, ts=2.0) == []
    assert any("not proved" in need for need in trial.needs())
    assert feed(trial, 1, 10_000, ts=2.0) == ["canary_step"]
    assert trial.share == 1.0
    made = decision("new", (0.0, 1.0, 0.0), ts=3.0)
    moves = []
    for _ in range(60):
        moves += [trial.observe(made, outcome("new")), trial.grade(made, 0.8)]
    (move,) = [move for move in moves if move is not None]
    assert move.what == "canary_promoted"
    trial.apply(move.what, move.after, 4.0)
    assert not trial.keeps_out
    assert trial.parts() == ()


def test_worse_answers_end_it_in_the_first_step():
    """A quality of 0 against 1 needs hardly more than the fifty that the interval starts at."""
    trial = Trial(PLAN, 0.0)
    assert feed(trial, 0, 59, new=0.0, old=1.0) == ["canary_rolled_back"]
    assert trial.keeps_out
    assert not trial.running


def test_worse_answers_once_it_has_all_calls_end_it_too():
    """There the earlier control stands in."""
    trial = Trial(PLAN, 0.0)
    feed(trial, 0, 60)
    feed(trial, 1, 10_000, ts=2.0)
    made = decision("new", (0.0, 1.0, 0.0), ts=3.0)
    found = [move for _ in range(60) if (move := trial.grade(made, 0.0)) is not None]
    assert found[0].what == "canary_rolled_back"
    assert "quality" in found[0].reason


def test_an_error_limit_is_proved_broken_within_a_few_calls():
    """Ten failures in a row prove more than 2 %; the reason has the figures."""
    trial = Trial(replace(PLAN, guardrails=Guardrails(max_error_rate=0.02)), 0.0)
    moves = [trial.observe(decision("new", shares(0)), outcome("new", "error")) for _ in range(10)]
    first = next(move for move in moves if move is not None)
    assert first.what == "canary_rolled_back"
    assert "error rate at most 2.00%: 100.00% of" in first.reason


def test_slow_calls_are_those_past_the_limit():
    """A p95 of 1 s is broken by calls of 2 s, and not by its control's."""
    trial = Trial(replace(PLAN, guardrails=Guardrails(p95_latency_s=1.0)), 0.0)
    assert not any(trial.observe(decision("old", shares(0)), outcome("old", latency_s=2.0)) for _ in range(50))
    assert any(trial.observe(decision("new", shares(0)), outcome("new", latency_s=2.0)) for _ in range(50))


@pytest.mark.parametrize(
    ("made", "result"),
    [
        (decision("new", shares(0), mode="sticky"), outcome("new")),
        (decision("new", shares(0)), outcome("old", attempt=1)),
        (decision("new", shares(0)), outcome("new", attempt=1)),
        (decision("new", (0.0, 1.0, 0.0)), outcome("new")),
        (decision("new", (0.0, 0.1, 0.9)), outcome("new")),
        (decision("new", shares(0), ts=-1.0), outcome("new")),
        (decision("other", shares(0)), outcome("other")),
    ],
    ids=["sticky", "fallback", "retry", "alone", "control out", "before it began", "neither"],
)
def test_only_calls_drawn_as_the_step_says_are_compared(made, result):
    """Those of other modes, shares or times, and attempts after the first, are of no group."""
    trial = Trial(PLAN, 0.0)
    trial.observe(made, result)
    assert trial.summary()["errors"]["treated"]["count"] == 0
    assert trial.summary()["errors"]["control"]["count"] == 0


def test_feedback_of_an_earlier_step_counts_for_that_step():
    """The call was made at a share of 0.1; its grade comes when the share is 0.5."""
    trial = Trial(PLAN, 0.0)
    feed(trial, 0, 60)
    assert trial.step == 1
    trial.grade(decision("new", shares(0), ts=1.5), 1.0)
    assert any("60 more graded calls of new" in need for need in trial.needs())


def test_without_progress_it_says_what_it_needs_once():
    """After hold_after_s, and not again in the same step."""
    trial = Trial(PLAN, 0.0)
    assert trial.tick(3_599.0) is None
    move = trial.tick(3_600.0)
    assert move.what == "canary_held"
    assert "needs 60 more graded calls of the control" in move.reason
    trial.apply(move.what, move.after, 3_600.0)
    assert trial.tick(9_999.0) is None
    assert trial.running


def test_a_state_makes_the_same_trial():
    """Through JSON, in the middle of a step: what comes next is the same."""
    one = Trial(replace(PLAN, guardrails=Guardrails(0.05, 2.0, 0.03, 0.03, 0.1)), 0.0)
    feed(one, 0, 60)
    feed(one, 1, 31, ts=2.5)
    other = Trial.from_state(orjson.loads(orjson.dumps(one.state())))
    assert other.state() == one.state()
    assert feed(other, 1, 5_000, ts=2.5) == feed(one, 1, 5_000, ts=2.5)
    assert other.state() == one.state()


@pytest.mark.parametrize("steps", [(), (0.0, 0.5), (0.5, 0.5), (0.5, 1.1)])
def test_shares_rise_up_to_one(steps):
    """Anything else is refused."""
    with pytest.raises(InvalidInput, match="steps"):
        Plan("new", steps)
