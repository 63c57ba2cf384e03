"""What one section of the configuration demands of another, and what is allowed but probably not meant.

`broken_rules` reads raw values, so that it can speak even while other sections are wrong; `doubts` reads finished
settings. Neither may raise, and neither ever puts a key or an endpoint into a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from serving.config_file import EnvText, Loc, Problem, dotted
from serving.providers.kinds import takes
from serving.reach import gives_credentials
from serving.traffic.rules import fault_models, named_models, shadow_model

if TYPE_CHECKING:
    from serving.benchmark_settings import BenchmarkSettings
    from serving.settings import PoolSettings, Settings

__all__ = ["broken_rules", "doubts", "is_loopback"]

_MOST_MEMBERS = 256  # of a pool; more are a problem of their own
_DEFAULT_WAIT_S, _DEFAULT_HORIZON_S = 3600.0, 7 * 86_400.0
_TOKENS = ("jwt", "cryptography")  # likewise the extra jwt
_TRACES = ("google.protobuf", "opentelemetry.proto")  # and the extra otel
_EMBEDDINGS = ("wordllama", "safetensors", "tokenizers")  # what the extra of that name installs

Rule = tuple[Loc, str, str | None]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def broken_rules(data: Mapping[str, Any]) -> Iterator[Rule]:
    """(loc, message, hint) of every rule between sections that raw `data` breaks; wrong types are passed over."""
    yield from _open_only_on_loopback(data)
    yield from _distinct_keys(data)
    yield from _tokens_readable(data)
    yield from _traces_sendable(data)
    models = dict(_names(data, "models"))
    pools = dict(_names(data, "pools"))
    yield from _distinct(models, "models")
    yield from _distinct(pools, "pools")
    for i, name in pools.items():
        if name in models.values():
            hint = "give the pool another name; a call names either"
            yield ("pools", i, "name"), f"{_shown(name)} is also a model's name", hint
    complete = len(models) == len(_list(data, "models"))  # else a name that seems unknown may be the unreadable one
    for i, pool in enumerate(_list(data, "pools")):
        if isinstance(pool, Mapping):
            yield from _pool_rules(("pools", i), pool, tuple(models.values()) if complete else None)
            yield from _alike(("pools", i), pool, _list(data, "models"))
            yield from _embeddings_installed(("pools", i, "features", "text"), pool.get("features"))
            yield from _waits_within_horizon(("pools", i, "feedback", "wait_s"), pool.get("feedback"), data)
    yield from _benchmark_rules(data, tuple(models.values()) if complete else None, tuple(pools.values()))
    for place, name in fault_models(data) if complete else ():
        if name not in models.values():
            yield place, f"no model is called {_shown(name)}", _nearest(name, tuple(models.values()))
    yield from _tier_rules(data, (*models.values(), *pools.values()) if complete else None)


def _open_only_on_loopback(data: Mapping[str, Any]) -> Iterator[Rule]:
    server = data.get("server")
    host = server.get("host", "127.0.0.1") if isinstance(server, Mapping) else "127.0.0.1"
    if data.get("auth") is None and isinstance(host, str) and host and not is_loopback(host):
        hint = "add an auth section with keys, or listen on 127.0.0.1"
        yield ("server", "host"), "without auth the service is open, and then only on a loopback address", hint


def _distinct_keys(data: Mapping[str, Any]) -> Iterator[Rule]:
    auth = data.get("auth")
    if not isinstance(auth, Mapping):
        return
    places: dict[str, Loc] = {}
    if isinstance(auth.get("admin_key"), str):
        places[auth["admin_key"]] = ("auth", "admin_key")
    for i, entry in enumerate(_list(auth, "keys")):
        key = entry.get("key") if isinstance(entry, Mapping) else None
        if isinstance(key, str) and key:
            at: Loc = ("auth", "keys", i, "key")
            if key in places:
                yield at, f"is the same key as {dotted(places[key])}", "give each its own key"
            places.setdefault(key, at)


def _tokens_readable(data: Mapping[str, Any]) -> Iterator[Rule]:
    auth = data.get("auth")
    if isinstance(auth, Mapping) and auth.get("jwt") is not None:
        missing = [name for name in _TOKENS if find_spec(name) is None]
        if missing:
            hint = "pip install 'pointsman[jwt]'"
            yield ("auth", "jwt"), f"tokens need {', '.join(missing)}, not installed here", hint
        else:
            yield from _public_key_fits(auth["jwt"])


def _traces_sendable(data: Mapping[str, Any]) -> Iterator[Rule]:
    if isinstance(data.get("tracing"), Mapping):
        missing = [name for name in _TRACES if not _installed(name)]
        if missing:
            yield ("tracing",), f"traces need {', '.join(missing)}, not installed here", "pip install 'pointsman[otel]'"


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even what it is part of
        return False


def _public_key_fits(entry: Any) -> Iterator[Rule]:
    key = entry.get("public_key") if isinstance(entry, Mapping) else None
    if not isinstance(key, str) or not key:
        return
    from jwt import PyJWTError, get_algorithm_by_name

    for name in _list(entry, "algorithms")[:_MOST_MEMBERS]:
        if name not in ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"):
            continue  # its own validator says so
        try:
            get_algorithm_by_name(name).prepare_key(key)
        except (PyJWTError, ValueError, TypeError):
            yield (
                ("auth", "jwt", "public_key"),
                f"is no public key for {name}",
                "give its PEM whole, with its line breaks",
            )
            return


def _tier_rules(data: Mapping[str, Any], known: tuple[str, ...] | None) -> Iterator[Rule]:
    yield from _distinct(dict(_names(data, "tiers")), "tiers")
    default: int | None = None
    for i, tier in enumerate(_list(data, "tiers")[:_MOST_MEMBERS]):
        if not isinstance(tier, Mapping):
            continue
        if tier.get("default") is True:
            if default is not None:
                yield ("tiers", i, "default"), f"tiers[{default}] is the default already", "leave one"
            default = i if default is None else default
        pools = tier.get("pools")
        mapped: Mapping[Any, Any] = pools if isinstance(pools, Mapping) else {}
        for name, actual in mapped.items():
            if known is not None and isinstance(actual, str) and actual and actual not in known:
                yield (
                    ("tiers", i, "pools", name),
                    f"no pool or model is called {_shown(actual)}",
                    _nearest(actual, known),
                )


def _distinct(names: Mapping[int, str], section: str) -> Iterator[Rule]:
    first: dict[str, int] = {}
    for i, name in names.items():
        if name in first:
            yield (section, i, "name"), f"{_shown(name)} is already the name of {section}[{first[name]}]", "rename one"
        first.setdefault(name, i)


def _pool_rules(at: Loc, pool: Mapping[str, Any], known: tuple[str, ...] | None) -> Iterator[Rule]:
    members = _list(pool, "models")[:_MOST_MEMBERS]
    seen: set[str] = set()
    for i, name in enumerate(members):
        if not isinstance(name, str) or not name:
            continue
        if name in seen:
            yield (*at, "models", i), f"{_shown(name)} is listed twice", "remove one"
        elif known is not None and name not in known:
            yield (*at, "models", i), f"no model is called {_shown(name)}", _nearest(name, known)
        seen.add(name)
    names = tuple(m for m in members if isinstance(m, str))
    for place, name in _named_by(pool.get("policy")):
        if members and name not in members:
            yield (*at, "policy", *place), f"{_shown(name)} is not in the pool", _nearest(name, names)
    for place, name in named_models(pool):
        if members and name not in members:
            yield (*at, *place), f"{_shown(name)} is not in the pool", _nearest(name, names)
    shadow = shadow_model(pool)
    if shadow is not None and known is not None and shadow[1] not in known:
        yield (*at, *shadow[0]), f"no model is called {_shown(shadow[1])}", _nearest(shadow[1], known)


def _alike(at: Loc, pool: Mapping[str, Any], models: list[Any]) -> Iterator[Rule]:
    """A call that one model of a pool can take all can: those of kind http are apart, each protocol for itself."""
    entries = [entry for entry in models if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)]
    taken = {entry["name"]: takes(entry.get("kind"), entry.get("protocol")) for entry in entries}
    named: list[tuple[Loc, Any]] = [(("models", i), name) for i, name in enumerate(_list(pool, "models"))]
    named += [shadow] if (shadow := shadow_model(pool)) is not None else []
    named = [(place, name) for place, name in named[:_MOST_MEMBERS] if isinstance(name, str) and name in taken]
    for place, name in named[1:]:
        first = named[0][1]
        if taken[name] != taken[first]:
            message = f"{_shown(name)} takes {taken[name]}, and {_shown(first)} {taken[first]}"
            yield (*at, *place), message, "give it a pool of its own: a call must suit all models of its pool"


def _named_by(policy: Any) -> Iterator[tuple[Loc, str]]:
    """The models a policy names, each with its place in the policy."""
    kind = policy.get("kind") if isinstance(policy, Mapping) else None
    if kind == "fixed" and isinstance(policy.get("model"), str) and policy["model"]:
        yield ("model",), policy["model"]
    weights = policy.get("weights") if kind == "weighted" else None
    if isinstance(weights, Mapping):
        yield from ((("weights", name), name) for name in weights if isinstance(name, str) and name)


def _embeddings_installed(at: Loc, features: Any) -> Iterator[Rule]:
    if isinstance(features, Mapping) and features.get("text") == "embeddings":
        missing = [name for name in _EMBEDDINGS if find_spec(name) is None]
        if missing:
            hint = "pip install 'pointsman[embeddings]', or choose trigrams or none"
            yield at, f"embeddings need {', '.join(missing)}, not installed here", hint


def _waits_within_horizon(at: Loc, feedback: Any, data: Mapping[str, Any]) -> Iterator[Rule]:
    """Past the horizon a decision is forgotten: what is still waited for then could never be learned."""
    server = data.get("server")
    horizon_s = server.get("feedback_horizon_s", _DEFAULT_HORIZON_S) if isinstance(server, Mapping) else None
    horizon_s = _DEFAULT_HORIZON_S if horizon_s is None else horizon_s
    if not isinstance(feedback, Mapping) or feedback.get("missing", "ignore") == "ignore":
        return
    wait_s = feedback.get("wait_s", _DEFAULT_WAIT_S)
    if isinstance(wait_s, int | float) and isinstance(horizon_s, int | float) and wait_s >= horizon_s:
        yield at, f"must be below server.feedback_horizon_s, {horizon_s:g}", "wait less, or raise the horizon"


def _benchmark_rules(data: Mapping[str, Any], models: tuple[str, ...] | None, pools: tuple[str, ...]) -> Iterator[Rule]:
    entries, first = _list(data, "benchmarks"), dict[str, int]()
    auth = data.get("auth")
    if entries and isinstance(auth, Mapping) and auth.get("admin_key") is None:
        hint = "add auth.admin_key: runs post their results with it"
        yield ("benchmarks",), "nobody could post results, because /admin is closed", hint
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            continue
        suite, pool = entry.get("suite"), entry.get("pool")
        if isinstance(suite, str) and suite and not isinstance(suite, EnvText):
            name = PurePath(suite).stem
            if name in first:
                message = f"its name {name!r} is already that of benchmarks[{first[name]}]: their results would be one"
                yield ("benchmarks", i, "suite"), message, "rename the file"
            first.setdefault(name, i)
        if isinstance(pool, str) and pool and pool not in pools and len(pools) == len(_list(data, "pools")):
            yield ("benchmarks", i, "pool"), f"no pool is called {_shown(pool)}", _nearest(pool, pools)
        for j, name in enumerate(_list(entry, "models")[:1_000]):
            if models is not None and isinstance(name, str) and name and name not in models:
                yield ("benchmarks", i, "models", j), f"no model is called {_shown(name)}", _nearest(name, models)


def _nearest(name: str, known: tuple[str, ...]) -> str | None:
    near = get_close_matches(name, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:10])}" if known else None


def _shown(name: str) -> str:
    return (
        name.reference if isinstance(name, EnvText) else repr(name)
    )  # whoever mixes up two variables keeps the secret


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    return list(value) if isinstance(value, list | tuple) else []


def _names(data: Mapping[str, Any], section: str) -> Iterator[tuple[int, str]]:
    for i, entry in enumerate(_list(data, section)):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and name:
            yield i, name


def doubts(settings: Settings) -> Iterator[Problem]:
    """Warnings: what the service accepts, and its operator should know."""
    yield from _reach_doubts(settings)
    yield from _tier_doubts(settings)
    yield from _budget_doubts(settings)
    if settings.faults.enabled:
        hint = "leave it on for game days alone"
        yield Problem("faults.enabled", "whoever has the admin key may break calls on purpose", hint)
    yield from _retention_doubts(settings)
    for i, pool in enumerate(settings.pools):
        yield from _pool_doubts(("pools", i), pool, settings)
    for i, entry in enumerate(settings.benchmarks):
        if not entry.suite.exists():
            hint = f"the service looks for it from {Path.cwd()}; runs fail until it is there"
            yield Problem(dotted(("benchmarks", i, "suite")), f"there is no {str(entry.suite)!r}", hint)


def _reach_doubts(settings: Settings) -> Iterator[Problem]:
    for i, model in enumerate(settings.models):
        if any(gives_credentials(urlsplit(place.url).hostname or "") for place in model.places):
            message = "is where clouds give a machine its credentials: whoever may call could read them"
            yield Problem(dotted(("models", i, "endpoint")), message, "name the endpoint that is meant")


def _retention_doubts(settings: Settings) -> Iterator[Problem]:
    days = settings.log.retention_days
    if days is None:
        return
    if days * 86_400 < settings.server.feedback_horizon_s:
        message = "is shorter than server.feedback_horizon_s: feedback may come when its decision has left the log"
        yield Problem("log.retention_days", message)
    for entry in settings.benchmarks:
        if days * 24 <= entry.every_hours:
            message = f"forgets that suite {entry.name!r} was run before it is due again: it will be run more often"
            yield Problem("log.retention_days", message, f"keep rows for more than {entry.every_hours / 24:g} days")


def _tier_doubts(settings: Settings) -> Iterator[Problem]:
    tiers, auth = {tier.name for tier in settings.tiers}, settings.auth
    default = any(tier.default for tier in settings.tiers)
    known = {*(model.name for model in settings.models), *(pool.name for pool in settings.pools)}
    known |= {name for tier in settings.tiers for name in tier.pools}
    for i, tier in enumerate(settings.tiers):
        yield from _allow_doubts(("tiers", i, "allow"), tier.allow, known)
    for i, entry in enumerate(auth.keys if auth is not None else ()):
        yield from _allow_doubts(("auth", "keys", i, "allow"), entry.allow, known)
    if not tiers or auth is None:
        return
    means = "callers of it get the default tier" if default else "callers of it may use nothing"
    for i, entry in enumerate(auth.keys):
        if entry.tier is not None and entry.tier not in tiers:
            yield Problem(dotted(("auth", "keys", i, "tier")), f"no tier is called {entry.tier!r}: {means}")
    if auth.jwt is not None and not default:
        message = "no tier is the default: tokens without a tier may use every pool and model"
        yield Problem("tiers", message, "give one tier default: true")


def _allow_doubts(at: Loc, allow: tuple[str, ...] | None, known: set[str]) -> Iterator[Problem]:
    for j, name in enumerate(allow or ()):
        if name not in known:  # it may be added while the service runs; until then it allows nothing
            yield Problem(dotted((*at, j)), f"no pool or model is called {name!r} yet", _nearest(name, tuple(known)))


def _budget_doubts(settings: Settings) -> Iterator[Problem]:
    unpriced = [model.name for model in settings.models if model.price is None]
    tiers = {tier.name for tier in settings.tiers}
    for i, entry in enumerate(settings.budgets):
        if entry.usd is not None and unpriced:
            named = ", ".join(unpriced[:5])
            message = f"cannot hold for models without a price, whose cost is unknown: {named}"
            yield Problem(dotted(("budgets", i, "usd")), message, "give them a price, or add a budget of tokens")
    for section, entries in (("budgets", settings.budgets), ("limits", settings.limits)):
        for i, scoped in enumerate(entries):
            for setting, name in (("tier", scoped.tier), ("match", scoped.match if scoped.scope == "tier" else "*")):
                if name not in (None, "*") and name not in tiers:
                    yield Problem(dotted((section, i, setting)), f"no tier is called {name!r}: it concerns nobody")


def _asks(entry: BenchmarkSettings, pool: PoolSettings) -> bool:
    """Whether a suite tests all models of a pool."""
    if entry.pool is not None:
        return entry.pool == pool.name
    return entry.models is None or set(pool.models) <= set(entry.models)


def _pool_doubts(at: Loc, pool: PoolSettings, settings: Settings) -> Iterator[Problem]:
    if len(pool.models) == 1:
        yield Problem(dotted((*at, "models")), "has one model: nothing to choose, nothing to learn")
    if pool.objective.cost > 0 or pool.budget is not None:
        for i, name in enumerate(pool.models):
            if settings.model(name).price is None:
                message = f"{name!r} has no price: its cost is unknown and counts as cost_reference_usd, never as zero"
                yield Problem(dotted((*at, "models", i)), message, "give the model a price")
    if (
        pool.constraints.min_accuracy is not None
        and pool.constraints.accuracy_evidence == "benchmarks"
        and not any(_asks(entry, pool) for entry in settings.benchmarks)
    ):
        message = "nothing can test this limit until benchmark results arrive"
        hint = "post benchmark results, schedule a suite in benchmarks, or set accuracy_evidence to feedback or both"
        yield Problem(dotted((*at, "constraints", "min_accuracy")), message, hint)
    if pool.shadow is not None and settings.model(pool.shadow.model).price is None:
        message = f"{pool.shadow.model!r} has no price: what it costs would be unknown, and it gets no shadow calls"
        yield Problem(dotted((*at, "shadow", "model")), message, "give the model a price, be it 0")
    if pool.objective.cost == pool.objective.latency == 0 and len(pool.models) > 1:
        message = "weighs quality alone: between equal models neither price nor speed counts"
        yield Problem(dotted((*at, "objective")), message, "give cost or latency a weight")
