"""The response cache in a call's way, between admission and routing: an answer that is kept, one under way, or a call.

Decides who may have which answer, logs each that is given, and keeps what may be kept. Never chooses a model, and
teaches nothing: an answer from here is no experience of the model that once gave it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Protocol

import numpy as np
import orjson

from bandit.types import Outcome
from serving.errors import DeadlineExceeded, NotCached, UnknownModel
from serving.routing import Answer, AnswerStream
from serving.traffic.assembly import complete, events_of
from serving.traffic.cache import AnswerCache, Stored
from serving.traffic.cache_key import CacheControl, cache_key, deterministic, read_cache_control
from serving.traffic.flights import Flights
from serving.traffic.steering import unlearned
from serving.wire import answer_body

if TYPE_CHECKING:
    from bandit.types import Decision
    from serving.learner import Learner
    from serving.metrics import Metrics
    from serving.model_settings import ModelSettings
    from serving.records import Caller, Labels, Record
    from serving.traffic.cache_settings import CacheSettings
    from serving.traffic.state import Traffic
    from serving.wire import Call

__all__ = ["Caching", "Way"]


class Way(Protocol):
    """The way of a call that no kept answer serves; `serving.routing.Routing`."""

    def deadline_s(self, pool: str) -> float:
        """Seconds for all attempts of a call of the pool."""
        ...

    async def complete(self, call: Call, caller: Caller) -> Answer:
        """A call that is answered in one piece."""
        ...

    def stream(
        self, call: Call, caller: Caller, *, assemble_bytes: int | None = None
    ) -> AbstractAsyncContextManager[AnswerStream]:
        """A call that is answered event by event; with `assemble_bytes` put together, too, up to that size."""
        ...


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What one pool keeps, and what is under way to it. A purge puts a new one in its place."""

    settings: CacheSettings
    answers: AnswerCache
    flights: Flights[Stored]


@dataclass(frozen=True, slots=True)
class _Request:
    """A call that may be served from the cache, and whose answer may be kept."""

    call: Call
    caller: Caller
    shelf: _Shelf
    key: bytes
    control: CacheControl
    labels: Labels
    began: float


@dataclass(frozen=True, slots=True)
class _Found:
    """An answer to give: one that was kept `age_s` ago, or that another's call brought after `waited_s`."""

    stored: Stored
    age_s: float = 0.0
    waited_s: float = 0.0


class Caching:
    """The caches of the pools in `settings`.

    `labels`: what is logged of a call, `secret` hashes keys, `clock` is monotonic. What `before` keeps is kept for
    pools whose settings it has.
    """

    def __init__(
        self,
        way: Way,
        learner: Learner,
        traffic: Traffic,
        settings: Mapping[str, CacheSettings],
        *,
        labels: Callable[[Call, Caller], Labels],
        metrics: Metrics,
        secret: bytes,
        clock: Callable[[], float],
        before: Caching | None = None,
    ) -> None:
        self._way, self._learner, self._traffic, self._metrics = way, learner, traffic, metrics
        self._labels, self._secret, self._clock = labels, secret, clock
        self.shelves: dict[str, _Shelf] = {}
        kept = {} if before is None else before.shelves
        for pool, of in settings.items():
            same = pool in kept and kept[pool].settings == of
            self.shelves[pool] = kept[pool] if same else _new_shelf(of)
        self._definitions: dict[str, tuple[ModelSettings | None, bytes]] = {}

    async def complete(self, call: Call, caller: Caller) -> Answer:
        """A call that is answered in one piece. Raises NotCached, InvalidRequest, and what routing raises."""
        request = self._request(call, caller)
        if request is None:
            return await self._way.complete(call, caller)
        found = await self._found(request)
        if found is not None:
            record, outcome = await self._given(request, found)
            decision = record.decision
            body = found.stored.body.replace(found.stored.origin.encode(), decision.decision_id.encode())
            return Answer(decision, outcome, body, found.waited_s, record.labels, 0)
        with request.shelf.flights.leading(request.key) as flight:
            answer = await self._way.complete(call, caller)
            flight.land(self._kept(request, answer.decision, answer.outcome, answer.body))
        return answer

    @contextlib.asynccontextmanager
    async def stream(self, call: Call, caller: Caller) -> AsyncIterator[AnswerStream]:
        """A call that is answered event by event; one from the cache says what the answer said in few events."""
        request = self._request(call, caller)
        if request is None:
            async with self._way.stream(call, caller) as answer:
                yield answer
            return
        found = await self._found(request)
        if found is not None:
            record, _ = await self._given(request, found)
            stored, decision_id = found.stored, record.decision.decision_id
            whole = orjson.loads(stored.body)
            events = b"".join(events_of(call.kind, whole, decision_id, stored.model, usage=call.wants_usage))
            yield AnswerStream(record.decision, _once(events), stored.model, record, 0)
            return
        with request.shelf.flights.leading(request.key) as flight:
            most = request.shelf.settings.max_answer_bytes
            async with self._way.stream(call, caller, assemble_bytes=most) as answer:
                yield answer
            flight.land(self._assembled(request, answer))

    def purge(self, pool: str) -> int:
        """Drop all that a pool keeps, and what is under way to it; how many there were. Raises UnknownModel."""
        if pool not in self.shelves:
            raise UnknownModel(pool, list(self.shelves), "pool")
        before = self.shelves[pool]
        self.shelves[pool] = _new_shelf(before.settings)
        return len(before.answers)

    def kept(self) -> Iterator[tuple[str, AnswerCache]]:
        """What each pool keeps, for metrics."""
        return ((pool, shelf.answers) for pool, shelf in self.shelves.items())

    # --- what may be served

    def _request(self, call: Call, caller: Caller) -> _Request | None:
        """None where the cache has no part in a call; NotCached where the caller wants no other answer."""
        began, shelf = time.perf_counter(), self.shelves.get(call.model)
        control = read_cache_control(call.cache_control)
        key = labels = None
        if shelf is not None and control.keep and (deterministic(call) or not shelf.settings.only_deterministic):
            labels = self._labels(call, caller)
            if not self._on_trial(call.model, labels):
                models = self._models(call.model)
                key = cache_key(self._secret, call, caller.principal, shelf.settings.scope, models)
        if shelf is None or key is None or labels is None:
            if control.only_if_cached:
                raise NotCached
            if shelf is not None:
                self._metrics.cached(call.model, "bypassed")
            return None
        return _Request(call, caller, shelf, key, control, labels, began)

    def _on_trial(self, pool: str, labels: Labels) -> bool:
        """Whether what a call gets is being compared: then a model must be asked, and nobody else have the answer."""
        traffic = self._traffic.pools[pool]
        if traffic.canary.running:
            return True
        units = ((experiment, experiment.unit(labels)) for experiment in traffic.experiments.values())
        return any(unit is not None and experiment.variant(unit) is not None for experiment, unit in units)

    def _models(self, pool: str) -> bytes:
        """The models that may answer, and where each is: an answer of another set of them is another answer."""
        names = self._learner.pools[pool].names
        held, _ = self._traffic.pools[pool].canary.steer(names)
        may = (name for name, out in zip(names, held, strict=True) if not out and self._traffic.usable(pool, name))
        return b"\n".join(map(self._definition, may))

    def _definition(self, name: str) -> bytes:
        settings = self._learner.roster.model(name)
        known = self._definitions.get(name)
        if known is None or known[0] is not settings:  # a model that left and came again may be another one
            places = [] if settings is None else [settings.endpoint, *(place.url for place in settings.endpoints)]
            upstream = None if settings is None else settings.upstream_model
            known = self._definitions[name] = (settings, orjson.dumps([name, upstream, places]))
        return known[1]

    def _allowed(self, pool: str, model: str) -> bool:
        """Whether a model's answers may be given: it is in the pool, not disabled, and within the pool's limits."""
        of = self._learner.pools.get(pool)  # a reload may have taken it away while this call waited
        if of is None or model not in of.names or not self._traffic.usable(pool, model):
            return False
        return bool(of.filters.compliance()[of.names.index(model)] > 0.0)

    async def _found(self, request: _Request) -> _Found | None:
        """The answer to give; None where the call has to be made. Raises NotCached, DeadlineExceeded."""
        pool, control, shelf = request.call.model, request.control, request.shelf
        found = shelf.answers.get(request.key, self._clock()) if control.read else None
        fresh = found is not None and found[1] <= (inf if control.max_age_s is None else control.max_age_s)
        if found is not None and fresh and self._allowed(pool, found[0].model):
            self._metrics.cached(pool, "hit")
            return _Found(*found)
        if control.only_if_cached:
            raise NotCached
        if control.read and shelf.settings.coalesce and request.key in shelf.flights:
            stored = await self._joined(request)
            if stored is not None and self._allowed(pool, stored.model):
                self._metrics.cached(pool, "shared")
                return _Found(stored, waited_s=time.perf_counter() - request.began)
        self._metrics.cached(pool, "miss")
        return None

    async def _joined(self, request: _Request) -> Stored | None:
        """What another's call brings; the wait is of this call's own time."""
        call, caller, loop = request.call, request.caller, asyncio.get_running_loop()
        own_s = self._way.deadline_s(call.model)
        own_s = own_s if call.timeout_s is None else min(own_s, call.timeout_s)
        deadline = loop.time() + own_s
        caller.deadline = deadline if caller.deadline is None else min(caller.deadline, deadline)
        wait_s = min(request.shelf.settings.max_wait_s, caller.deadline - loop.time())
        stored = await request.shelf.flights.join(request.key, wait_s)
        if stored is None and loop.time() >= caller.deadline:
            raise DeadlineExceeded(own_s, [])
        return stored

    # --- what is given, and what is kept

    async def _given(self, request: _Request, found: _Found) -> tuple[Record, Outcome]:
        """Log an answer that no model was asked for: a decision and its outcome; durable on return."""
        call, stored, ts = request.call, found.stored, time.time()
        one = np.ones(1)
        decision_id = self._learner.ids.new(ts)
        decision = unlearned(call, decision_id, ts, (stored.model,), one > 0.0, one, 0, "cached")
        labels = replace(request.labels, origin=stored.origin)
        request.caller.about.decided(decision)
        record, durable = self._learner.record_decision(decision, labels)
        request.caller.about.logging(durable)
        outcome = Outcome(
            decision_id=decision_id,
            ts=ts,
            model=stored.model,
            status="ok",
            latency_s=max(0.0, time.perf_counter() - request.began),
            input_tokens=0,
            output_tokens=0,
            cost_usd=0.0,
            stream=call.stream,
            saved_usd=stored.cost_usd,
        )
        self._learner.note_outcome(record, outcome)
        await durable
        told = request.caller.headers
        told["Age"], told["x-pointsman-cost-usd"] = str(int(found.age_s)), f"{0.0:.9f}"
        if stored.cost_usd is not None:
            told["x-pointsman-saved-usd"] = f"{stored.cost_usd:.9f}"
        return record, outcome

    def _assembled(self, request: _Request, answer: AnswerStream) -> Stored | None:
        """Keep a streamed answer that came to its end."""
        whole = None if answer.assembly is None else answer.assembly.answer()
        outcome = answer.record.ended
        if whole is None or outcome is None:
            return None
        try:
            body = answer_body(whole, {"id": answer.decision.decision_id, "model": answer.model})
        except ValueError:  # nested too deeply to be written
            return None
        return self._kept(request, answer.decision, outcome, body)

    def _kept(self, request: _Request, decision: Decision, outcome: Outcome, body: bytes) -> Stored | None:
        """Keep an answer, where it may be: a whole one, not too large, of a model that met all limits."""
        settings = request.shelf.settings
        if outcome.status != "ok" or decision.infeasible or len(body) > settings.max_answer_bytes:
            return None
        kind = request.call.kind
        if kind in ("chat/completions", "completions") and not complete(orjson.loads(body), kind):
            return None
        tokens = None
        if outcome.input_tokens is not None and outcome.output_tokens is not None:
            tokens = outcome.input_tokens + outcome.output_tokens
        stored = Stored(body, decision.decision_id, outcome.model, tokens, outcome.cost_usd)
        request.shelf.answers.put(request.key, stored, self._clock())
        return stored


def _new_shelf(settings: CacheSettings) -> _Shelf:
    limits = (settings.ttl_s, settings.max_entries, settings.max_bytes, settings.max_tokens)
    return _Shelf(settings, AnswerCache(*limits), Flights())


async def _once(events: bytes) -> AsyncIterator[bytes]:
    yield events
