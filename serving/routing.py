"""The way of one inference call: decide, send, score, log.

The decision is written while the upstream call is in flight and is durable before anything of the answer is released.
Every decision gets an outcome for each attempt, whatever happens: an answer, an error, a timeout, a caller who left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bandit.types import Decision, Outcome
from serving.attempts import Attempt, Attempts, Means
from serving.errors import NothingAvailable, UpstreamError
from serving.failure_settings import FailureSettings
from serving.records import Caller, Labels, Record
from serving.retries import Plan, RetryBudget
from serving.traffic.assembly import Assembly
from serving.wire import Call, EventReader, Kind, StreamRewriter, answer_body

if TYPE_CHECKING:
    from serving.providers.protocol import EventTranslator
    from serving.traffic.steering import Steering

__all__ = ["Answer", "AnswerStream", "Routing"]

_MAX_EVENT_BYTES = 1 << 20


@dataclass(slots=True)
class Answer:
    """A complete answer: the upstream's body with our id and model in it, and what the headers say.

    `upstream_s`: from the first attempt's start to the last one's answer.
    """

    decision: Decision
    outcome: Outcome
    body: bytes
    upstream_s: float
    labels: Labels
    attempts: int


@dataclass(slots=True)
class AnswerStream:
    """A streamed answer of `model`: events to pass on as they come. It must be iterated inside `Routing.stream`.

    `assembly`: all of it once it has ended, where that was asked for.
    """

    decision: Decision
    events: AsyncIterator[bytes]
    model: str
    record: Record
    attempts: int
    assembly: Assembly | None = None

    @property
    def labels(self) -> Labels:
        """What is logged beside the decision."""
        return self.record.labels


class Routing:
    """Routes calls to models. `failures`: by pool; `default` for calls of one model and pools that say nothing."""

    def __init__(
        self,
        means: Means,
        steering: Steering,
        failures: Mapping[str, FailureSettings],
        default: FailureSettings,
        usable: Callable[[str, str], bool],
    ) -> None:
        self._means, self._steering, self._usable = means, steering, usable
        self._failures, self._default = dict(failures), default
        self._budgets: dict[str, RetryBudget] = {}

    def decide(self, call: Call, caller: Caller, *, ts: float) -> tuple[Decision, Labels]:
        """Which model a call goes to, and what is logged beside it: of the chain stated, where its pool is out."""
        caller.about.deciding()
        try:
            decision, labels = self._steering.decide(call, caller, ts)
        except NothingAvailable:
            stated = self._failures.get(call.model, self._default).fallbacks or ()
            upstreams = self._means.upstreams
            able = [name for name in stated if self._usable(call.model, name) and upstreams.available(name)]
            able = [name for name in able if upstreams.can_say(name, call)]
            if not able:
                raise
            rested = [name for name in able if upstreams.rested(name)]
            decision, labels = self._steering.outside(call, caller, ts, (rested or able)[0])
        caller.about.decided(decision)
        return decision, labels

    @property
    def names(self) -> list[str]:
        """What callers may put in the field `model`: pools first, then models."""
        return [*self._means.learner.pools, *self._means.upstreams]

    def in_use(self) -> AbstractContextManager[None]:
        """For as long as a call may go this way: its endpoints stay open, also when a reload has made another way."""
        return self._means.upstreams.in_use()

    def deadline_s(self, pool: str) -> float:
        """Seconds for all attempts of a call of the pool."""
        return self._failures.get(pool, self._default).deadline_s

    def serves(self, name: str, kind: Kind) -> bool:
        """Whether a pool, by any of its models, or a model can serve calls of this kind."""
        return self._steering.serves(name, kind)

    def upstream_model(self, model: str) -> str:
        """What a model's own endpoint calls it."""
        return self._means.upstreams[model].upstream_model

    async def complete(self, call: Call, caller: Caller) -> Answer:
        """A call that is answered in one piece."""
        decision, labels = self.decide(call, caller, ts=time.time())
        return await self.perform(call, caller, decision, labels)

    async def perform(
        self, call: Call, caller: Caller, decision: Decision, labels: Labels, *, fallbacks: bool = True
    ) -> Answer:
        """A call whose decision has been made; without `fallbacks` its model alone is asked, once."""
        attempts = await self._begin(call, caller, decision, labels, fallbacks=fallbacks)
        async for attempt in attempts:
            async with attempt:
                answer = await attempt.send()
                provider = attempt.model.provider
                attempt.usage = provider.usage(call, answer)
                upstream_s = time.perf_counter() - (attempts.started or attempt.started)
                try:
                    marks = provider.marks(call, decision.decision_id, attempt.model.name)
                    rendered = answer_body(answer, marks)
                except ValueError as error:
                    message = f"malformed answer: {error}"
                    raise UpstreamError(attempt.model.name, message, 200, "upstream_malformed") from None
        assert attempts.durable is not None  # noqa: S101 - the call has been recorded
        assert attempts.record is not None  # noqa: S101
        await attempts.durable
        outcome = attempts.record.ended
        assert outcome is not None  # noqa: S101 - an attempt has ended
        return Answer(decision, outcome, rendered, upstream_s, labels, len(attempts.tried) + 1)

    @contextlib.asynccontextmanager
    async def stream(
        self, call: Call, caller: Caller, *, assemble_bytes: int | None = None
    ) -> AsyncIterator[AnswerStream]:
        """A call that is answered event by event; entered once the first has come: until then others may take over.

        `assemble_bytes`: put it together, too, where the whole is no larger than about that.
        """
        decision, labels = self.decide(call, caller, ts=time.time())
        attempts = await self._begin(call, caller, decision, labels, fallbacks=True)
        async for attempt in attempts:
            assembly = None if assemble_bytes is None else Assembly(call.kind, assemble_bytes)
            rewriter = StreamRewriter(
                decision.decision_id,
                attempt.model.name,
                show_usage=call.wants_usage,
                seen=None if assembly is None else assembly.feed,
            )
            attempt.rewriter = rewriter
            translator = attempt.model.provider.events(call)
            async with attempt, attempt.stream() as chunks:
                assert attempts.durable is not None  # noqa: S101 - the call has been recorded
                assert attempts.record is not None  # noqa: S101
                await attempts.durable
                events = _events(attempt, chunks, rewriter, translator)
                first = await anext(events, b"")
                attempt.committed = True
                made = len(attempts.tried) + 1
                passed_on = _with(first, events)
                yield AnswerStream(decision, passed_on, attempt.model.name, attempts.record, made, assembly)

    async def _begin(
        self, call: Call, caller: Caller, decision: Decision, labels: Labels, *, fallbacks: bool
    ) -> Attempts:
        """The call's attempts, its decision recorded; nothing is where it cannot be afforded or served."""
        settings = self._failures.get(decision.pool, self._default)
        if not fallbacks:
            alone = settings.retries.model_copy(update={"max_attempts": 1})
            settings = settings.model_copy(update={"retries": alone})
        budget = self._budgets.get(decision.pool) or self._budgets.setdefault(
            decision.pool, RetryBudget(settings.retries)
        )

        def others() -> Sequence[str]:
            return self._fallbacks(decision, settings, call.kind)

        plan = Plan(decision.chosen, settings, budget, others, self._means.rng)
        attempts = await Attempts.begun(self._means, call, caller, plan, deadline_s=settings.deadline_s)
        try:
            record, durable = self._means.learner.record_decision(decision, labels)
            caller.about.logging(durable)
            attempts.recorded(record, durable)
        except BaseException:
            attempts.abandon()
            raise
        return attempts

    def _fallbacks(self, decision: Decision, settings: FailureSettings, kind: Kind) -> list[str]:
        """The chain that is stated, or the pool's other feasible models by utility; those that can serve."""
        if decision.mode in ("pinned", "shadow"):
            return []
        stated = settings.fallbacks
        names = self._means.learner.ranked(decision) if stated is None else stated
        serves = self._means.upstreams.serves
        return [name for name in names if serves(name, kind) and self._usable(decision.pool, name)]


async def _with(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for event in rest:
        yield event


async def _events(
    attempt: Attempt, chunks: AsyncIterator[bytes], rewriter: StreamRewriter, translator: EventTranslator | None
) -> AsyncIterator[bytes]:
    reader, model = EventReader(_MAX_EVENT_BYTES), attempt.model.name
    async for chunk in chunks:
        passed: list[bytes] = []
        malformed: str | None = None
        try:
            for data in reader.feed(chunk):
                payloads = (data,) if translator is None else translator.translate(data)
                passed.extend(rewriter.rewrite(payload) for payload in payloads)
                if rewriter.done:
                    break
        except ValueError as error:
            malformed = str(error)
        if any(passed):
            attempt.first_event()
            attempt.handed_over()
            yield b"".join(passed)  # what came before the malformed event, too
            attempt.taken()
        if rewriter.done:
            return
        if malformed is not None:
            raise UpstreamError(model, f"malformed stream: {malformed}", 200, "upstream_malformed")
    if translator is not None or not rewriter.whole:
        raise UpstreamError(model, "the stream ended early", 200, "upstream_disconnected")
    yield rewriter.rewrite(b"[DONE]")
