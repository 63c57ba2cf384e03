"""The forms of answers to operators about models, keys, budgets and figures. For the document, and held to it by tests.

Where a part's figures are its own matter they are told as an object.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from serving.api.answers import Told

__all__ = [
    "BenchmarkReceipt",
    "Budget",
    "Budgets",
    "KeyEntry",
    "KeyList",
    "KeyMade",
    "MatrixAnswer",
    "ModelDisabled",
    "ModelEntry",
    "ModelRemoved",
    "Models",
    "UsageAnswer",
]

Values = dict[str, Any]


class Evidence(Told):
    """Observations behind what is believed, discounted."""

    quality: float
    latency: float


class Part(Told):
    """A model's part in a pool."""

    pool: str
    state: str
    newcomer: bool
    evidence: Evidence


class ModelEntry(Told):
    """A model: where it comes from, what is wrong with one that is out, its part in each pool."""

    name: str
    source: Literal["configuration", "runtime"]
    problem: str | None
    kind: str | None
    endpoint: str | None
    upstream_model: str | None
    price: Values | None
    timeout_s: float | None
    max_connections: int | None
    pools: list[Part]


class Models(Told):
    """Every model."""

    models: list[ModelEntry]


class ModelRemoved(Told):
    """Where a model was taken out, and whether it can still be called by its name."""

    name: str
    removed_from: list[str]
    callable: bool


class ModelDisabled(Told):
    """Whether a model gets any call, and the pools that have it."""

    name: str
    disabled: bool
    pools: list[str]


class BenchmarkReceipt(Told):
    """What became of a post's results."""

    recorded: int
    duplicates: int


class Share(Told):
    """A mean of grades with Wilson's interval at 95 %."""

    mean: float | None
    low: float | None
    high: float | None
    samples: int


class Quantiles(Told):
    """Quantiles of seconds."""

    p50: float | None
    p95: float | None
    samples: int


class Mean(Told):
    """A mean, of so many."""

    mean: float | None
    samples: int


class Figures(Told):
    """What benchmarks and traffic say."""

    accuracy: Share
    quality: Share
    calls: int
    failed: int
    latency_s: Quantiles
    cost_usd_per_call: Mean
    benchmark_calls: int
    benchmark_failed: int
    benchmark_latency_s: Quantiles
    benchmark_cost_usd_per_call: Mean


class CategoryFigures(Figures):
    """The same for one category; null: of calls without one."""

    category: str | None


class Standing(Told):
    """A model's state in a pool."""

    pool: str
    state: str
    newcomer: bool


class MatrixRow(Told):
    """A model's figures."""

    model: str
    pools: list[Standing]
    overall: Figures
    categories: list[CategoryFigures]


class UntestedLimit(Told):
    """A limit on which some model has no evidence at all."""

    pool: str
    limit: str
    needs: str
    models: list[str]


class MatrixAnswer(Told):
    """The accuracy matrix."""

    pool: str | None
    days: float
    since: float
    until: float
    log_lag_events: int
    models: list[MatrixRow]
    untested_limits: list[UntestedLimit]


class KeyEntry(Told):
    """A key without its secret; what a key of the configuration does not have is left out."""

    id: str
    source: Literal["configuration", "runtime"]
    state: Literal["valid", "expired", "revoked"]
    user: str
    team: str | None
    tier: str | None
    allow: list[str] | None
    last_used_at: float | None
    name: str | None = None
    prefix: str | None = None
    made_at: float | None = None
    expires_at: float | None = None
    rotated_at: float | None = None
    revoked_at: float | None = None
    old_secret_until: float | None = None


class KeyMade(KeyEntry):
    """A key with its secret, which is in this answer only."""

    secret: str


class KeyList(Told):
    """Every key."""

    keys: list[KeyEntry]


class Budget(Told):
    """A budget: its limit, and what is spent, set aside and left, by counter."""

    name: str
    scope: str
    match: str
    tier: str | None
    per: str
    kind: str
    warn_at: float
    unit: Literal["usd", "tokens"]
    limit: float
    configured_limit: float
    webhook: bool
    counters: list[Values]
    counters_left_out: int


class Budgets(Told):
    """Every budget."""

    budgets: list[Budget]


class UsageAnswer(Told):
    """What was used, a row for each value of the columns asked for, and all of it in `total`."""

    by: list[str]
    since: float | None = Field(alias="from")
    until: float | None = Field(alias="to")
    rows: list[Values]
    total: Values
