"""The settings of faults on purpose: whether there may be any, and those that stand from the start.

Owns their ranges and defaults; a rule here is also the body of `POST /admin/faults`. It must never know how a call is
sent.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from serving.config_values import Count, Flag, Name, Number, Section, reject

__all__ = ["FaultKind", "FaultRule", "FaultSettings"]

FaultKind = Literal["latency", "error", "stall", "disconnect"]
_CALLERS_FAULT = (400, 409, 413, 415, 422)  # statuses that find fault with the request: no failure of the endpoint


class FaultRule(Section):
    """What goes wrong on purpose, where, and how often."""

    kind: FaultKind = Field(description="What happens: latency, error, stall (no answer) or disconnect.")
    model: Name | None = Field(default=None, description="Only attempts on this model; by default all.")
    endpoint: Name | None = Field(default=None, description="Only this endpoint of a model; by default all.")
    share: Number = Field(default=1.0, gt=0, le=1, description="Share of those attempts that it happens to.")
    latency_s: Number | None = Field(
        default=None, gt=0, le=3600, description="Seconds that kind latency waits before it sends."
    )
    status: Count | None = Field(
        default=None, ge=400, le=599, description="What kind error has the endpoint answer; by default 503."
    )
    for_s: Number | None = Field(
        default=None, gt=0, le=7 * 86_400, description="Seconds until it ends by itself; by default it does not."
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.latency_s is not None) != (self.kind == "latency"):
            reject("belongs to kind latency, which needs it", "say how many seconds, or leave it out", ("latency_s",))
        if self.status is not None and self.kind != "error":
            reject("belongs to kind error alone", "leave it out", ("status",))
        if self.status in _CALLERS_FAULT:
            reject("says that the caller's request is wrong, which is no failure", "take 503 or 429", ("status",))
        return self


class FaultSettings(Section):
    """Faults on purpose, for game days."""

    enabled: Flag = Field(default=False, description="Whether faults may be injected, here and by /admin/faults.")
    seed: Count | None = Field(default=None, ge=0, description="Seed of the draws; by default a fresh one.")
    limit: Count = Field(default=100, ge=1, le=10_000, description="Most faults that stand at a time.")
    inject: tuple[FaultRule, ...] = Field(
        default=(), max_length=100, description="Faults that stand from the start, where enabled."
    )
