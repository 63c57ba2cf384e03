"""What happens when a call fails: how often it is tried, where next, and when an endpoint is left alone.

Owns ranges and defaults. It must never know how a call is sent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from serving.config_values import Count, Flag, Name, Number, OrDefaults, Section

__all__ = ["BreakerSettings", "FailureSettings", "RetrySettings"]

Cause = Literal["errors", "context_window", "content_policy"]


class RetrySettings(Section):
    """How often one call is tried."""

    max_attempts: Count = Field(
        default=6, ge=1, le=20, description="Most attempts of one call, on all its models together."
    )
    per_model: Count = Field(default=2, ge=1, le=20, description="Most attempts of one call on one model.")
    backoff_s: Number = Field(
        default=0.1, ge=0, le=60, description="Mean of the first wait before the same endpoint is tried again, doubled."
    )
    max_backoff_s: Number = Field(
        default=2.0, ge=0, le=600, description="Longest such wait; a longer Retry-After ends."
    )
    budget: Number = Field(
        default=0.3, ge=0, le=10, description="Attempts beyond the first, as a share of all calls, kept to over time."
    )
    burst: Count = Field(
        default=20, ge=0, le=1_000_000, description="Attempts beyond that share that may be made at once."
    )


class FailureSettings(Section):
    """Where a call goes that fails."""

    fallbacks: tuple[Name, ...] | None = Field(
        default=None,
        max_length=50,
        description="Models tried next, in this order; by default the pool's feasible ones by utility; empty for none.",
    )
    on: tuple[Cause, ...] = Field(
        default=("errors", "context_window", "content_policy"),
        max_length=3,
        description="What leads to another model: errors, context_window, content_policy.",
    )
    retries: Annotated[RetrySettings, OrDefaults] = Field(
        default_factory=RetrySettings, description="How often one call is tried."
    )
    deadline_s: Number = Field(
        default=120.0, gt=0, le=3600, description="Seconds for all attempts of a call; x-pointsman-timeout-s shortens."
    )


class BreakerSettings(Section):
    """When an endpoint that fails is left alone."""

    enabled: Flag = Field(default=True, description="Whether endpoints that fail are left alone for a while.")
    failure_share: Number = Field(
        default=0.5, gt=0, le=1, description="Share of failed attempts at which the breaker opens."
    )
    min_calls: Count = Field(
        default=10, ge=1, le=10_000, description="Attempts in the window before the breaker may open."
    )
    window_s: Number = Field(default=30.0, gt=0, le=3600, description="Seconds that the share is taken over.")
    open_s: Number = Field(
        default=5.0, gt=0, le=3600, description="Seconds until an open breaker lets a probe through, doubled each time."
    )
    max_open_s: Number = Field(default=60.0, gt=0, le=86_400, description="Longest such time.")
