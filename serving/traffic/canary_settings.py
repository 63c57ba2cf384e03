"""The settings of a canary: in the configuration as `pools[].canary`, and as the body of `POST …/canary`.

Owns their ranges and defaults and how they become the library's plan. It must never know how a canary is going.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

import bandit.canary
import bandit.guardrails
from bandit.comparison import START
from serving.config_values import Count, Name, Number, OrDefaults, Section, reject

__all__ = ["CanarySettings", "GuardrailSettings"]


class GuardrailSettings(Section):
    """What a canary must keep; null: not looked at. See `bandit.guardrails`."""

    max_error_rate: Number | None = Field(
        default=None, ge=1e-6, le=1 - 1e-6, description="Largest share of the canary's calls that may fail."
    )
    p95_latency_s: Number | None = Field(
        default=None, ge=1e-6, le=3600, description="Seconds that at most 5 % of the canary's calls may exceed."
    )
    max_error_increase: Number | None = Field(
        default=0.02, ge=1e-4, lt=1, description="Rise of the error rate over the control's that is not promoted."
    )
    max_quality_loss: Number | None = Field(
        default=0.02, ge=1e-4, lt=1, description="Loss of mean quality against the control's that is not promoted."
    )
    max_cost_increase: Number | None = Field(
        default=None, ge=0, le=1000, description="Largest rise of the mean cost of a call over the control's, relative."
    )


class CanarySettings(Section):
    """A model that is given more of the pool's calls step by step as it proves itself, or none."""

    model: Name = Field(description="The model on trial.")
    share: Number | None = Field(
        default=None, gt=0, le=1, description="Share of the pool's calls it starts with; by default the first step."
    )
    steps: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = Field(
        default=(0.01, 0.05, 0.25, 1.0), min_length=1, max_length=20, description="Its shares, one after the other."
    )
    compare_to: Name | None = Field(
        default=None,
        description="The model that gets as many calls beside it; by default it is compared with the rest.",
    )
    guardrails: Annotated[GuardrailSettings, OrDefaults] = Field(
        default_factory=GuardrailSettings, description="What it must keep."
    )
    min_calls: Count = Field(default=200, ge=START, le=10_000_000, description="Calls of it that each step needs.")
    min_graded: Count = Field(
        default=200, ge=START, le=10_000_000, description="Graded calls of it and of the control that each step needs."
    )
    hold_after_s: Number = Field(
        default=3600.0, gt=0, le=366 * 86_400, description="Seconds without a step until it is reported as held."
    )
    alpha: Number = Field(
        default=0.01, ge=1e-9, lt=0.5, description="Error probability of each proof, however often one looks."
    )

    @model_validator(mode="after")
    def _sound(self) -> CanarySettings:
        for i, (before, after) in enumerate(zip(self.steps, self.steps[1:], strict=False)):
            if after <= before:
                reject("must be above the step before", None, ("steps", i + 1))
        if self.compare_to == self.model:
            reject("must be another model than the one on trial", None, ("compare_to",))
        return self

    def to_plan(self) -> bandit.canary.Plan:
        """As the library's value; a `share` stands before the steps above it."""
        shares = self.steps if self.share is None else (self.share, *(s for s in self.steps if s > self.share))
        return bandit.canary.Plan(
            model=self.model,
            shares=shares,
            compare_to=self.compare_to,
            guardrails=bandit.guardrails.Guardrails(**self.guardrails.model_dump()),
            min_calls=self.min_calls,
            min_graded=self.min_graded,
            hold_after_s=self.hold_after_s,
            alpha=self.alpha,
        )
