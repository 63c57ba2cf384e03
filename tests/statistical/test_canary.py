"""Canaries in simulated time, on the real pool and part of the fold; and the comparison's coverage at all looks.

Seeded. Each count of runs k of n is held against the tolerance it follows from, stated in its test.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from bandit.comparison import Comparison
from bandit.features import Features
from bandit.pool import Pool
from bandit.steering import Steer
from bandit.types import Arm, Constraints, Decision, Feedback, Outcome, Price, Prompt
from serving.records import Record
from serving.traffic.canaries import Canary
from serving.traffic.canary_settings import CanarySettings

RUNS = 100
SD = 0.2  # of a grade


@dataclass(frozen=True)
class World:
    """What the canary is, next to a control of quality 0.75 and 1 mUSD a call."""

    quality: float = 0.75
    cost_usd: float = 0.0007
    errors: float = 0.0
    graded: float = 1.0


def beta(rng: np.random.Generator, mean: float, n: int) -> np.ndarray:
    k = mean * (1 - mean) / SD**2 - 1
    return rng.beta(mean * k, (1 - mean) * k, n)


def run(seed: int, world: World, most_calls: int = 60_000, compare_to: str | None = "old") -> tuple[str, int, Canary]:
    """(how it stood at the end, after how many calls, the canary) of steps 0.1, 0.5 and 1."""
    rng = np.random.default_rng(seed)
    pool = Pool([Arm("old", Price(1, 1)), Arm("new", Price(1, 1)), Arm("rest", Price(1, 1))], features=Features([]))
    guardrails = {"max_cost_increase": 0.1, "max_error_rate": 0.05}
    settings = CanarySettings(model="new", steps=(0.1, 0.5, 1.0), compare_to=compare_to, guardrails=guardrails)
    canary = Canary(pool, settings)
    for row in canary.tick(0.0):
        canary.changed(row)
    made = decisions_of(pool)
    grades = {"new": beta(rng, world.quality, most_calls), "old": beta(rng, 0.75, most_calls)}
    grades["rest"] = beta(rng, 0.9, most_calls)  # in no group where there is a control
    draws, fails, asked = rng.random((3, most_calls)).tolist()
    costs = rng.exponential(0.001, most_calls).tolist()
    for i in range(most_calls):
        decision = made(canary, draws[i], float(i))
        name = decision.chosen
        record, cost = Record(decision), costs[i] * (world.cost_usd / 0.001 if name == "new" else 1.0)
        failed = name == "new" and fails[i] < world.errors
        record.outcome = Outcome("d", float(i), name, "error" if failed else "ok", 0.1, cost_usd=cost)
        rows = list(canary.outcome(record, record.outcome))
        if not failed and asked[i] < world.graded:
            rows += canary.feedback(record, Feedback("d", float(i), float(grades[name][i])))
        for row in rows:
            canary.changed(row)
        if not canary.running:
            return canary.trial.phase, i + 1, canary
    return canary.trial.phase, most_calls, canary


def decisions_of(pool: Pool):
    """Decisions as the pool makes them: its own distribution under the canary's steer, one draw each.

    The weights of the pool's rest are fixed, so the distribution is asked of the pool once a step.
    """

    @functools.cache
    def template(step: int, held: tuple[bool, ...], mixed: tuple[tuple[int, float], ...]) -> Decision:
        steer = Steer(held=np.array(held), shares=np.array([0.3, 0.0, 0.7]), mixed=mixed, mode="canary")
        return pool.decide(Prompt(), np.random.default_rng(0), decision_id="d", ts=0.0, steer=steer)

    def decide(canary: Canary, u: float, ts: float) -> Decision:
        held, mixed = canary.steer(pool.names)
        like = template(canary.trial.step, tuple(held.tolist()), mixed)
        arm = min(int(np.searchsorted(like.probabilities.cumsum(), u, side="right")), len(pool.names) - 1)
        values = {name: getattr(like, name) for name in Decision.__slots__}
        drawn = {"ts": ts, "chosen": pool.names[arm], "propensity": float(like.probabilities[arm])}
        return Decision(**values | drawn)

    return decide


def ends(world: World, **more) -> tuple[Counter, list[int]]:
    found = [run(seed, world, **more)[:2] for seed in range(RUNS)]
    return Counter(phase for phase, _ in found), [calls for _, calls in found]


@pytest.mark.parametrize("compare_to", ["old", None])
def test_a_canary_three_points_worse_is_rolled_back(compare_to):
    """Quality 0.72 against 0.75 of the control (without one: 0.855 of the rest): in at least 95 of 100 runs.

    The loss is past the margin of 0.02, so each proof to the contrary has a probability below 0.01: with probability
    0.999 at most 5 of 100 runs go wrong if each does with 0.0125 (binomial).
    """
    phases, _ = ends(World(quality=0.72, cost_usd=0.0005), compare_to=compare_to)
    assert phases["rolled_back"] >= 95, phases


def test_a_canary_equal_but_cheaper_is_promoted():
    """Quality as the control's at 70 % of its cost: in at least 95 of 100 runs, within 60,000 graded calls."""
    phases, calls = ends(World())
    assert phases["promoted"] >= 95, (phases, max(calls))


def test_a_canary_without_grades_is_held():
    """It stays at its first share, and says what it lacks."""
    phase, _, canary = run(1, World(graded=0.0), most_calls=5_000)
    assert phase == "running"
    assert canary.trial.share == 0.1
    (row,) = canary.tick(5_000.0)
    assert row["what"] == "canary_held"
    assert "needs 200 more graded calls of the control" in row["reason"]


def test_a_canary_without_calls_is_held():
    """Nothing comes: nothing moves."""
    pool = Pool([Arm("old"), Arm("new")])
    canary = Canary(pool, CanarySettings(model="new", hold_after_s=60.0))
    for now in (0.0, 59.0, 61.0, 1e6):
        for row in canary.tick(now):
            canary.changed(row)
    assert [row["what"] for row in canary.status()["history"]] == ["canary_started", "canary_held"]
    assert canary.running


def test_a_canary_that_fails_is_rolled_back_within_some_hundred_of_its_calls():
    """Errors of 15 % against a limit of 5 %: in all of 30 seeded runs, within 3,000 calls of the pool (300 its own)."""
    for seed in range(30):
        phase, calls, canary = run(seed, World(errors=0.15), most_calls=3_000)
        assert phase == "rolled_back", (seed, phase)
        assert "error rate" in canary.status()["history"][-1]["reason"]
        assert calls <= 3_000


def test_a_dearer_canary_is_rolled_back_and_says_so():
    """A third dearer where a tenth is allowed, costs exponential: in all of 20 seeded runs."""
    for seed in range(20):
        phase, _, canary = run(seed, World(cost_usd=0.00133))
        assert phase == "rolled_back"
        assert "mean cost rises" in canary.status()["history"][-1]["reason"]


def test_a_filtered_canary_is_rolled_back_at_once():
    """The pool's own limit filters it: by the next outcome it is out, whatever the guardrails say."""
    pool = Pool([Arm("old"), Arm("new")], constraints=Constraints(max_error_rate=0.05), features=Features([]))
    canary = Canary(pool, CanarySettings(model="new", steps=(0.5, 1.0), guardrails={"max_error_increase": None}))
    for row in canary.tick(0.0):
        canary.changed(row)
    rng, record = np.random.default_rng(3), None
    for i in range(200):
        held, mixed = canary.steer(pool.names)
        steer = Steer(held=held, mixed=mixed, mode="canary")
        decision = pool.decide(Prompt(), rng, decision_id="d", ts=float(i), steer=steer)
        pool.advance(decision)
        status = "error" if decision.chosen == "new" else "ok"
        record = Record(decision)
        record.outcome = Outcome("d", float(i), decision.chosen, status, 0.1)
        pool.apply_outcome(decision, record.outcome)
        for row in canary.outcome(record, record.outcome):
            canary.changed(row)
        if not canary.running:
            break
    last = canary.status()["history"][-1]
    assert last["what"] == "canary_rolled_back"
    assert "filtered" in last["reason"]
    held, mixed = canary.steer(pool.names)
    assert held.tolist() == [False, True]
    assert mixed == ()


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("right or wrong, 75 %", lambda rng, n: (rng.random(n) < 0.75).astype(float)),
        ("errors of 1 %", lambda rng, n: (rng.random(n) < 0.01).astype(float)),
        ("grades", lambda rng, n: beta(rng, 0.75, n)),
    ],
)
@pytest.mark.parametrize("control_per_treated", [1, 9])
def test_an_interval_holds_at_all_looks(name, draw, control_per_treated):
    """No difference, α = 0.05 on each side: a look after every tenth value of 4,000, on 300 seeded runs.

    Of 300 runs each with probability ≤ 0.1 to miss at any look, more than 46 miss with probability < 0.001 (binomial).
    """
    missed = 0
    for seed in range(300):
        rng = np.random.default_rng((seed, control_per_treated))
        treated, control = draw(rng, 4_000), draw(rng, 4_000 * control_per_treated)
        missed += misses(treated, control, control_per_treated)
    assert missed <= 46, (name, missed)


def misses(treated: np.ndarray, control: np.ndarray, per: int, *, relative: bool = False) -> bool:
    comparison = Comparison(0.1 if relative else 0.02, relative=relative)
    for i, x in enumerate(treated.tolist()):
        comparison.add("treated", x, stratum=i // 2_000)
        for y in control[i * per : (i + 1) * per].tolist():
            comparison.add("control", y, stratum=i // 2_000)
        if i % 10 == 9:
            low, high = comparison.interval(0.05)
            if not low <= 0.0 <= high:
                return True
    return False


def test_an_interval_holds_for_skewed_costs():
    """Log-normal costs with σ = 1 (the dearest of 100 costs ten medians), α = 0.05 a side: at most 46 of 300."""
    missed = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        missed += misses(*(0.001 * rng.lognormal(0.0, 1.0, 4_000) for _ in range(2)), 1, relative=True)
    assert missed <= 46, missed
