"""Callers, budgets and outcomes for tests of what is counted, without a service."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bandit.types import Context, Decision, Outcome
from serving.access.budget_settings import BudgetEntry, LimitEntry
from serving.access.principal import Principal
from serving.records import Labels, Record

ALICE = Principal("alice", "search", "paid", "key-alice")
BOB = Principal("bob", "search", "paid", "key-bob")
CAROL = Principal("carol", "ads", "free", "key-carol")
NOON = 1_764_072_000.0  # 2025-11-25T12:00:00Z


def budget(**more: Any) -> BudgetEntry:
    """A budget of the configuration; by default 1 USD a day for all."""
    return BudgetEntry.model_validate({"scope": "all", "usd": 1.0, "per": "day"} | more)


def limit(**more: Any) -> LimitEntry:
    return LimitEntry.model_validate({"scope": "user"} | more)


def record(principal: Principal = ALICE, mode: str = "bandit") -> Record:
    """A decision made for `principal`."""
    nan = np.full(1, np.nan)
    decision = Decision(
        decision_id="pm-1",
        ts=NOON,
        pool="auto",
        mode=mode,
        step=0,
        context=Context(np.zeros(0, dtype=np.float32), "none", 1),
        policy_version="p",
        arms=("m",),
        feasible=np.ones(1, dtype=np.bool_),
        probabilities=np.ones(1),
        chosen="m",
        propensity=1.0,
        predicted_quality=nan,
        predicted_cost_usd=nan,
        predicted_latency_s=nan,
    )
    return Record(decision, labels=Labels(principal))


def outcome(cost_usd: float | None = None, ts: float = NOON, **more: Any) -> Outcome:
    return replace(Outcome("pm-1", ts, "m", "ok", 0.1, cost_usd=cost_usd), **more)


def at_once(waiting: Coroutine[Any, Any, Any]) -> Any:
    """What comes of it, without a loop: in one process, nothing of what is counted may wait for anything."""
    try:
        waiting.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


@dataclass
class Heard:
    """What a ledger says while it runs."""

    said: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, entry: BudgetEntry, notice: dict[str, Any]) -> None:
        self.said.append((entry.name, notice["event"]))
