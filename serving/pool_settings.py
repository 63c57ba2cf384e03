"""The settings of one pool: what counts, what is never broken, what may be spent, how it chooses.

Owns their ranges and defaults and how they become the library's values. It must never know how the service runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

import bandit.filters
from bandit.newcomers import Newcomers
from bandit.types import Arm, Constraints, Objective
from serving.config_values import Count, Label, Name, Number, OrDefaults, Section, reject, resolved
from serving.failure_settings import FailureSettings
from serving.slo_settings import SloSettings
from serving.traffic.cache_settings import CacheSettings
from serving.traffic.canary_settings import CanarySettings
from serving.traffic.settings import (
    ExperimentSettings,
    Learning,
    SessionSettings,
    ShadowSettings,
    Weights,
    distinct_experiments,
)

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


PolicyKind = Literal[
    "thompson",
    "thompson_context_free",
    "logistic_thompson",
    "linucb",
    "squarecb",
    "best_feasible",
    "weighted",
    "uniform",
    "fixed",
    "round_robin",
    "epsilon_greedy",
    "ucb1",
]
_CONTEXTUAL = ("thompson", "logistic_thompson", "linucb", "squarecb", "best_feasible")
_KINDS_WITH = {  # every kind learns, if only to predict, so half_life_requests belongs to all
    "exploration_floor": ("thompson", "thompson_context_free", *_CONTEXTUAL[1:]),
    "exploration_scale": ("thompson", "thompson_context_free", "logistic_thompson"),
    "slope_prior_precision": _CONTEXTUAL,
    "alpha": ("linucb",),
    "gamma_scale": ("squarecb",),
    "gamma_exponent": ("squarecb",),
    "weights": ("weighted",),
    "epsilon": ("epsilon_greedy",),
    "model": ("fixed",),
}


class PolicySettings(Section):
    """How a pool chooses."""

    kind: PolicyKind = Field(default="thompson", description="The policy; all but thompson are there to compare with.")
    half_life_requests: Number | None = Field(
        default=10_000.0, ge=1, le=1e12, description="Requests after which evidence counts half; null never forgets."
    )
    exploration_floor: Number = Field(
        default=0.01, ge=0, lt=1, description="Share of calls spread evenly over all feasible models."
    )
    exploration_scale: Number = Field(
        default=0.4, gt=0, le=1, description="How far exploration is tempered once a model has some graded answers."
    )
    slope_prior_precision: Number = Field(
        default=75.0, gt=0, le=1e9, description="How much evidence it takes before the context counts."
    )
    alpha: Number = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="Standard deviations that kind linucb adds to a model's expected utility.",
    )
    gamma_scale: Number = Field(
        default=10.0, gt=0, le=1e9, description="How steeply kind squarecb prefers better models: its γ at call 1."
    )
    gamma_exponent: Number = Field(
        default=0.5, ge=0, le=2, description="How kind squarecb's γ grows: gamma_scale · calls^gamma_exponent."
    )
    weights: dict[Name, Annotated[Number, Field(ge=0, le=1e6)]] | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Shares of calls by model for kind weighted, relative to each other; a model left out gets none.",
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
            known = ", ".join(kinds[:-1]) + " or " * (len(kinds) > 1) + kinds[-1]
            reject(f"belongs to kind {known}, not to {kind}", "remove it, or change the kind")
        return value

    @model_validator(mode="after")
    def _fixed_to_something(self) -> PolicySettings:
        if self.kind == "fixed" and self.model is None:
            reject("is required by kind fixed", "name the model it takes", ("model",))
        return self

    @model_validator(mode="after")
    def _weighs_something(self) -> PolicySettings:
        if self.kind == "weighted" and self.weights is None:
            reject("is required by kind weighted", "give models their shares, for example {small: 90}", ("weights",))
        if self.weights is not None and not any(self.weights.values()):
            reject("must have one above 0", None, ("weights",))
        return self

    def uses(self, setting: str) -> bool:
        """Whether the setting of this name means anything to the policy's kind."""
        return self.kind in _KINDS_WITH.get(setting, (self.kind,))


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    for i, value in enumerate(values):
        if value in seen:
            reject("is listed twice", "remove one", (i,))
        seen.add(value)
    return values


class FeatureSettings(Section):
    """What the policy sees of a request."""

    text: Literal["trigrams", "embeddings", "none"] = Field(
        default="trigrams",
        description="How the last user message is seen, once a warm start made clusters, or with no categories;"
        " embeddings need that extra.",
    )
    vector: Count = Field(default=0, ge=0, le=32, description="How many numbers x-pointsman-context brings.")
    categories: Annotated[tuple[Label, ...], AfterValidator(_distinct)] | None = Field(
        default=None,
        max_length=24,
        description="The names x-pointsman-category may take, one feature each; by default any, hashed,"
        " and an empty list for none.",
    )


def _missing(value: Any) -> Any:
    value = resolved(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "ignore" and not (number and 0 <= value <= 1):
        reject('must be "ignore" or a quality from 0 to 1')
    return float(value) if number else value


class FeedbackSettings(Section):
    """What is made of decisions that get no feedback."""

    missing: Annotated[float | Literal["ignore"], BeforeValidator(_missing)] = Field(
        default="ignore",
        description="What a good call without feedback teaches once wait_s has passed: nothing (ignore), or a quality.",
    )
    wait_s: Number = Field(
        default=3600.0, ge=1, le=366 * 86_400, description="Seconds after a call until its feedback counts as missing."
    )


class NewcomerSettings(Section):
    """What models that join a pool which has learned may take until they have shown what they can do."""

    share: Number = Field(default=0.25, gt=0, le=1, description="Largest share of all new models together.")
    samples: Count = Field(
        default=30, ge=0, le=1_000_000, description="Graded answers after which a model is no longer new."
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
    feedback: Annotated[FeedbackSettings, OrDefaults] = Field(
        default_factory=FeedbackSettings, description="What is made of decisions that get no feedback."
    )
    failures: FailureSettings | None = Field(
        default=None, description="What happens when a call fails; by default the top level's failures."
    )
    canary: CanarySettings | None = Field(
        default=None, description="A model on trial, given more calls as it proves itself; by default none."
    )
    newcomers: Annotated[NewcomerSettings, OrDefaults] = Field(
        default_factory=NewcomerSettings, description="What new models may take."
    )
    weights: Weights | None = Field(
        default=None, description="Shares of calls by model in place of what the policy would do."
    )
    learning: Learning = Field(
        default="apply",
        description="Whether what is learned decides: apply; or learning goes on and it does not: observe; or neither:"
        " bypass.",
    )
    sessions: Annotated[SessionSettings, OrDefaults] = Field(
        default_factory=SessionSettings, description="How conversations stay on their model."
    )
    experiments: Annotated[tuple[ExperimentSettings, ...], AfterValidator(distinct_experiments)] = Field(
        default=(), max_length=20, description="What is compared by users or sessions."
    )
    shadow: ShadowSettings | None = Field(
        default=None, description="A model that also gets a share of the calls, unseen; by default none."
    )
    cache: CacheSettings | None = Field(
        default=None, description="The answers that are kept, to give them again; by default none."
    )
    slo: SloSettings | None = Field(
        default=None, description="What is promised to callers, for metrics and alerts; by default nothing."
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

    def to_newcomers(self) -> Newcomers:
        """What new models may take, as the library's value."""
        return Newcomers(**self.newcomers.model_dump())

    def arms(self, models: tuple[ModelSettings, ...]) -> tuple[Arm, ...]:
        """One arm for each of the pool's models, in the pool's order, from all `models`."""
        by_name = {model.name: model for model in models}
        return tuple(by_name[name].to_arm() for name in self.models)
