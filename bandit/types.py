"""The values that pass between the parts of the library: arms, prompts, contexts, decisions, outcomes, feedback.

Plain data, checked where it enters. Nothing here learns, draws, waits or knows of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput

__all__ = [
    "Arm",
    "BoolArray",
    "Constraints",
    "Context",
    "Decision",
    "Feedback",
    "FloatArray",
    "Mode",
    "Objective",
    "Outcome",
    "Price",
    "Prompt",
    "RequestLimits",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Mode = Literal["bandit", "pinned", "weighted", "sticky", "canary", "cached", "shadow"]
Status = Literal["ok", "error", "timeout", "cancelled"]


def _check_range(name: str, value: float | None, low: float, high: float = float("inf")) -> None:
    if value is not None and not low <= value <= high:  # NaN fails both comparisons
        raise InvalidInput(name, f"must be between {low:g} and {high:g}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Price:
    """List price in USD, each ≥ 0: per million tokens, and per call.

    `cached_input_per_million`: of input that the endpoint had in its own cache; None: as other input.
    """

    input_per_million: float
    output_per_million: float
    cached_input_per_million: float | None = None
    per_call: float = 0.0

    def __post_init__(self) -> None:
        _check_range("price.input_per_million", self.input_per_million, 0.0)
        _check_range("price.output_per_million", self.output_per_million, 0.0)
        _check_range("price.cached_input_per_million", self.cached_input_per_million, 0.0)
        _check_range("price.per_call", self.per_call, 0.0)

    def cost_usd(self, input_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> float:
        """Cost in USD of one call; `cached_tokens`: of the input's, those from the endpoint's cache, ≤ them all."""
        tokens_usd = (input_tokens * self.input_per_million + output_tokens * self.output_per_million) / 1e6
        if cached_tokens and self.cached_input_per_million is not None:
            saved_per_million = self.input_per_million - self.cached_input_per_million
            tokens_usd -= min(cached_tokens, input_tokens) * saved_per_million / 1e6
        return tokens_usd + self.per_call


@dataclass(frozen=True, slots=True)
class Arm:
    """One thing that can be chosen. `price` None: its cost is unknown, which is never the same as zero."""

    name: str
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights (≥ 0, not all 0) and references of the scorer's formula; see `bandit.scorer`."""

    quality: float = 1.0
    cost: float = 0.0
    latency: float = 0.0
    cost_reference_usd: float = 0.002
    latency_reference_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("quality", "cost", "latency"):
            _check_range(f"objective.{name}", getattr(self, name), 0.0)
        if self.quality + self.cost + self.latency <= 0:
            raise InvalidInput("objective", "at least one of quality, cost and latency must be above 0")
        for name in ("cost_reference_usd", "latency_reference_s"):
            _check_range(f"objective.{name}", getattr(self, name), 1e-12)

    @property
    def weights(self) -> tuple[float, float, float]:
        """(quality, cost, latency), normalised to sum 1."""
        total = self.quality + self.cost + self.latency
        return self.quality / total, self.cost / total, self.latency / total


@dataclass(frozen=True, slots=True)
class Constraints:
    """Hard limits of a pool; None: no such limit. `accuracy_evidence` says what may test `min_accuracy`."""

    p95_latency_s: float | None = None
    p95_time_to_first_token_s: float | None = None
    max_error_rate: float | None = None
    min_accuracy: float | None = None
    accuracy_evidence: Literal["benchmarks", "feedback", "both"] = "benchmarks"
    on_infeasible: Literal["least_violation", "fail"] = "least_violation"

    def __post_init__(self) -> None:
        _check_range("constraints.p95_latency_s", self.p95_latency_s, 1e-9)
        _check_range("constraints.p95_time_to_first_token_s", self.p95_time_to_first_token_s, 1e-9)
        _check_range("constraints.max_error_rate", self.max_error_rate, 1e-6, 1 - 1e-6)
        _check_range("constraints.min_accuracy", self.min_accuracy, 1e-6, 1 - 1e-6)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the features may see of one request. `text` is what the user wrote last; it is never stored.

    `vector`: the caller's own features, as many as the pool's features take; None: it brought none.
    """

    text: str = ""
    input_tokens: int = 0
    turns: int = 1
    has_system: bool = False
    tools: int = 0
    json_mode: bool = False
    category: str | None = None
    vector: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_range("input_tokens", self.input_tokens, 0, 1e9)
        _check_range("turns", self.turns, 0, 1e9)
        _check_range("tools", self.tools, 0, 1e9)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may cost and take at most, above 0; None: no such limit."""

    max_cost_usd: float | None = None
    max_latency_s: float | None = None

    def __post_init__(self) -> None:
        _check_range("max_cost_usd", self.max_cost_usd, 1e-12, 1e9)
        _check_range("max_latency_s", self.max_latency_s, 1e-6, 1e7)

    @property
    def set(self) -> bool:
        """Whether there is any limit."""
        return self.max_cost_usd is not None or self.max_latency_s is not None

    def excess(self, cost_usd: FloatArray, latency_s: FloatArray) -> FloatArray:
        """By how much each arm is over, relative to the limit, the worse one; ≤ 0: within. Unknown cost: infinite."""
        over = np.full(latency_s.shape, -1.0)
        if self.max_cost_usd is not None:
            over = np.maximum(over, np.where(np.isnan(cost_usd), np.inf, cost_usd / self.max_cost_usd - 1.0))
        if self.max_latency_s is not None:
            over = np.maximum(over, latency_s / self.max_latency_s - 1.0)
        return over


@dataclass(frozen=True, slots=True)
class Context:
    """The feature vector `x`, shape (d,), of one request, its features' version, and the input's length."""

    x: NDArray[np.float32]
    version: str
    input_tokens: int
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Which arm one request goes to, with everything needed to learn from it and to judge it later.

    Arrays have shape (n_arms,) in the order of `arms`; predictions are NaN where unknown. `step` is the pool's
    count of requests when it was made, the clock of forgetting. `infeasible`: no arm met the limits.
    """

    decision_id: str
    ts: float
    pool: str
    mode: Mode
    step: int
    context: Context
    policy_version: str
    arms: tuple[str, ...]
    feasible: BoolArray
    probabilities: FloatArray
    chosen: str
    propensity: float
    predicted_quality: FloatArray
    predicted_cost_usd: FloatArray
    predicted_latency_s: FloatArray
    pacer_multiplier: float = 0.0
    infeasible: bool = False
    withheld_usd: float = 0.0

    def to_row(self) -> dict[str, Any]:
        """One self-contained row of the `decisions` table; arrays stay arrays."""
        return {
            "decision_id": self.decision_id,
            "ts": self.ts,
            "pool": self.pool,
            "mode": self.mode,
            "step": self.step,
            "context": self.context.x,
            "context_version": self.context.version,
            "input_tokens": self.context.input_tokens,
            "category": self.context.category,
            "policy_version": self.policy_version,
            "arms": self.arms,
            "feasible": self.feasible,
            "probabilities": self.probabilities,
            "chosen": self.chosen,
            "propensity": self.propensity,
            "predicted_quality": self.predicted_quality,
            "predicted_cost_usd": self.predicted_cost_usd,
            "predicted_latency_s": self.predicted_latency_s,
            "pacer_multiplier": self.pacer_multiplier,
            "infeasible": self.infeasible,
            "withheld_usd": self.withheld_usd,
        }

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Decision:
        """The inverse of `to_row` after a trip through JSON (null becomes NaN); unknown keys are ignored."""

        def floats(name: str) -> FloatArray:
            return np.array([np.nan if v is None else v for v in row[name]], dtype=np.float64)

        return Decision(
            decision_id=row["decision_id"],
            ts=row["ts"],
            pool=row["pool"],
            mode=row["mode"],
            step=row["step"],
            context=Context(
                x=np.array(row["context"], dtype=np.float32),
                version=row["context_version"],
                input_tokens=row["input_tokens"],
                category=row["category"],
            ),
            policy_version=row["policy_version"],
            arms=tuple(row["arms"]),
            feasible=np.array(row["feasible"], dtype=np.bool_),
            probabilities=floats("probabilities"),
            chosen=row["chosen"],
            propensity=row["propensity"],
            predicted_quality=floats("predicted_quality"),
            predicted_cost_usd=floats("predicted_cost_usd"),
            predicted_latency_s=floats("predicted_latency_s"),
            pacer_multiplier=row["pacer_multiplier"],
            infeasible=row["infeasible"],
            withheld_usd=row.get("withheld_usd", 0.0),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt yielded. None: not measured. `tokens_estimated`: the upstream gave no usage.

    `endpoint`: which of the model's. `cached_tokens`: of the input's, those that the endpoint had in its cache.
    `saved_usd`: what a call answered from our own cache would have cost.
    """

    decision_id: str
    ts: float
    model: str
    status: Status
    latency_s: float | None
    time_to_first_token_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    attempt: int = 0
    http_status: int | None = None
    error: str | None = None
    stream: bool = False
    tokens_estimated: bool = False
    endpoint: str | None = None
    cached_tokens: int | None = None
    saved_usd: float | None = None

    def __post_init__(self) -> None:
        _check_range("latency_s", self.latency_s, 0.0, 1e7)
        _check_range("time_to_first_token_s", self.time_to_first_token_s, 0.0, 1e7)
        _check_range("input_tokens", self.input_tokens, 0, 1e9)
        _check_range("output_tokens", self.output_tokens, 0, 1e9)
        _check_range("cost_usd", self.cost_usd, 0.0, 1e9)
        _check_range("cached_tokens", self.cached_tokens, 0, 1e9)
        _check_range("saved_usd", self.saved_usd, 0.0, 1e9)

    @property
    def failed(self) -> bool:
        """Whether the model is to blame: a timeout or an error, but not one the caller's own request caused."""
        caused_by_caller = self.http_status in (400, 409, 413, 415, 422)  # not 404: who named the endpoint?
        return self.status == "timeout" or (self.status == "error" and not caused_by_caller)


@dataclass(frozen=True, slots=True)
class Feedback:
    """Quality in [0, 1] that arrived for a decision; `revises` is the quality it replaces, if it replaces one.

    `quality` None: only metrics were posted that no formula turns into a quality; they are logged, not learned.
    """

    decision_id: str
    ts: float
    quality: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    revision: int = 0
    revises: float | None = None

    def __post_init__(self) -> None:
        _check_range("quality", self.quality, 0.0, 1.0)
        _check_range("revises", self.revises, 0.0, 1.0)
