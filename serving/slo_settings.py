"""The section `pools[].slo`: what a pool promises its callers, to be watched and alerted on.

Owns its form and ranges. Nothing is counted here, and nothing is enforced: a limit that is, is one of `constraints`.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from serving.config_values import Number, Section, reject

__all__ = ["SloSettings"]


class SloSettings(Section):
    """Objectives of a pool's service. One that is not given does not exist."""

    availability: Number | None = Field(default=None, gt=0, lt=1, description="Share of requests that are answered.")
    latency_s: Number | None = Field(
        default=None, gt=0, le=3600, description="Seconds in which an answer is there; of a stream, its first event."
    )
    latency_share: Number = Field(default=0.95, gt=0, lt=1, description="Share of answers that are there by then.")
    success_quality: Number | None = Field(
        default=None, ge=0, le=1, description="Quality from which on a task has succeeded, for the cost of a success."
    )

    @model_validator(mode="after")
    def _of_something(self) -> SloSettings:
        if "latency_share" in self.model_fields_set and self.latency_s is None:
            reject("goes with latency_s", "say within how many seconds", ("latency_share",))
        return self
