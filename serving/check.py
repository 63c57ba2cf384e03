"""What `pointsman check` prints: the resolved configuration, or everything that is wrong with it.

Reads finished settings only. It never shows any part of a secret: a secret is "set" or "—".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving.benchmark_settings import BenchmarkSettings
from serving.settings import ConfigError, ModelSettings, PoolSettings, Problem, Settings
from serving.valkey_link import without_credentials

if TYPE_CHECKING:
    from pydantic import SecretStr
    from rich.console import Console
    from rich.table import Table

    from serving.access.settings import JwtSettings, TierSettings
    from serving.slo_settings import SloSettings

__all__ = ["render_check", "render_problems"]

_NONE = "—"
_POLICY_WORDS = {
    "epsilon": "epsilon",
    "alpha": "alpha",
    "gamma_scale": "gamma scale",
    "gamma_exponent": "exponent",
    "exploration_floor": "floor",
    "exploration_scale": "scale",
    "slope_prior_precision": "slope precision",
}
Row = tuple[str, ...]


def render_check(settings: Settings, console: Console) -> None:
    """Print service, models, pools and warnings as tables that fold, never cut, what does not fit."""
    console.print(_table("Service", ("", ""), _service_rows(settings)))
    columns = ("model", "upstream", "key", "in / out", "timeout")
    title = "Models (prices in USD per million tokens)"
    console.print(_table(title, columns, (_model_row(model) for model in settings.models)))
    for pool in settings.pools:
        console.print(_table(f"Pool {pool.name}", ("", ""), _pool_rows(pool, settings)))
    if settings.benchmarks:
        columns = ("suite", "every", "asks", "at a time", "bounds")
        console.print(_table("Benchmarks", columns, (_benchmark_row(entry) for entry in settings.benchmarks)))
    if settings.warnings:
        _print_problems(console, "warning", settings.warnings)


def render_problems(error: ConfigError, console: Console) -> None:
    """Print every problem with its path, line, message and hint, one or two lines each."""
    _print_problems(console, "problem", error.problems, error.source)


def _print_problems(console: Console, what: str, problems: tuple[Problem, ...], source: str = "") -> None:
    from rich.text import Text

    colour = "red" if what == "problem" else "yellow"
    title = f"{len(problems)} {what}{'' if len(problems) == 1 else 's'}" + (f" in {source}" if source else "")
    # soft_wrap: the terminal wraps where it must, and a pipe gets each problem whole
    console.print(Text(title, style=f"bold {colour}"), soft_wrap=True)
    for problem in problems:
        line = "" if problem.line is None else f" (line {problem.line})"
        text = Text.assemble("  ", (f"{problem.path or 'the file'}{line}", "bold"), f": {problem.message}")
        console.print(text, soft_wrap=True)
        if problem.hint:
            console.print(Text(f"    {problem.hint}", style="dim"), soft_wrap=True)


def _table(title: str, columns: tuple[str, ...], rows: Iterator[Row]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a name such as `[red]` or `:tada:` is a name, no markup.
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _service_rows(settings: Settings) -> Iterator[Row]:
    server, store, log, auth = settings.server, settings.store, settings.log, settings.auth
    yield "address", f"{server.host}:{server.port}"
    yield "data", str(server.data_dir)
    if auth is None:
        yield "callers", "anyone on this machine (no auth section)"
    else:
        yield "admin key", _secret(auth.admin_key)
        if auth.jwt is not None:
            yield "tokens", _tokens(auth.jwt)
        for entry in auth.keys:
            labels = [f"{name} {value}" for name, value in (("team", entry.team), ("tier", entry.tier)) if value]
            labels += [f"only {', '.join(entry.allow) or 'nothing'}"] if entry.allow is not None else []
            yield "caller", ", ".join((entry.user, *labels, f"key {_secret(entry.key)}"))
    for tier in settings.tiers:
        yield f"tier {tier.name}", _tier(tier)
    yield "metrics", "open" if server.metrics_public or server.loopback else "with a key"
    yield "request limits", f"{server.max_body_bytes:,} bytes, {server.max_messages:,} messages"
    yield "feedback", f"accepted for {_duration(server.feedback_horizon_s)}"
    drain = f"unready for {server.drain_s:g} s, then " if server.drain_s else ""
    yield "shutdown", f"{drain}calls under way get {server.shutdown_grace_s:g} s"
    kept = f"synchronous {store.synchronous}"
    if store.url is not None:
        kept = f"{without_credentials(store.url.get_secret_value())}, as {store.name}"
    yield "store", f"{kept}, up to {store.queue_limit:,} events waiting"
    yield "snapshots", f"every {store.snapshot_every_events:,} events, {store.cache_decisions:,} decisions in memory"
    tracing, lines = settings.tracing, settings.logging
    yield "log lines", f"{lines.format}, from {lines.level} on" + (", every request" if lines.access else "")
    if tracing is not None:
        yield "traces", f"to {urlsplit(tracing.endpoint).hostname}, {tracing.sample_ratio:.4g} of the calls"
    kept = "for ever" if log.retention_days is None else f"for {_duration(log.retention_days * 86_400)}"
    yield "log", f"every {log.flush_interval_s:g} s, up to {log.batch_rows:,} rows, kept {kept}"


def _tokens(jwt: JwtSettings) -> str:
    """What is taken; where the keys come from only by kind, since a URL may hold a secret."""
    source = next(name for name in ("secret", "public_key", "jwks_file", "jwks_url") if getattr(jwt, name) is not None)
    bound = [f"{name} {value}" for name, value in (("issuer", jwt.issuer), ("audience", jwt.audience)) if value]
    return ", ".join((" or ".join(jwt.algorithms), f"{source} set", *bound, f"user from {jwt.claims.user}"))


def _tier(tier: TierSettings) -> str:
    parts = [f"{name} is {actual}" for name, actual in tier.pools.items()]
    own = [name for name in tier.allow or () if name not in tier.pools]
    parts.append("all others, too" if tier.allow is None else f"also {', '.join(own)}" if own else "nothing else")
    return ", ".join((*parts, f"priority {tier.priority}", *(["the default"] if tier.default else [])))


def _model_row(model: ModelSettings) -> Row:
    upstream = [
        model.upstream_model,
        "\n".join(place.url for place in model.places),
        f"up to {model.max_connections:,} connections",
    ]
    upstream += [] if model.kind == "openai" else [f"kind {model.kind}"]
    upstream += [model.protocol] if model.kind == "http" else []
    upstream += [f"batches up to {model.batching.max_size:,}"] if model.batching is not None else []
    upstream += [f"{name}: set" for name in model.headers]
    return model.name, "\n".join(upstream), _secret(model.api_key), _price(model), f"{model.timeout_s:g} s"


def _pool_rows(pool: PoolSettings, settings: Settings) -> Iterator[Row]:
    for i, name in enumerate(pool.models):
        yield "models" if i == 0 else "", f"{name} ({_price(settings.model(name))})"
    yield "objective", _objective(pool)
    limits = list(_limits(pool))
    yield "limits", "\n".join(limits) or _NONE
    if limits:
        yield "if none can", pool.constraints.on_infeasible
        filters = pool.filters
        certainty = f"alpha {filters.alpha:g}, one false alarm in {filters.calls_between_false_alarms:,.0f} calls"
        yield "tests", f"{certainty}, probes {filters.probe_share:.4g}, unknown up to {filters.unknown_share:g}"
    yield "budget", _NONE if pool.budget is None else f"{pool.budget.usd_per_request:g} USD per request"
    yield "policy", _policy(pool)
    yield "features", _features(pool)
    yield "newcomers", f"{pool.newcomers.share:.4g} at most together, until {pool.newcomers.samples:,} graded answers"
    yield "no feedback", _no_feedback(pool)
    if pool.cache is not None:
        kept = "" if pool.cache.only_deterministic else ", also of requests that may be answered in several ways"
        yield "cache", f"answers for {_duration(pool.cache.ttl_s)}, by {pool.cache.scope}{kept}"
    if pool.slo is not None:
        yield "promised", "\n".join(_promises(pool.slo)) or _NONE
    if pool.quality_metrics:
        yield "quality from", ", ".join(f"{name} × {weight:g}" for name, weight in pool.quality_metrics.items())


def _promises(slo: SloSettings) -> Iterator[str]:
    if slo.availability is not None:
        yield f"{slo.availability:.6g} of requests answered"
    if slo.latency_s is not None:
        yield f"{slo.latency_share:.6g} of answers within {slo.latency_s:g} s"
    if slo.success_quality is not None:
        yield f"success from quality {slo.success_quality:g}"


def _benchmark_row(entry: BenchmarkSettings) -> Row:
    items = "all items" if entry.sample is None else f"{entry.sample:,} items"
    whom = "all models" if entry.models is None else ", ".join(entry.models)
    asked = whom if entry.pool is None else f"pool {entry.pool}"
    budget = "" if entry.budget_usd is None else f"{entry.budget_usd:g} USD, "
    bounds = f"{budget}{_duration(entry.timeout_s)}"
    return str(entry.suite), _duration(entry.every_hours * 3_600), f"{items} of {asked}", str(entry.concurrency), bounds


def _objective(pool: PoolSettings) -> str:
    objective = pool.to_objective()
    quality, cost, latency = objective.weights
    parts = [f"quality {quality:.1%}"] if quality else []
    parts += [f"cost {cost:.1%} (reference {objective.cost_reference_usd:g} USD)"] if cost else []
    parts += [f"latency {latency:.1%} (reference {objective.latency_reference_s:g} s)"] if latency else []
    return ", ".join(parts)


def _limits(pool: PoolSettings) -> Iterator[str]:
    limits = pool.constraints
    if limits.p95_latency_s is not None:
        yield f"p95 latency ≤ {limits.p95_latency_s:g} s"
    if limits.p95_time_to_first_token_s is not None:
        yield f"p95 time to first token ≤ {limits.p95_time_to_first_token_s:g} s"
    if limits.max_error_rate is not None:
        yield f"error rate ≤ {limits.max_error_rate:.4g}"
    if limits.min_accuracy is not None:
        yield f"accuracy ≥ {limits.min_accuracy:g}, tested by {limits.accuracy_evidence}"


def _policy(pool: PoolSettings) -> str:
    policy = pool.policy
    parts: list[str] = [policy.kind]
    if policy.kind == "fixed":
        parts.append(f"model {policy.model}")
    if policy.weights is not None:
        parts.append(", ".join(f"{name} {weight:g}" for name, weight in policy.weights.items()))
    parts += [f"{words} {getattr(policy, name):g}" for name, words in _POLICY_WORDS.items() if policy.uses(name)]
    half_life = policy.half_life_requests
    parts.append("never forgets" if half_life is None else f"half-life {half_life:,.0f} requests")
    if policy.seed is not None:
        parts.append(f"seed {policy.seed}")
    return ", ".join(parts)


def _features(pool: PoolSettings) -> str:
    features = pool.features
    found = "hashed, or as a warm start found them"
    names = found if features.categories is None else ", ".join(features.categories) or "none"
    return f"text {features.text}, categories {names}" + (f", vector of {features.vector}" if features.vector else "")


def _no_feedback(pool: PoolSettings) -> str:
    if pool.feedback.missing == "ignore":
        return "ignore"
    return f"counts as quality {pool.feedback.missing:g} after {_duration(pool.feedback.wait_s)}"


def _price(model: ModelSettings) -> str:
    price = model.price
    if price is None:
        return "unknown"
    if price.per_call and not price.input_per_million and not price.output_per_million:
        return f"{price.per_call:g}/call"
    by_call = f" + {price.per_call:g} a call" if price.per_call else ""
    return f"{price.input_per_million:g} / {price.output_per_million:g}{by_call}"


def _secret(value: SecretStr | None) -> str:
    return _NONE if value is None else "set"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} seconds"
