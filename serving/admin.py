"""What operators do to models while the service runs: list them, add one, remove one.

Checks a change whole before any of it is made, and says what stands in its way. Knows nothing of HTTP, nor of who may
ask; what a change means is the roster's to know, and that it lasts is the learner's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from bandit.baselines import for_other_arms
from bandit.errors import InvalidInput
from bandit.pool import Pool
from bandit.posterior import LATENCY, QUALITY
from serving.config_file import ConfigError, Document, Problem
from serving.config_problems import validation_problems
from serving.config_values import Count, Name, Number, Section, reject
from serving.errors import Conflict, InvalidFields, UnknownModel
from serving.learner import Learner
from serving.providers.kinds import takes
from serving.reach import Reach
from serving.records import change_event, model_event
from serving.roster import ADDED, REMOVED, Roster, parse_definition
from serving.settings import ModelSettings
from serving.store import Event
from serving.upstream import Upstreams

__all__ = ["Addition", "AdminDesk"]

_MOST_MODELS, _MOST_MEMBERS = 1_000, 256  # as the configuration may have


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for i, name in enumerate(names):
        if name in names[:i]:
            reject("is listed twice", "remove one", (i,))
    return names


class Addition(Section):
    """The body of `POST /admin/models`."""

    model: Any = Field(description="A model as in the configuration, or the name of one that is there.")
    pools: Annotated[tuple[Name, ...], AfterValidator(_distinct)] = Field(
        default=(), max_length=1_000, description="The pools it joins."
    )
    accuracy: Number | None = Field(default=None, ge=0, le=1, description="Mean of its graded benchmark answers.")
    samples: Count | None = Field(default=None, ge=1, le=1_000_000, description="How many answers were graded.")

    @model_validator(mode="after")
    def _complete(self) -> Addition:
        if (self.accuracy is None) != (self.samples is None):
            missing = "samples" if self.samples is None else "accuracy"
            reject("is required: accuracy and samples belong together", None, (missing,))
        if not self.pools and (self.accuracy is not None or isinstance(self.model, str)):
            reject("must name the pools it joins", None, ("pools",))
        return self


class AdminDesk:
    """Lists and changes models; `env` is where `${VAR}` in a new model's secrets is read, `reach` where it may be."""

    def __init__(self, learner: Learner, upstreams: Upstreams, env: Mapping[str, str], reach: Reach) -> None:
        self._learner, self._upstreams, self._env, self._reach = learner, upstreams, env, reach

    @property
    def _roster(self) -> Roster:
        return self._learner.roster  # another one after a reload

    def models(self) -> list[dict[str, Any]]:
        """Every model with its part in each pool; never a key or a header's value."""
        return [self._entry(name) for name in self._roster.names]

    async def add(self, body: Mapping[str, Any], by: str | None) -> dict[str, Any]:
        """Add a model, or let one that is there join pools; durable on return. `by` is whom it is logged under.

        Raises InvalidFields, UnknownModel, Conflict, and then nothing has changed.
        """
        addition, new = self._parsed(body)
        name: str = addition.model if new is None else new.name
        if new is None:
            self._check_known(name)
        else:
            self._check_new(name)
        for i, pool in enumerate(addition.pools):
            self._check_joining(self._pool(pool, f"pools[{i}]"), name, new or self._roster.model(name))
        events = [] if new is None else [model_event(ADDED, None, name, by=by, definition=addition.model)]
        evidence = {"accuracy": addition.accuracy, "samples": addition.samples}
        events += [model_event(ADDED, pool, name, by=by, **evidence) for pool in addition.pools]
        before, after = self._standing(name), sorted({*self._member_of(name), *addition.pools})
        given = {"definition": addition.model} if new is not None else {}
        events.append(_audited("added", name, before, {"pools": after} | given | evidence, by))
        await self._change(events, opening=new)
        return self._entry(name)

    async def remove(self, name: str, pools: Sequence[str], by: str | None) -> dict[str, Any]:
        """Take a model out of `pools`; without any out of all, and one that was added then out of the service.

        Durable on return; calls under way finish. Raises UnknownModel, Conflict, and then nothing has changed.
        """
        roster, everywhere = self._roster, self._learner.pools
        if name not in roster.names:
            raise UnknownModel(name, roster.names)
        leaving = [self._pool(pool, "pools") for pool in dict.fromkeys(pools)]
        for pool in leaving:
            if name not in pool.names:
                raise _conflict(f"{name!r} is not in pool {pool.name!r}", list(pool.names))
        gone = not pools and not roster.configured(name)
        if not pools:
            leaving = [pool for pool in everywhere.values() if name in pool.names]
        if not leaving and not gone:
            raise _conflict(f"{name!r} is in no pool; the configuration defines it, and may cease to", [])
        for pool in leaving:
            _check_leaving(pool, name)
        events = [model_event(REMOVED, pool.name, name, by=by) for pool in leaving]
        events += [model_event(REMOVED, None, name, by=by)] if gone else []
        left = [name for name in self._member_of(name) if name not in {pool.name for pool in leaving}]
        events.append(_audited("removed", name, self._standing(name), None if gone else {"pools": left}, by))
        await self._change(events, retiring=name if gone and name in self._upstreams else None)
        return {"name": name, "removed_from": [pool.name for pool in leaving], "callable": name in self._upstreams}

    async def _change(
        self, events: Sequence[Event], *, opening: ModelSettings | None = None, retiring: str | None = None
    ) -> None:
        if opening is not None:
            self._upstreams.open(opening)  # first: the next call may be sent there
        try:
            durable = self._learner.record(events)
        except BaseException:
            if opening is not None:
                self._upstreams.retire(opening.name)
            raise
        if retiring is not None:
            self._upstreams.retire(retiring)
        await asyncio.shield(durable)  # an operator who goes away must not cancel what has been done

    def _member_of(self, name: str) -> list[str]:
        return sorted(pool.name for pool in self._learner.pools.values() if name in pool.names)

    def _standing(self, name: str) -> dict[str, Any] | None:
        return {"pools": self._member_of(name)} if name in self._roster.names else None

    def _parsed(self, body: Mapping[str, Any]) -> tuple[Addition, ModelSettings | None]:
        """The body checked, and the model it defines; None where it only names one."""
        problems: list[Problem] = []
        addition, model = None, None
        try:
            addition = Addition.model_validate(body)
        except ValidationError as error:
            problems += validation_problems(error, Document(data=dict(body)), Addition)
        if "model" in body and not isinstance(body["model"], str):
            try:
                model = parse_definition(body["model"], self._env)
                problems += self._out_of_reach(model)
            except ConfigError as error:
                problems += error.problems
        if addition is None or problems:
            raise InvalidFields(
                [{"param": p.path, "message": p.message + (f"; {p.hint}" if p.hint else "")} for p in problems]
            )
        return addition, model

    def _out_of_reach(self, model: ModelSettings) -> Iterator[Problem]:
        message = "is at a private address that no model of the configuration is at"
        for i, place in enumerate(model.places):
            if self._reach.forbids(place.url):
                path = "model.endpoint" if model.endpoint is not None else f"model.endpoints[{i}].url"
                yield Problem(path, message, "set server.private_upstreams, or define the model in the configuration")

    def _pool(self, name: str, param: str) -> Pool:
        pools = self._learner.pools
        if name not in pools:
            raise UnknownModel(name, list(pools), param)
        return pools[name]

    def _check_known(self, name: str) -> None:
        if name not in self._roster.names:
            raise UnknownModel(name, self._roster.names)
        if name in self._roster.problems:
            raise _conflict(f"{name!r} is out: {self._roster.problems[name]}", None)

    def _check_new(self, name: str) -> None:
        if name in self._learner.pools:
            raise _conflict(f"{name!r} is a pool's name; give the model another", list(self._learner.pools))
        if name in self._roster.names:
            raise _conflict(
                f"there is a model {name!r} already; name it to let it join pools, or remove it first", None
            )
        if len(self._roster.names) >= _MOST_MODELS:
            raise _conflict(f"there are {_MOST_MODELS:,} models, the most there can be", None)

    def _check_joining(self, pool: Pool, name: str, model: ModelSettings | None) -> None:
        if name in pool.names:
            raise _conflict(f"{name!r} is in pool {pool.name!r} already", list(pool.names))
        if len(pool.names) >= _MOST_MEMBERS:
            raise _conflict(f"pool {pool.name!r} has {_MOST_MEMBERS} models, the most it can have", None)
        for other in map(self._roster.model, pool.names):
            if model is None or other is None:
                continue
            its, theirs = takes(model.kind, model.protocol), takes(other.kind, other.protocol)
            if its != theirs:
                raise _conflict(f"{name!r} takes {its}, pool {pool.name!r} {theirs}", list(pool.names))

    def _entry(self, name: str) -> dict[str, Any]:
        model = self._roster.model(name)
        pools = [pool for pool in self._learner.pools.values() if name in pool.names]
        shown = ("kind", "endpoint", "upstream_model", "price", "timeout_s", "max_connections")
        settings = {} if model is None else model.model_dump(include=set(shown))
        return {
            "name": name,
            "source": "configuration" if self._roster.configured(name) else "runtime",
            "problem": self._roster.problems.get(name),
            **{setting: settings.get(setting) for setting in shown},
            "pools": [_part(pool, pool.names.index(name)) for pool in pools],
        }


def _part(pool: Pool, arm: int) -> dict[str, Any]:
    """A model's part in a pool: its state under the limits, and how many observations stand behind it, discounted."""
    counts = {head: float(pool.heads.counts(row, pool.step)[arm]) for head, row in _COUNTED.items()}
    newcomer = pool.names[arm] in pool.newcomers.names
    return {"pool": pool.name, "state": pool.filters.states[arm], "newcomer": newcomer, "evidence": counts}


_COUNTED = {"quality": QUALITY, "latency": LATENCY}


def _audited(what: str, name: str, before: Any, after: Any, by: str | None) -> Event:
    """Who changed what, beside the events that do it."""
    row = {"ts": time.time(), "subject": "models", "what": what, "pool": None, "model": name}
    return change_event(row | {"before": before, "after": after, "reason": None, "by": by})


def _check_leaving(pool: Pool, name: str) -> None:
    if len(pool.names) == 1:
        raise _conflict(f"{name!r} is the last model of pool {pool.name!r}", list(pool.names))
    try:
        for_other_arms(pool.policy, [arm for arm, other in enumerate(pool.names) if other != name])
    except InvalidInput as error:
        raise _conflict(f"{name!r} cannot leave pool {pool.name!r}: {error}", list(pool.names)) from None


def _conflict(message: str, present: Any) -> Conflict:
    return Conflict(message, present, "model_conflict")
