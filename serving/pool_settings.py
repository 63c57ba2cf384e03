"""The settings of one pool: what counts, what is never broken, what may be spent, how it chooses.

Owns their ranges and defaults and how they become the library's values. It must never know how the service runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

import bandit.filters
from bandit.types import Arm, Constraints, Objective
from serving.config_values import Count, Flag, Label, Name, Number, OrDefaults, Section, reject

if TYPE_CHECKING:
    from serving.settings import ModelSettings

__all__ = ["PoolSettings"]


class ObjectiveSettings(Section):
    """What a pool is good at, as weights. They are relative: only their proportions count."""

    quality: Number = Field(default=1.0, ge=0, le=1e6, description="Weight of quality.")
    cost: Number = Field(default=0.0, ge=0, le=1e6, description="Weight of low cost.")
    latency: Number = Field(default=0.0, ge=0, le=1e6, description="Weight of low latency.")
    cost_reference_usd: Number = Field(
        default=0.002, ge=1e-12, le=1e6, description="Cost of a call, in USD, at which the cost's share is used up."
    )
    latency_reference_s: Number = Field(
        default=2.0, ge=1e-6, le=3600, description="Latency, in seconds, at which the latency's share is used up."
    )

    @model_validator(mode="after")
    def _some_weight(self) -> ObjectiveSettings:
        if self.quality + self.cost + self.latency <= 0:
            reject("at least one of quality, cost and latency must be above 0")
        return self


class ConstraintSettings(Section):
    """Hard limits of a pool. A limit that is not given does not exist."""

    p95_latency_s: Number | None = Field(
        default=None, ge=1e-6, le=3600, description="Seconds that at most 5 % of calls may exceed."
    )
    p95_time_to_first_token_s: Number | None = Field(
        default=None, ge=1e-6, le=3600, description="Seconds to the first token that at most 5 % of calls may exceed."
    )
    max_error_rate: Number | None = Field(
        default=None, ge=1e-6, le=1 - 1e-6, description="Largest share of calls that may fail."
    )
    min_accuracy: Number | None = Field(
        default=None, ge=1e-6, le=1 - 1e-6, description="Smallest share of answers that must be right."
    )
    accuracy_evidence: Literal["benchmarks", "feedback", "both"] = Field(
        default="benchmarks", description="What may test min_accuracy: benchmarks, feedback or both."
    )
    on_infeasible: Literal["least_violation", "fail"] = Field(
        default="least_violation",
        description="What happens when no model meets the limits: take the smallest excess, or answer 503.",
    )


class FilterSettings(Section):
    """How the limits of a pool are tested; see `bandit.filters`."""

    alpha: Number = Field(
        default=0.01, ge=1e-9, lt=0.5, description="Error probability of a proof that a model breaks or meets a limit."
    )
    calls_between_false_alarms: Number = Field(
        default=1e6, ge=100, le=1e12, description="Mean calls until a model exactly at its limit is taken for changed."
    )
    probe_share: Number = Field(
        default=0.02,
        gt=0,
        le=0.2,
        description="Share of calls a filtered model gets, a quarter to four times as its probes go.",
    )
    unknown_share: Number = Field(
        default=0.1, gt=0, le=1, description="Largest share of a model without evidence, once another is certified."
    )


class BudgetSettings(Section):
    """What a pool may spend."""

    usd_per_request: Number = Field(gt=0, le=1e6, description="Mean cost of a call, in USD, that is held to.")


PolicyKind = Literal["thompson", "thompson_context_free", "uniform", "fixed", "round_robin", "epsilon_greedy", "ucb1"]
_KINDS_WITH = {  # every kind learns, if only to predict, so half_life_requests belongs to all
    "exploration_floor": ("thompson", "thompson_context_free"),
    "slope_prior_precision": ("thompson",),
    "epsilon": ("epsilon_greedy",),
    "model": ("fixed",),
}


class PolicySettings(Section):
    """How a pool chooses."""

    kind: PolicyKind = Field(default="thompson", description="The policy; all but thompson are baselines.")
    half_life_requests: Number | None = Field(
        default=5_000.0, ge=1, le=1e12, description="Requests after which evidence counts half; null never forgets."
    )
    exploration_floor: Number = Field(
        default=0.01, ge=0, lt=1, description="Share of calls spread evenly over all feasible models."
    )
    slope_prior_precision: Number = Field(
        default=50.0, gt=0, le=1e9, description="How much evidence it takes before the context counts."
    )
    model: Name | None = Field(default=None, description="The model that kind fixed always takes.")
    epsilon: Number = Field(
        default=0.1, ge=0, le=1, description="Share of calls that kind epsilon_greedy gives to any model."
    )
    seed: Count | None = Field(
        default=None, ge=0, lt=2**63, description="Seed of the draws; by default a fresh one at each start."
    )

    @field_validator(*_KINDS_WITH)
    @classmethod
    def _belongs_to_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _KINDS_WITH[str(info.field_name)]
        kind = info.data.get("kind", kinds[0])
        if kind not in kinds:
            reject(f"belongs to kind {' or '.join(kinds)}, not to {kind}", "remove it, or change the kind")
        return value

    @model_validator(mode="after")
    def _fixed_to_something(self) -> PolicySettings:
        if self.kind == "fixed" and self.model is None:
            reject("is required by kind fixed", "name the model it takes", ("model",))
        return self


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    for i, value in enumerate(values):
        if value in seen:
            reject("is listed twice", "remove one", (i,))
        seen.add(value)
    return values


class FeatureSettings(Section):
    """What the policy sees of a request."""

    text: Flag = Field(default=True, description="Whether the text of the last user message is looked at.")
    categories: Annotated[tuple[Label, ...], AfterValidator(_distinct)] | None = Field(
        default=None,
        min_length=1,
        max_length=24,
        description="The names x-pointsman-category may take, one feature each; by default names are hashed.",
    )


class PoolSettings(Section):
    """A public model name that stands for several models."""

    name: Name = Field(description="What callers put in the field model.")
    models: tuple[Name, ...] = Field(min_length=1, max_length=256, description="Names of its models.")
    objective: Annotated[ObjectiveSettings, OrDefaults] = Field(
        default_factory=ObjectiveSettings, description="What counts."
    )
    constraints: Annotated[ConstraintSettings, OrDefaults] = Field(
        default_factory=ConstraintSettings, description="What is never knowingly broken."
    )
    filters: Annotated[FilterSettings, OrDefaults] = Field(
        default_factory=FilterSettings, description="How the constraints are tested."
    )
    budget: BudgetSettings | None = Field(default=None, description="What may be spent; by default anything.")
    policy: Annotated[PolicySettings, OrDefaults] = Field(
        default_factory=PolicySettings, description="How a model is chosen."
    )
    features: Annotated[FeatureSettings, OrDefaults] = Field(
        default_factory=FeatureSettings, description="What the policy sees of a request."
    )
    quality_metrics: dict[Label, Annotated[Number, Field(gt=0, le=1e6)]] | None = Field(
        default=None,
        min_length=1,
        max_length=50,
        description="Weights that turn posted metrics into a quality, by their weighted mean.",
    )

    def to_objective(self) -> Objective:
        """The objective as the library's value."""
        return Objective(**self.objective.model_dump())

    def to_constraints(self) -> Constraints:
        """The limits as the library's value."""
        return Constraints(**self.constraints.model_dump())

    def to_filter_settings(self) -> bandit.filters.FilterSettings:
        """How limits are tested, as the library's value."""
        return bandit.filters.FilterSettings(**self.filters.model_dump())

    def arms(self, models: tuple[ModelSettings, ...]) -> tuple[Arm, ...]:
        """One arm for each of the pool's models, in the pool's order, from all `models`."""
        by_name = {model.name: model for model in models}
        return tuple(by_name[name].to_arm() for name in self.models)
