"""The models there are: those of the configuration, and those added or taken out while the service runs.

A change is an event, acted on by the same code when it is logged and when it is replayed; a snapshot carries what the
events before it amount to. Keeps references to keys (`${VAR}`) and never a key. Knows nothing of HTTP or upstreams.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import Field, ValidationError

from bandit.errors import InvalidInput
from bandit.pool import Pool
from serving.config_file import ConfigError, Document, EnvText, Loc
from serving.config_problems import validation_problems
from serving.config_values import Section
from serving.settings import ModelSettings

__all__ = ["ADDED", "REMOVED", "Roster", "parse_definition"]

ADDED: Final = "model_added"  # kinds of events
REMOVED: Final = "model_removed"

_log = logging.getLogger("pointsman.roster")
_REFERENCE = re.compile(r"(?P<before>(?:[A-Za-z]+ )?)\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")


class Roster:
    """Which models there are and which pools they were added to or removed from.

    `models`: those of the configuration, `members`: by pool, theirs; `env` is where `${VAR}` is read. A model of the
    configuration wins over one of the same name that was added: that one is forgotten.
    """

    def __init__(
        self, models: Sequence[ModelSettings], members: Mapping[str, Sequence[str]], env: Mapping[str, str]
    ) -> None:
        self._configured = {model.name: model for model in models}
        self._members, self._env = members, env
        self._definitions: dict[str, Mapping[str, Any]] = {}  # as they were given
        self._resolved: dict[str, ModelSettings] = {}
        self._changes: dict[str, dict[str, str]] = {}  # by pool: what sets it apart, as model: ADDED or REMOVED
        self.problems: dict[str, str] = {}  # why an added model is out

    @property
    def names(self) -> list[str]:
        """All models: the configuration's first, and those that are out for now last."""
        return list(dict.fromkeys((*self._configured, *self._resolved, *self.problems)))

    @property
    def models(self) -> list[ModelSettings]:
        """All models that can serve."""
        return [*self._configured.values(), *self._resolved.values()]

    def model(self, name: str) -> ModelSettings | None:
        """The model of that name; None where there is none, or where it is out."""
        return self._configured.get(name) or self._resolved.get(name)

    def configured(self, name: str) -> bool:
        """Whether the configuration defines the model."""
        return name in self._configured

    def apply(self, kind: str, row: Mapping[str, Any], pools: Mapping[str, Pool]) -> None:
        """Act on an event. Without a pool it is about the model as such, with one about its part in that pool.

        What cannot be done (the configuration may have changed since) is logged and left out; nothing is raised.
        """
        name, pool = row["model"], row["pool"]
        if pool in pools:
            self._change(pools[pool], kind, name, row.get("accuracy"), row.get("samples") or 0)
        elif pool is None and kind == ADDED:
            self._define(name, row["definition"])
        elif pool is None:
            for known in (self._definitions, self._resolved, self.problems):
                known.pop(name, None)
            for changes in self._changes.values():  # one that is out was never there to leave
                changes.pop(name, None)

    def state(self) -> dict[str, Any]:
        """What the events so far amount to; `load` is its inverse."""
        return {
            "definitions": {name: dict(definition) for name, definition in self._definitions.items()},
            "changes": {pool: dict(changes) for pool, changes in self._changes.items() if changes},
        }

    def load(self, state: Mapping[str, Any], pools: Mapping[str, Pool]) -> None:
        """Take over a state and make the pools, which are as configured, what they were."""
        for name, definition in state["definitions"].items():
            self._define(name, definition)
        for pool, changes in state["changes"].items():
            if pool in pools:
                for name in sorted(changes, key=lambda name: changes[name] == REMOVED):  # no pool is empty in between
                    self._change(pools[pool], changes[name], name, None, 0)

    def _define(self, name: str, definition: Mapping[str, Any]) -> None:
        if name in self._configured:
            _log.info("model %s: the configuration's definition replaces the one added while running", name)
            return
        self._definitions[name] = definition
        try:
            model = parse_definition(definition, self._env)
            problem = "a pool has its name now" if name in self._members else None
        except ConfigError as error:
            problem = "; ".join(map(str, error.problems))
        if problem is None:
            self._resolved[name] = model
        else:
            self.problems[name] = problem
            _log.error("model %s stays out: %s", name, problem)

    def _change(self, pool: Pool, kind: str, name: str, accuracy: float | None, samples: int) -> None:
        changes = self._changes.setdefault(pool.name, {})
        changes.pop(name, None)
        if (kind == ADDED) != (name in self._members.get(pool.name, ())):
            changes[name] = kind
        if (kind == ADDED) == (name in pool.names):
            return
        model = self.model(name)
        try:
            if kind == REMOVED:
                pool.remove_arm(name)
            elif model is not None:
                pool.add_arm(model.to_arm(), accuracy=accuracy, samples=samples)
            elif name not in self.problems:  # else that has been said
                _log.error("pool %s goes without model %s: nothing defines it any more", pool.name, name)
        except InvalidInput as error:
            _log.error("pool %s: the change of model %s cannot be made again: %s", pool.name, name, error)


class _Definition(Section):
    """Gives a model's fields the paths they have in a request's body."""

    model: ModelSettings = Field(description="The model.")


def parse_definition(definition: Any, env: Mapping[str, str]) -> ModelSettings:
    """The settings of a model from plain values as the configuration has them, their secrets read from `env`.

    Secrets (`api_key`, the values of `headers`) must be references `${VAR}`, headers' with a word before it if need be:
    the definition is kept, and a key must not be. Raises ConfigError with every problem, paths from `model` on.
    """
    document = Document()
    values: Any = dict(definition) if isinstance(definition, Mapping) else definition
    document.data = {"model": values}
    if isinstance(values, dict):
        if isinstance(values.get("endpoints"), Sequence) and not isinstance(values["endpoints"], str):
            values["endpoints"] = [dict(p) if isinstance(p, Mapping) else p for p in values["endpoints"]]
        for place, _ in _places(values):
            if isinstance(place.get("headers"), Mapping):
                place["headers"] = dict(place["headers"])
        for holder, key, loc in _secrets(values):
            holder[key] = _filled(document, loc, holder[key], env)
    problems = document.problems
    try:
        model = _Definition.model_validate(document.data).model
    except ValidationError as error:
        problems += validation_problems(error, document, _Definition)
    if problems:
        raise ConfigError(tuple(problems))
    return model


def _secrets(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Loc]]:
    """Where secrets stand, as (what holds it, under which key, its path), those that are text at all."""
    if isinstance(values.get("api_key"), str):
        yield values, "api_key", ("model", "api_key")
    for place, at in _places(values):
        if place is not values and isinstance(place.get("api_key"), str):
            yield place, "api_key", (*at, "api_key")
        headers = place.get("headers")
        if isinstance(headers, dict):
            texts = [name for name, value in headers.items() if isinstance(value, str)]
            yield from ((headers, name, (*at, "headers", name)) for name in texts)


def _places(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Loc]]:
    """The definition itself and its endpoints, each with its path."""
    yield values, ("model",)
    endpoints = values.get("endpoints")
    for i, place in enumerate(endpoints if isinstance(endpoints, list) else ()):
        if isinstance(place, dict):
            yield place, ("model", "endpoints", i)


def _filled(document: Document, loc: Loc, value: str, env: Mapping[str, str]) -> str:
    found = _REFERENCE.fullmatch(value)
    if found is None or (found["before"] and loc[-1] == "api_key"):
        message = "must be a reference such as ${NAME} to the service's environment: what is sent here is kept in files"
        document.report(loc, message, "set a variable before the service starts")
    elif not env.get(found["name"]):
        document.report(loc, f"needs {found['name']} from the service's environment, which is not set")
    else:
        return EnvText.of(found["before"] + env[found["name"]], "${" + found["name"] + "}")
    document.broken.add(loc)
    return value
