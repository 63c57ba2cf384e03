"""Laws of what stands above a policy: exact probabilities under every combination, and tenants that never meet."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from conftest import HeldStore
from steered_pools import NAMES, Steered

from serving.errors import NothingAvailable

SHARE = 0.25
CASES = st.fixed_dictionaries(
    {
        "weights": st.none() | st.fixed_dictionaries({name: st.integers(0, 5).map(float) for name in NAMES}),
        "learning": st.sampled_from(["apply", "observe", "bypass"]),
        "disabled": st.sets(st.sampled_from(NAMES)),
        "down": st.sets(st.sampled_from(NAMES)),
        "canary": st.booleans(),
        "loop": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
).filter(lambda case: case["weights"] is None or any(case["weights"].values()))


def _expected(case):
    """(p, mode) by hand for a uniform policy without limits, c being the canary; p None: one arm, whichever."""
    able = np.array([name not in case["disabled"] | case["down"] for name in NAMES])
    free = able & (np.array([True, True, not case["canary"]]))
    weights = None if case["weights"] is None else np.array([case["weights"][name] for name in NAMES])
    mode = "bandit" if weights is None and case["learning"] == "apply" else "weighted"
    first = np.eye(3)[free.argmax()] if free.any() else np.zeros(3)
    p = free / max(1, free.sum()) if case["learning"] == "apply" else first
    if weights is not None:
        p = weights * free
        p = p / p.sum() if p.any() else free / max(1, free.sum())
    if case["loop"] and (free.any() or case["learning"] == "bypass"):
        if mode == "bandit":
            return None, "sticky"
        return np.eye(3)[np.where(free, p, -1).argmax()], "sticky"
    if case["canary"] and case["learning"] != "bypass":
        mode = "canary"
        if able[2]:
            p = np.eye(3)[2] if not free.any() else (1 - SHARE) * p + SHARE * np.eye(3)[2]
    return p, mode


def _with_canary(service):
    for row in service.traffic.tick(1.0):
        service.learner.change([row])


@settings(max_examples=150)
@given(CASES)
def test_the_probabilities_are_exact_under_every_combination(case):
    async def run():
        canary = {"model": "c", "share": SHARE, "steps": [SHARE, 1.0]} if case["canary"] else None
        service = Steered(HeldStore(), seed=case["seed"], policy={"kind": "uniform"}, canary=canary)
        _with_canary(service)
        service.change("weights", case["weights"])
        service.change("learning", case["learning"])
        service.change("disabled", sorted(case["disabled"]))
        service.endpoints.down |= case["down"]
        able = [name for name in NAMES if name not in case["disabled"] | case["down"]]
        expected, mode = _expected(case)
        if (
            not able
            or (case["learning"] == "bypass" and able == ["c"] and case["canary"])
            or (expected is not None and not expected.any())
        ):
            with pytest.raises(NothingAvailable):
                service.decide(loop=case["loop"])
            return
        decision, _ = service.decide(loop=case["loop"])
        assert decision.probabilities.sum() == pytest.approx(1.0)
        assert decision.propensity == decision.probabilities[NAMES.index(decision.chosen)] > 0.0
        assert decision.chosen in able
        assert decision.mode == mode
        if expected is not None:
            assert decision.probabilities == pytest.approx(expected)

    asyncio.run(run())


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["s", "t"])), min_size=2, max_size=30))
def test_no_session_crosses_tenants(calls):
    """Every tenant's calls of one name stay on one model, whatever others do under the same name, and hashes differ."""

    async def run():
        service = Steered(HeldStore(), policy={"kind": "uniform"})
        seen = {}
        for team, session in calls:
            decision, labels = service.decide(session, team=team)
            before = seen.setdefault((team, session), (decision.chosen, labels.session))
            assert (decision.chosen, labels.session) == before
        hashes = [session for _, session in seen.values()]
        assert len(set(hashes)) == len(hashes) == len(service.own.sessions)

    asyncio.run(run())
