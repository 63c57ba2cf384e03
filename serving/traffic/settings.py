"""The settings of what an operator does to a pool's traffic: shares, the switch for learning, experiments, shadows.

Owns their ranges and defaults; the same sections check what is sent to `/admin/pools`. It must never know how a call is
steered, nor what the pool has learned.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from serving.config_values import Count, Name, Number, Section, reject

__all__ = [
    "ExperimentSettings",
    "Learning",
    "SessionSettings",
    "ShadowSettings",
    "VariantSettings",
    "Weights",
    "distinct_experiments",
]

Learning = Literal["apply", "observe", "bypass"]


def _weigh_something(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        reject("must have one above 0")
    return weights


Weights = Annotated[
    dict[Name, Annotated[Number, Field(ge=0, le=1e6)]],
    Field(min_length=1, max_length=256),
    AfterValidator(_weigh_something),
]


def _without_slash(value: str) -> str:
    return reject("must have no slash: the log joins an experiment and a variant by one") if "/" in value else value


_Title = Annotated[Name, Field(max_length=64), AfterValidator(_without_slash)]


class SessionSettings(Section):
    """How conversations that name themselves by `x-pointsman-session` stay on their model."""

    switch_margin: Number = Field(
        default=0.05, ge=0, le=1, description="Gain in expected utility that moves a session to another model."
    )
    ttl_s: Number = Field(
        default=3600.0, gt=0, le=366 * 86_400, description="Seconds without a call after which a session is forgotten."
    )
    limit: Count = Field(
        default=10_000, ge=1, le=1_000_000, description="Most sessions remembered; beyond it the longest idle go."
    )


class VariantSettings(Section):
    """One arm of an experiment: a model, or shares of several."""

    name: _Title = Field(description="What it is called in the log.")
    share: Number = Field(gt=0, le=1, description="Share of the units that get it.")
    model: Name | None = Field(default=None, description="The one model it takes.")
    weights: Weights | None = Field(default=None, description="Or several, by their shares.")

    @model_validator(mode="after")
    def _one_rule(self) -> VariantSettings:
        if (self.model is None) == (self.weights is None):
            reject("must have either model or weights")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Each model's share within the variant; not normalised."""
        return {self.model: 1.0} if self.model is not None else dict(self.weights or {})


class ExperimentSettings(Section):
    """A comparison of fixed rules by users or sessions, each of which sees one variant only."""

    name: _Title = Field(description="What it is called; also the salt of who sees what.")
    unit: Literal["user", "session"] = Field(default="user", description="What is assigned to a variant.")
    variants: tuple[VariantSettings, ...] = Field(
        min_length=2, max_length=10, description="What is compared; the first is the control."
    )
    metric: Literal["quality", "cost", "latency"] = Field(default="quality", description="What is compared by.")
    alpha: Number = Field(
        default=0.05, ge=1e-6, lt=0.5, description="Error probability of its verdict, however often one looks."
    )
    resolution: Number = Field(
        default=0.05, ge=1e-4, le=10, description="Difference that matters (of cost and latency: relative)."
    )
    max_units: Count = Field(
        default=20_000, ge=10, le=200_000, description="Units after which it counts no more; they are kept in memory."
    )

    @model_validator(mode="after")
    def _sound(self) -> ExperimentSettings:
        names = [variant.name for variant in self.variants]
        for i, name in enumerate(names):
            if name in names[:i]:
                reject("is listed twice", "rename one", ("variants", i, "name"))
        if sum(variant.share for variant in self.variants) > 1 + 1e-9:
            reject("the variants' shares must not sum to more than 1", None, ("variants",))
        return self


class ShadowSettings(Section):
    """A model that also gets a share of the calls, and whose answers nobody sees."""

    model: Name = Field(description="The model; of the pool, or any other, which is then only logged.")
    share: Number = Field(gt=0, le=1, description="Share of the pool's calls that are sent to it, too.")
    max_usd_per_day: Number = Field(gt=0, le=1e9, description="What it may cost in a day, UTC.")
    grade: Literal["agreement", "none"] = Field(
        default="agreement", description="Whether the metric agreement, with the answer given, is fed back."
    )
    max_concurrent: Count = Field(
        default=4, ge=1, le=1_000, description="Most shadow calls at a time; those beyond are dropped."
    )


def distinct_experiments(experiments: tuple[ExperimentSettings, ...]) -> tuple[ExperimentSettings, ...]:
    """No two of a pool's experiments share a name."""
    names: list[Any] = [experiment.name for experiment in experiments]
    for i, name in enumerate(names):
        if name in names[:i]:
            reject("is listed twice", "rename one", (i, "name"))
    return experiments
