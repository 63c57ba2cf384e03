"""What each hard limit means: which calls count as bad under it, at which rate, and which head it follows.

The only place that knows the kinds of limits. How sure one must be before acting is `bandit.filters`' matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bandit.posterior import LATENCY, QUALITY
from bandit.types import Constraints, Outcome

__all__ = ["Limit", "bad_call", "limits_of"]

Kind = Literal["p95_latency_s", "p95_time_to_first_token_s", "max_error_rate", "min_accuracy"]
_P95_RATE = 0.05  # "p95 ≤ L" says that at most this share of calls is slower than L


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: its kind, the bound as configured, the rate of bad calls it allows, and the head that follows it.

    Drift of that head voids the limit's evidence; None: no head follows it.
    """

    kind: Kind
    bound: float
    rate: float
    head: int | None


def limits_of(constraints: Constraints) -> tuple[Limit, ...]:
    """The limits that are set."""
    c = constraints
    candidates: tuple[tuple[Kind, float | None, float | None, int | None], ...] = (
        ("p95_latency_s", c.p95_latency_s, _P95_RATE, LATENCY),
        ("p95_time_to_first_token_s", c.p95_time_to_first_token_s, _P95_RATE, LATENCY),
        ("max_error_rate", c.max_error_rate, c.max_error_rate, None),
        ("min_accuracy", c.min_accuracy, None if c.min_accuracy is None else 1.0 - c.min_accuracy, QUALITY),
    )
    return tuple(
        Limit(kind, bound, rate, head)
        for kind, bound, rate, head in candidates
        if bound is not None and rate is not None
    )


def bad_call(limit: Limit, outcome: Outcome) -> float | None:
    """1.0 for a bad call under `limit`, 0.0 for a good one, None when the outcome says nothing about it.

    Timeouts and errors count as slow; an error the caller's own request caused says nothing. A call abandoned by its
    caller says something only once it is past the limit.
    Accuracy is judged by grades, never by outcomes.
    """
    if limit.kind == "min_accuracy":
        return None
    if limit.kind == "max_error_rate":
        return float(outcome.failed) if outcome.failed or outcome.status == "ok" else None
    if outcome.failed:
        return 1.0
    first = limit.kind == "p95_time_to_first_token_s"
    measured = outcome.time_to_first_token_s if first else outcome.latency_s
    if outcome.status == "cancelled":
        measured = outcome.latency_s if measured is None else measured
        return 1.0 if measured is not None and measured > limit.bound else None
    if outcome.status != "ok" or measured is None:
        return None
    return float(measured > limit.bound)
