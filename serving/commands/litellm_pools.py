"""LiteLLM's deployments as models and pools: what belongs together, who gets which share, who takes over for whom.

A `model_name` over one underlying model is a model of that name, with an endpoint for each deployment; one over
several, or with fallbacks, is a pool. It must never know how the file is read or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.commands.litellm_models import Deployment, name_of
from serving.commands.litellm_routing import Chains, Rules

__all__ = ["Made", "make_pools"]

_MOST_WEIGHT = 1e6
_HARDLY_EVER = 1e-6  # the weight of an endpoint that LiteLLM would take only when the others cannot
_DEADLINE_S = 120.0


@dataclass(slots=True)
class Made:
    """Models and pools as a configuration has them."""

    models: list[dict[str, Any]] = field(default_factory=list)
    pools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    """Deployments of one `model_name`, those of one underlying model together, and the models they become."""

    name: str
    variants: list[list[Deployment]]
    members: list[str] = field(default_factory=list)

    @property
    def first(self) -> Deployment:
        return self.variants[0][0]


def make_pools(deployments: Sequence[Deployment], rules: Rules, chains: Chains) -> Made:
    """Models and pools; what is another thing here than in LiteLLM is noted."""
    groups = _groups(deployments)
    for alias, name in rules.aliases.items():
        if name not in groups:
            rules.section.note("model_group_alias", f"{alias!r} is left out: nothing it stands for was carried over")
    aliases = {alias: name for alias, name in rules.aliases.items() if name in groups and alias not in groups}
    chains.prune({*groups, *aliases, *(each.id for each in deployments if each.id is not None)})
    made, taken = Made(), {*groups, *aliases}
    _set_deadline(deployments, rules)
    for group in groups.values():
        alone = len(group.variants) == 1 and not chains.of(group.name).given
        for variant in group.variants:
            entry = _model(variant, rules)
            group.members.append(_added(made, entry, group.name if alone else None, variant, taken))
    ids = {
        each.id: member for g in groups.values() for v, member in zip(g.variants, g.members, strict=True) for each in v
    }
    for group in groups.values():
        if group.members != [group.name]:
            made.pools.append(_pool(group, group.name, groups, ids, rules, chains))
    for alias, name in aliases.items():
        made.pools.append(_pool(groups[name], alias, groups, ids, rules, chains))
    unpriced = [model["name"] for model in made.models if "price" not in model]
    if unpriced:
        message = "LiteLLM has a list of prices, here they are written down: without one a cost is unknown, as that of"
        rules.top.note(None, f"{message} {', '.join(unpriced)} (models[].price)")
    if not made.pools and made.models:
        made.pools.append(_pool_of_all(groups.values(), taken, rules))
    return made


def _set_deadline(deployments: Iterable[Deployment], rules: Rules) -> None:
    """LiteLLM has no deadline for all attempts of a call; ours must not end the longest one it allows."""
    limits = [each for each in (rules.timeout_s, *(d.timeout_s for d in deployments)) if each is not None]
    longest = max((each for each in limits if not isinstance(each, str)), default=0.0)
    if longest > _DEADLINE_S:
        rules.deadline_s = longest
        message = f"all attempts of a call share one deadline here, set to {longest:g} s (failures.deadline_s)"
        rules.top.note(None, message)
    if not limits:
        message = "no time limit is given: an attempt ends after 60 s here, and a call after 120 s (models[].timeout_s)"
        rules.top.note(None, message)


def _groups(deployments: Iterable[Deployment]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for each in deployments:
        group = groups.setdefault(each.group, _Group(each.group, []))
        for variant in group.variants:
            if _underlying(variant[0]) == _underlying(each):
                variant.append(each)
                break
        else:
            group.variants.append([each])
    return groups


def _underlying(each: Deployment) -> tuple[object, ...]:
    return each.provider.name, each.upstream, tuple(sorted((each.price or {}).items()))


# --- models


def _model(variant: Sequence[Deployment], rules: Rules) -> dict[str, Any]:
    """A model's entry without its name."""
    first = variant[0]
    entry: dict[str, Any] = {} if first.provider.kind == "openai" else {"kind": first.provider.kind}
    if len(variant) == 1:
        entry["endpoint"] = first.url
    else:
        weights = _endpoint_weights(variant, rules)
        entry["endpoints"] = [_endpoint(each, weights[i] if weights else None) for i, each in enumerate(variant)]
        if weights:
            entry["balance"] = "weights"
    entry["upstream_model"] = first.upstream
    if len(variant) == 1:
        entry |= {"api_key": first.api_key} if first.api_key else {}
        entry |= {"headers": first.headers} if first.headers else {}
    if first.price is not None:
        entry["price"] = first.price
    timeout = _same("timeout", [each.timeout_s for each in variant], variant) or rules.timeout_s
    if timeout is not None:
        entry["timeout_s"] = timeout
    tokens = [each.max_output_tokens for each in variant]
    if any(tokens):
        entry["max_output_tokens"] = max(each or 0 for each in tokens)
    concurrent = [each.max_concurrent or rules.max_concurrent for each in variant]
    if all(concurrent):
        entry["max_concurrent"] = max(each or 0 for each in concurrent)
    if rules.breaker:
        entry["breaker"] = dict(rules.breaker)
    return entry


def _endpoint(each: Deployment, weight: float | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"url": each.url}
    entry |= {"api_key": each.api_key} if each.api_key else {}
    entry |= {"headers": each.headers} if each.headers else {}
    return entry | ({} if weight is None else {"weight": weight})


def _same(what: str, values: Sequence[float | str | None], variant: Sequence[Deployment]) -> float | str | None:
    """The one value that a model's endpoints share here: the largest number."""
    given = [value for value in values if value is not None]
    numbers = [value for value in given if not isinstance(value, str)]
    chosen = max(numbers) if numbers else given[0] if given else None
    for each, value in zip(variant, values, strict=True):
        if value not in (None, chosen):
            each.entry.note("litellm_params", f"{what}: endpoints of one model share theirs, here the largest")
    return chosen


def _added(
    made: Made, entry: dict[str, Any], wanted: str | None, variant: Sequence[Deployment], taken: set[str]
) -> str:
    """The name of the model with this entry, which is added unless a model is just like it."""
    if wanted is None:
        for other in made.models:
            if {key: value for key, value in other.items() if key != "name"} == entry:
                return str(other["name"])
    name = wanted or _free(variant[0], taken)
    taken.add(name)
    made.models.append({"name": name} | entry)
    return name


def _free(each: Deployment, taken: set[str]) -> str:
    base = name_of(f"{each.provider.name}/{each.upstream}")
    name, number = base, 2
    while name in taken:
        name, number = f"{base[:190]}-{number}", number + 1
    return name


# --- shares


def _basis(deployments: Sequence[Deployment], rules: Rules) -> str | None:
    """What LiteLLM's shuffle draws by: what the first deployment has, of weight, rpm and tpm."""
    if not rules.shuffles:
        return None
    return next((name for name in ("weight", "rpm", "tpm") if name in deployments[0].weights), None)


def _drawn(deployments: Sequence[Deployment], rules: Rules) -> list[float] | None:
    """Each deployment's share, relative; None: all alike. Only those of the lowest `order` have one."""
    basis = _basis(deployments, rules)
    orders = [each.order if each.order is not None else float("inf") for each in deployments]
    ordered = len(set(orders)) > 1
    if basis is None and not ordered:
        return None
    weights = [each.weights.get(basis, 0.0) if basis else 1.0 for each in deployments]
    if ordered:
        weights = [weight if order == min(orders) else 0.0 for weight, order in zip(weights, orders, strict=True)]
        for each, order in zip(deployments, orders, strict=True):
            if order != min(orders):
                each.entry.note("litellm_params", "order: it gets calls only when those of a lower order cannot")
    largest = max(weights)
    if largest <= 0.0:
        return None
    return [weight * _MOST_WEIGHT / largest if largest > _MOST_WEIGHT else weight for weight in weights]


def _endpoint_weights(variant: Sequence[Deployment], rules: Rules) -> list[float] | None:
    weights = _drawn(variant, rules)
    return None if weights is None else [_tidy(weight) or _HARDLY_EVER for weight in weights]


def _pool_weights(group: _Group, rules: Rules) -> dict[str, float] | None:
    weights = _drawn([each for variant in group.variants for each in variant], rules)
    if weights is None:
        return None
    shares, drawn = dict.fromkeys(group.members, 0.0), iter(weights)
    for member, variant in zip(group.members, group.variants, strict=True):
        shares[member] += sum(next(drawn) for _ in variant)
    return {name: _tidy(share) for name, share in shares.items()}


def _tidy(weight: float) -> float:
    return int(weight) if weight == int(weight) else round(weight, 6)


# --- pools


def _pool(
    group: _Group,
    name: str,
    groups: Mapping[str, _Group],
    ids: Mapping[str | None, str],
    rules: Rules,
    chains: Chains,
) -> dict[str, Any]:
    pool: dict[str, Any] = {"name": name, "models": list(dict.fromkeys(group.members))}
    if len(pool["models"]) > 1:
        weights = _pool_weights(group, rules)
        if weights is not None:
            pool["weights"] = weights
            message = f"pool {name}: its shares are fixed as they were; remove its weights, and it learns them"
        elif rules.objective:
            pool["objective"] = dict(rules.objective)
            message = f"pool {name}: it learns what LiteLLM's strategy looked at; give quality a weight, and that, too"
        else:
            message = f"pool {name}: LiteLLM draws among its models; here the pool learns which one to take"
        group.first.entry.note("model_name", message)
    failures = _failures(group, groups, ids, rules, chains)
    return pool | ({"failures": failures} if failures else {})


def _failures(
    group: _Group, groups: Mapping[str, _Group], ids: Mapping[str | None, str], rules: Rules, chains: Chains
) -> dict[str, Any] | None:
    """Who takes over for a group; None: as the top level says."""
    chain = chains.of(group.name)
    names: list[str] = list(group.members) if len(group.variants) > 1 else []
    others: list[str] = []
    for target in chain.targets:
        name = rules.aliases.get(target, target)
        found = groups[name].members if name in groups else [ids[target]]
        others += [member for member in found if member not in group.members and member not in others]
    if not others:
        return None
    failures: dict[str, Any] = {"fallbacks": names + others}
    causes: list[str] = [each for each in ("errors", "context_window", "content_policy") if each in chain.causes]
    if names and "errors" not in causes:
        causes = ["errors", *causes]
    if len(causes) < 3:
        failures["on"] = causes
    return failures | rules.failures(1 + len(chain.targets))


def _pool_of_all(groups: Iterable[_Group], taken: set[str], rules: Rules) -> dict[str, Any]:
    """A pool over every chat model: a configuration needs one, and it is what this service is for."""
    chosen = [group for group in groups if not group.first.embeds] or list(groups)
    name = next(f"auto{i or ''}" for i in range(len(taken) + 1) if f"auto{i or ''}" not in taken)
    rules.top.note(None, f"pool {name} was added over all models: call it, and it learns which one to take")
    return {"name": name, "models": [member for group in chosen for member in group.members][:256]}
