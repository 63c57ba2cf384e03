"""LiteLLM's `router_settings` and `litellm_settings`: retries, time limits, strategies, aliases, chains of fallbacks.

Owns what each setting means here and why some mean nothing. It must never know a deployment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.commands.litellm_file import Entry, Source
from serving.commands.litellm_models import name_of, seconds

__all__ = ["Chain", "Chains", "Rules", "leave", "read_budget", "read_chains", "read_rules"]

_MOST_ATTEMPTS = 20
_OBJECTIVES = {
    "latency-based-routing": {"quality": 0, "latency": 1},
    "cost-based-routing": {"quality": 0, "cost": 1},
}
_KINDS = {
    "fallbacks": ("errors",),
    "default_fallbacks": ("errors",),
    "context_window_fallbacks": ("context_window",),
    "content_policy_fallbacks": ("content_policy",),
}
_REDIS = "is not carried over: nothing is kept in Redis here"
_LOGGING = "is not carried over: /metrics and the log (log.duckdb) say what happened"
_ROUTER_LEFT = {
    "retry_policy": "is not carried over: the kind of error decides here whether a call is tried again",
    "model_group_retry_policy": "is not carried over: see pools[].failures.retries",
    "retry_after": "is not carried over: waits grow and are drawn at random, see failures.retries.backoff_s",
    "allowed_fails_policy": "is not carried over: a caller's own mistake never counts against an endpoint here",
    "enable_pre_call_checks": "is not carried over: a prompt that is too long is the endpoint's to refuse",
    "enable_tag_filtering": "is not carried over: tags choose no model here; tiers choose pools",
    "tag_filtering_match_any": "is not carried over: tags choose no model here; tiers choose pools",
    "max_fallbacks": "is not carried over: see failures.retries.max_attempts",
    "stream_timeout": "is not carried over: streams have the timeout of other calls",
    "default_litellm_params": "is not carried over: nothing is added to requests here; callers send it",
    "provider_budget_config": "is not carried over: budgets are of callers here, or of a pool's mean call",
    "routing_strategy_args": "is not carried over: see pools[].objective",
    "set_verbose": _LOGGING,
    "debug_level": _LOGGING,
    "cache_responses": "is not carried over: what is kept of answers is said by pool",
    "cache_kwargs": "is not carried over: what is kept of answers is said by pool",
    "caching_groups": "is not carried over: what is kept of answers is said by pool",
    **dict.fromkeys(("redis_host", "redis_port", "redis_password", "redis_db", "redis_url"), _REDIS),
}
_LIBRARY_LEFT = {
    **_ROUTER_LEFT,
    "cache": "is not carried over: what is kept of answers is said by pool, and kept in memory",
    "cache_params": "is not carried over: what is kept of answers is said by pool, and kept in memory",
    "drop_params": "is not carried over: requests pass as they are",
    "modify_params": "is not carried over: requests pass as they are",
    "turn_off_message_logging": "needs nothing: prompts are never logged here",
    "redact_user_api_key_info": "needs nothing: keys are never logged here",
    "json_logs": _LOGGING,
    **dict.fromkeys(("success_callback", "failure_callback", "callbacks", "service_callbacks"), _LOGGING),
    "langfuse_default_tags": _LOGGING,
    "force_ipv4": "is not carried over: connections take whichever address answers",
    "ssl_verify": "is not carried over: certificates are always checked",
}


@dataclass(slots=True)
class Rules:
    """What holds for all models and pools. `section`: router_settings, `top`: the file, for notes."""

    section: Entry
    top: Entry
    shuffles: bool = True
    objective: Mapping[str, int] | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    retries: int | None = None
    timeout_s: float | str | None = None
    max_concurrent: int | None = None
    breaker: dict[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None

    def failures(self, groups: int) -> dict[str, Any]:
        """Retries and deadline of a call that may be answered by so many groups; LiteLLM retries in each."""
        made: dict[str, Any] = {}
        if self.retries is not None:
            attempts = self.retries + 1
            made["retries"] = {
                "max_attempts": min(_MOST_ATTEMPTS, attempts * groups),
                "per_model": min(_MOST_ATTEMPTS, attempts),
            }
        if self.deadline_s is not None:
            made["deadline_s"] = self.deadline_s
        return made


@dataclass(frozen=True, slots=True)
class Chain:
    """Who takes over for a group, in order, and after what."""

    targets: tuple[str, ...]
    causes: frozenset[str]

    @property
    def given(self) -> bool:
        """Whether there is anybody."""
        return bool(self.targets)


@dataclass(slots=True)
class Chains:
    """All fallbacks of the file: kind → group → names. `*` is any group; `places`: where each kind stands."""

    by_kind: dict[str, dict[str, list[str]]]
    places: dict[str, Entry]

    def prune(self, known: set[str]) -> None:
        """Forget, and say so, whoever is not `known`."""
        for kind, table in self.by_kind.items():
            for group, names in table.items():
                for name in names:
                    if name not in known:
                        self.places[kind].note(kind, f"{name!r}, of {group!r}, is left out: it was not carried over")
                table[group] = [name for name in names if name in known]

    def of(self, group: str) -> Chain:
        """The chain of a group. One chain serves all causes here; those of LiteLLM follow each other in it."""
        found = {kind: table.get(group) or table.get("*") or [] for kind, table in self.by_kind.items()}
        general = found.get("fallbacks") or found.get("default_fallbacks") or []
        causes = {"errors"} if general else set()
        targets = list(general)
        for kind in ("context_window_fallbacks", "content_policy_fallbacks"):
            special = found.get(kind, [])
            if special or (general and kind not in self.by_kind):  # without a list of its own, the general one serves
                causes |= set(_KINDS[kind])
            targets += [name for name in special if name not in targets]
        return Chain(tuple(targets), frozenset(causes))


def read_rules(source: Source) -> Rules:
    """What the two sections say for everybody; router_settings counts where both speak, as in LiteLLM."""
    router, library = source.section("router_settings"), source.section("litellm_settings")
    rules = Rules(router, source.top)
    _strategy(rules, router)
    _aliases(rules, router)
    retries = [each for each in (router.number("num_retries"), library.number("num_retries")) if each is not None]
    if retries:
        rules.retries = int(retries[0])
        if rules.retries > 19:
            (router if "num_retries" in router else library).note("num_retries", "is 19 here, which is the most")
    rules.timeout_s = seconds(router, "timeout") or seconds(library, "request_timeout")
    library.take("request_timeout")
    concurrent = router.number("default_max_parallel_requests", least=1.0)
    rules.max_concurrent = None if concurrent is None else min(int(concurrent), 100_000)
    _breaker(rules, router, library)
    return rules


def read_chains(source: Source) -> Chains:
    """Every list of fallbacks; router_settings counts where both sections have one."""
    router, library = source.section("router_settings"), source.section("litellm_settings")
    chains = Chains({}, {})
    for kind in _KINDS:
        for section in (library, router):
            if kind in section:
                chains.by_kind[kind] = _default(section) if kind == "default_fallbacks" else _table(section, kind)
                chains.places[kind] = section
    for group in {name for table in chains.by_kind.values() for name in table}:
        chain = chains.of(group)
        lists = {tuple(table[group]) for table in chains.by_kind.values() if group in table}
        if len(lists) > 1:
            kind = next(iter(chains.places))
            message = f"{group!r} has one chain for all causes here: {', '.join(chain.targets)}"
            chains.places[kind].note(kind, message)
    return chains


def leave(source: Source) -> None:
    """Note what else stands in the two sections; after everybody has read them."""
    source.section("router_settings").leave(_ROUTER_LEFT)
    source.section("litellm_settings").leave(_LIBRARY_LEFT)


def _table(section: Entry, kind: str) -> dict[str, list[str]]:
    """`[{group: [name, …]}, …]` as one mapping."""
    table: dict[str, list[str]] = {}
    for item in _listed(section.take(kind)):
        if not isinstance(item, Mapping):
            section.note(kind, "has something that is no mapping of a name to names, which is not carried over")
            continue
        for group, names in item.items():
            for name in _listed(names):
                if isinstance(name, str):
                    table.setdefault(name_of(group), []).append(name_of(name))
                else:
                    section.note(kind, f"{group!r} has a fallback with a request of its own, which is not carried over")
    return table


def _default(section: Entry) -> dict[str, list[str]]:
    return {"*": [name_of(name) for name in _listed(section.take("default_fallbacks")) if isinstance(name, str)]}


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else () if value is None else (value,)


def _strategy(rules: Rules, router: Entry) -> None:
    strategy = router.text("routing_strategy")
    rules.shuffles = strategy in (None, "simple-shuffle")
    rules.objective = _OBJECTIVES.get(strategy or "")
    if rules.shuffles or strategy == "least-busy":
        return
    takes = "endpoints of a model take the fewest calls under way"
    if rules.objective is not None:
        router.note("routing_strategy", f"is an objective of pools here; {takes}")
    else:
        router.note("routing_strategy", f"is not carried over: {takes}, and pools learn")


def _aliases(rules: Rules, router: Entry) -> None:
    aliases = router.take("model_group_alias")
    for alias, value in aliases.items() if isinstance(aliases, Mapping) else ():
        name = value.get("model") if isinstance(value, Mapping) else value
        if isinstance(value, Mapping) and value.get("hidden"):
            router.note("model_group_alias", f"{alias!r} is not hidden: GET /v1/models lists every pool")
        if isinstance(name, str):
            rules.aliases[name_of(alias)] = name_of(name)


def _breaker(rules: Rules, router: Entry, library: Entry) -> None:
    if router.take("disable_cooldowns") is True:
        rules.breaker = {"enabled": False}
    fails = [s.number("allowed_fails", most=9_999.0) for s in (router, library)]
    rests = [s.number("cooldown_time", least=1e-3, most=3600.0) for s in (router, library)]
    allowed, rest = (next((v for v in values if v is not None), None) for values in (fails, rests))
    if rules.breaker or (allowed is None and rest is None):
        return
    if allowed is not None:
        rules.breaker |= {"min_calls": int(allowed) + 1, "window_s": 60}
        message = f"is a circuit breaker here: it opens when half of {int(allowed) + 1} or more calls in 60 s failed"
        (router if "allowed_fails" in router else library).note("allowed_fails", message)
    if rest is not None:
        rules.breaker |= {"open_s": rest, "max_open_s": rest}


def read_budget(source: Source) -> dict[str, Any] | None:
    """`litellm_settings.max_budget` as a budget of all callers."""
    library = source.section("litellm_settings")
    usd, duration = library.number("max_budget", most=1e9), library.text("budget_duration")
    if not usd:
        return None
    periods = {"": "total", "1m": "minute", "60s": "minute", "24h": "day", "1d": "day", "1mo": "month"}
    per = periods.get(duration or "") or ("month" if re.fullmatch(r"(28|29|30|31)d", duration or "") else None)
    if per is None:
        library.note("budget_duration", "is no minute, day or month: the budget is left out; see budgets")
        return None
    if per == "month":
        library.note("budget_duration", "is a calendar month here, in UTC")
    return {"scope": "all", "usd": usd, "per": per}
