"""The settings of caching answers and of batching: what is kept, how much, how long, and who may share it.

Owns their ranges and defaults. It must never know how an answer is found or a batch is sent.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.config_values import Count, Flag, Number, Section

__all__ = ["BatchingSettings", "CacheSettings"]


class CacheSettings(Section):
    """The answers a pool keeps, to give them again to exactly the same request."""

    ttl_s: Number = Field(default=300.0, gt=0, le=2_592_000, description="Seconds for which an answer is kept.")
    max_entries: Count = Field(default=10_000, ge=1, le=10_000_000, description="Most answers kept.")
    max_bytes: Count = Field(
        default=67_108_864, ge=1024, le=1 << 40, description="Most bytes of all answers kept, 512 for each included."
    )
    max_tokens: Count | None = Field(
        default=None, ge=1, le=10**12, description="Most tokens of all answers kept; null: only bytes count."
    )
    max_answer_bytes: Count = Field(
        default=1_048_576, ge=256, le=1 << 30, description="A larger answer is neither kept nor shared."
    )
    scope: Literal["tenant", "user", "all"] = Field(
        default="tenant", description="Who shares an answer: one tenant, one user of it, or (nothing private!) all."
    )
    only_deterministic: Flag = Field(
        default=True,
        description="Only requests that ask for one answer: temperature 0 or a seed, embeddings, inference.",
    )
    coalesce: Flag = Field(
        default=True, description="Whether the same request, while it is under way, waits for the answer to the first."
    )
    max_wait_s: Number = Field(
        default=30.0, gt=0, le=3600, description="Seconds of such a wait; then a request is sent by itself."
    )


class BatchingSettings(Section):
    """Small embedding and inference requests that go to a model's endpoint as one."""

    max_size: Count = Field(default=32, ge=2, le=10_000, description="Most inputs in one upstream call.")
    max_wait_ms: Number = Field(
        default=5.0, gt=0, le=1000, description="Milliseconds a request waits at most for others to join it."
    )
    max_tokens: Count | None = Field(
        default=None, ge=1, le=10**9, description="Most tokens in one upstream call, by estimate; null: no such limit."
    )
    across_tenants: Flag = Field(
        default=False, description="Whether requests of different tenants may share an upstream call."
    )
