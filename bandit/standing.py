"""Where each arm of a pool stands under the pool's limits: evidence, recent quantiles, and by how much it is over.

Turns outcomes and grades into evidence for `bandit.filters`. Knows nothing of utilities, policies or budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bandit.filters import Filters, FilterSettings, Transition
from bandit.limits import Limit, bad_call, limits_of
from bandit.posterior import LATENCY
from bandit.quantiles import RecentQuantile
from bandit.types import Constraints, FloatArray, Outcome

__all__ = ["Standing"]

_LATENCY_WINDOW = 256
_FAILURE_IN_BOUNDS = 10.0  # a failed call counts as this many times the limit in the recent p95


class Standing:
    """The limits of a pool with the evidence on each arm. `latency`, `time_to_first_token`: recent p95 by arm, in s."""

    def __init__(self, n_arms: int, constraints: Constraints, settings: FilterSettings) -> None:
        self.limits = limits_of(constraints)
        self.filters = Filters(n_arms, tuple((limit.kind, limit.rate) for limit in self.limits), settings)
        self.latency = [RecentQuantile(0.95, _LATENCY_WINDOW) for _ in range(n_arms)]
        self.time_to_first_token = [RecentQuantile(0.95, _LATENCY_WINDOW) for _ in range(n_arms)]

    def observe(self, arm: int, outcome: Outcome) -> list[Transition]:
        """One attempt's evidence on every limit but accuracy."""
        changes: list[Transition] = []
        for index, limit in enumerate(self.limits):
            bad = bad_call(limit, outcome)
            if bad is not None:
                changes += self.filters.observe(arm, index, bad)
            if outcome.failed and limit.head == LATENCY:  # slower than any answer: it must not look quick
                self._window(limit)[arm].add(_FAILURE_IN_BOUNDS * limit.bound)
        if outcome.status == "ok":
            if outcome.time_to_first_token_s is not None:
                self.time_to_first_token[arm].add(outcome.time_to_first_token_s)
            if outcome.latency_s is not None:
                self.latency[arm].add(outcome.latency_s)
        return changes

    def observe_accuracy(self, arm: int, quality: float) -> list[Transition]:
        """One grade in [0, 1] as evidence on the accuracy limit, if there is one."""
        for index, limit in enumerate(self.limits):
            if limit.kind == "min_accuracy":
                return self.filters.observe(arm, index, 1.0 - quality)
        return []

    def drifted(self, arm: int, head: int, reason: str, *, worse: bool) -> list[Transition]:
        """Restart the evidence that drift of a head has made stale.

        A filtered arm's evidence started when it was filtered. An admitted one keeps its certificate if it got better
        or its recent calls still keep the limits: the detector of change is watching it anyway.
        """
        state = self.filters.states[arm]
        doubtful = worse and self.filters.compliance()[arm] < 0.5
        changes: list[Transition] = []
        if state in ("unknown", "probing") or (state == "admitted" and doubtful):
            for index, limit in enumerate(self.limits):
                if limit.head == head:
                    changes += self.filters.restart(arm, index, reason)
        return changes

    def excess(self, accuracy: FloatArray) -> list[float]:
        """By how much each arm is over its limits, relative to the limit, the worst one; ≤ 0: within all.

        `accuracy` is what each arm's quality is believed to be, shape (n_arms,).
        """
        return [
            max((self._excess(arm, i, limit, accuracy) for i, limit in enumerate(self.limits)), default=0.0)
            for arm in range(len(self.latency))
        ]

    def state(self) -> dict[str, Any]:
        """Everything learned; `load` is its inverse."""
        return {
            "filters": self.filters.state(),
            "latency": [q.values() for q in self.latency],
            "time_to_first_token": [q.values() for q in self.time_to_first_token],
        }

    def load(self, state: dict[str, Any], rows: Sequence[int | None]) -> None:
        """Take over a state: arm i is entry `rows[i]` of it, or without evidence where that is None."""
        self.filters.load(self.filters.rearranged(state["filters"], rows))
        for quantiles, saved in (
            (self.latency, state["latency"]),
            (self.time_to_first_token, state["time_to_first_token"]),
        ):
            for quantile, row in zip(quantiles, rows, strict=True):
                quantile.load([] if row is None else saved[row])

    def _excess(self, arm: int, index: int, limit: Limit, accuracy: FloatArray) -> float:
        if limit.kind == "min_accuracy":
            return float(limit.bound - accuracy[arm]) / limit.bound
        if limit.kind == "max_error_rate":
            test = self.filters.evidence(arm, index)
            return test.rate / limit.rate - 1.0 if test.calls else 0.0
        quantile = self._window(limit)[arm]
        return quantile.get() / limit.bound - 1.0 if quantile.count else 0.0

    def _window(self, limit: Limit) -> list[RecentQuantile]:
        return self.latency if limit.kind == "p95_latency_s" else self.time_to_first_token
