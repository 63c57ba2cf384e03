"""What the settings of a pool's traffic demand of the rest of the configuration: the models they name must be there.

Reads raw values, as `serving.config_rules` does, and passes over what has the wrong type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serving.config_file import Loc

__all__ = ["fault_models", "named_models", "shadow_model"]


def named_models(pool: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """The models that a pool's `weights`, `canary` and `experiments` name, with their places: they must be in it."""
    yield from _weighed(pool.get("weights"), ("weights",))
    canary = pool.get("canary")
    if isinstance(canary, Mapping):
        named = [(setting, canary.get(setting)) for setting in ("model", "compare_to")]
        yield from ((("canary", setting), name) for setting, name in named if isinstance(name, str) and name)
    experiments = pool.get("experiments")
    for i, experiment in enumerate(experiments if isinstance(experiments, list | tuple) else ()):
        variants = experiment.get("variants") if isinstance(experiment, Mapping) else None
        for j, variant in enumerate(variants if isinstance(variants, list | tuple) else ()):
            if isinstance(variant, Mapping):
                at: Loc = ("experiments", i, "variants", j)
                if isinstance(variant.get("model"), str) and variant["model"]:
                    yield (*at, "model"), variant["model"]
                yield from _weighed(variant.get("weights"), (*at, "weights"))


def shadow_model(pool: Mapping[str, Any]) -> tuple[Loc, str] | None:
    """The model of a pool's `shadow` and its place: it must be a model, of the pool or not, and have a price."""
    shadow = pool.get("shadow")
    name = shadow.get("model") if isinstance(shadow, Mapping) else None
    return (("shadow", "model"), name) if isinstance(name, str) and name else None


def fault_models(data: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """The models that the configuration's `faults` name, with their places."""
    faults = data.get("faults")
    rules = faults.get("inject") if isinstance(faults, Mapping) else None
    for i, rule in enumerate(rules if isinstance(rules, list | tuple) else ()):
        name = rule.get("model") if isinstance(rule, Mapping) else None
        if isinstance(name, str) and name:
            yield ("faults", "inject", i, "model"), name


def _weighed(weights: Any, at: Loc) -> Iterator[tuple[Loc, str]]:
    if isinstance(weights, Mapping):
        yield from (((*at, name), name) for name in weights if isinstance(name, str) and name)
