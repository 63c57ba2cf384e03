"""The settings of the gate in front of inference calls: how many run, how many wait, and how long.

Owns their ranges and defaults. It must never know how a place is given away, nor who has which priority.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.config_values import Count, Number, Section

__all__ = ["OverloadSettings"]


class OverloadSettings(Section):
    """What happens when more calls come than the service can do."""

    max_concurrent: Count = Field(
        default=2_000, ge=1, le=100_000, description="Most inference calls under way at once, streams included."
    )
    adaptive: Literal["pace", "off"] = Field(
        default="pace", description="pace lets calls wait while the event loop is busy and a higher tier calls, too."
    )
    target_lag_ms: Number = Field(
        default=0.1, gt=0, le=10_000, description="A turn of the event loop that takes longer is late, for pace, in ms."
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
