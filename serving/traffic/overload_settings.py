"""The settings of the gate in front of inference calls: how many run, how many wait, and how long.

Owns their ranges and defaults. It must never know how a place is given away, nor who has which priority.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from serving.config_values import Count, Number, Section, reject

__all__ = ["OverloadSettings"]


class OverloadSettings(Section):
    """What happens when more calls come than the service can do."""

    max_concurrent: Count = Field(
        default=2_000, ge=1, le=100_000, description="Most inference calls under way at once, streams included."
    )
    adaptive: Literal["aimd", "off"] = Field(
        default="off",
        description="aimd lowers the limit while the event loop is late, and raises it while calls wait for a place.",
    )
    min_concurrent: Count | None = Field(
        default=None, ge=1, le=100_000, description="Lowest that aimd goes; by default 16, or max_concurrent if less."
    )
    target_lag_ms: Number = Field(
        default=5.0, gt=0, le=10_000, description="How long one turn of the event loop may take, for aimd, in ms."
    )
    queue_size: Count = Field(
        default=500, ge=0, le=100_000, description="Most calls waiting for a place; beyond it the lowest tier gets 503."
    )
    queue_timeout_s: Number = Field(
        default=1.0, gt=0, le=600, description="Longest wait for a place, in seconds; then the call gets 503."
    )
    standing_timeout_s: Number = Field(
        default=0.02,
        gt=0,
        le=600,
        description="Longest wait, in seconds, for a priority whose queue has not been empty for queue_timeout_s.",
    )
    max_retry_after_s: Number = Field(
        default=30.0, ge=1, le=3600, description="Largest Retry-After of a call that was shed, in seconds."
    )

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> OverloadSettings:
        if self.min_concurrent is not None and self.min_concurrent > self.max_concurrent:
            reject("must not be above max_concurrent", at=("min_concurrent",))
        return self

    @property
    def floor(self) -> int:
        """The lowest limit."""
        return min(16, self.max_concurrent) if self.min_concurrent is None else self.min_concurrent
