"""The sections `budgets`, `limits` and `metering`: what callers may spend, how fast, and what keeping count may take.

Owns their form and ranges. Nothing is counted here; whom an entry concerns is `serving.access.scopes`' matter.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from serving.config_values import Count, Label, Name, Number, Section, reject

__all__ = ["BudgetEntry", "Budgets", "LimitEntry", "Limits", "MeteringSettings", "Period", "Scope"]

Period = Literal["minute", "day", "month", "total"]
Scope = Literal["key", "user", "team", "tier", "all"]
_MOST_ENTRIES = 1_000


class _Entry(Section):
    scope: Scope = Field(description="Whose calls are counted: those of a key, user, team or tier, or all.")
    match: Label = Field(default="*", description="Its name (of a key: its id); `*` counts each one by itself.")
    tier: Label | None = Field(default=None, description="Only callers in this tier.")

    @model_validator(mode="after")
    def _of_all_or_of_one(self) -> _Entry:
        if self.scope == "all" and self.match != "*":
            reject("does not go with scope: all", "leave it out", ("match",))
        return self


def _webhook(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or not text.isascii() or any(c.isspace() or not c.isprintable() for c in text):
        reject("must be an http or https URL")  # unseen: it often holds a secret
    return value


class BudgetEntry(_Entry):
    """What may be spent in a window of time."""

    name: Name = Field(default="", validate_default=False, description="What it is called; by default what it says.")
    usd: Number | None = Field(default=None, gt=0, le=1e9, description="USD a window; exactly one of usd and tokens.")
    tokens: Count | None = Field(default=None, ge=1, le=10**15, description="Input and output tokens a window.")
    per: Period = Field(default="month", description="The window: a minute, day or month of UTC's calendar, or total.")
    kind: Literal["hard", "soft"] = Field(
        default="hard", description="hard refuses what could pass it (402); soft only warns."
    )
    warn_at: Number = Field(default=0.8, gt=0, le=1, description="Share of it from which answers carry a warning.")
    webhook: Annotated[SecretStr, Field(max_length=2_048), AfterValidator(_webhook)] | None = Field(
        default=None, description="URL that is told once a window at warn_at and once when it is spent."
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("name") in (None, ""):
            unit = "usd" if data.get("usd") is not None else "tokens"
            whose = [data.get("scope"), data.get("match", "*"), data.get("tier")]
            parts = [*(part for part in whose if isinstance(part, str)), unit, data.get("per", "month")]
            data = data | {"name": "-".join("".join(str(part).split()) for part in parts)[:200]}
        return data

    @model_validator(mode="after")
    def _one_unit(self) -> BudgetEntry:
        if (self.usd is None) == (self.tokens is None):
            reject("needs exactly one of usd and tokens")
        return self


class LimitEntry(_Entry):
    """How fast callers may call: both fill up evenly over a minute, and hold a minute's worth at most."""

    requests_per_minute: Count | None = Field(default=None, ge=1, le=10**9, description="Calls a minute.")
    tokens_per_minute: Count | None = Field(default=None, ge=1, le=10**12, description="Tokens a minute.")

    @model_validator(mode="after")
    def _something(self) -> LimitEntry:
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            reject("needs requests_per_minute, tokens_per_minute or both")
        return self


def _distinct(budgets: tuple[BudgetEntry, ...]) -> tuple[BudgetEntry, ...]:
    seen: set[str] = set()
    for i, budget in enumerate(budgets):
        if budget.name in seen:
            reject(f"there is another budget {budget.name!r}", "give each its own name", (i, "name"))
        seen.add(budget.name)
    return budgets


Budgets = Annotated[tuple[BudgetEntry, ...], Field(max_length=_MOST_ENTRIES), AfterValidator(_distinct)]
Limits = Annotated[tuple[LimitEntry, ...], Field(max_length=_MOST_ENTRIES)]


class MeteringSettings(Section):
    """What keeping count of callers may take."""

    max_counters: Count = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Most counters of budgets, and as many of limits, at a time.",
    )
    assumed_output_tokens: Count = Field(
        default=16_384, ge=1, le=10**7, description="Longest answer of a model that has no max_output_tokens."
    )
    shared_timeout_s: Number = Field(
        default=5.0, gt=0, le=60, description="Seconds to ask what all workers have spent, or the call is refused."
    )
    usage_rows: Count = Field(default=10_000, ge=1, le=1_000_000, description="Most rows of /admin/usage.")
    webhook_queue: Count = Field(default=1_000, ge=1, le=1_000_000, description="Most webhook calls that wait.")
    webhook_timeout_s: Number = Field(default=5.0, gt=0, le=60, description="Seconds a webhook may take to answer.")
    webhook_attempts: Count = Field(default=3, ge=1, le=10, description="How often a webhook is tried.")
