"""The way of one inference call: decide, send, score, log.

The decision is written while the upstream call is in flight and is durable before anything of the answer is released.
Every decision gets an outcome, whatever happens: an answer, an error, a timeout, or a caller who went away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from bandit.types import Context, Decision, Outcome, Status
from serving.admission import Principal
from serving.errors import CallerGone, InvalidRequest, UnknownModel, UpstreamError, UpstreamTimeout
from serving.learner import Learner
from serving.records import Labels, Record
from serving.upstream import Endpoint, Upstreams
from serving.wire import Call, EventReader, StreamRewriter, Usage, answer_body, upstream_body, usage_of

__all__ = ["Answer", "AnswerStream", "Routing"]

_MAX_EVENT_BYTES = 1 << 20
_NO_FEATURES = np.zeros(0, dtype=np.float32)


@dataclass(slots=True)
class Answer:
    """A complete answer: the upstream's body with our id and model in it, and what the headers say."""

    decision: Decision
    outcome: Outcome
    body: bytes
    upstream_s: float


@dataclass(slots=True)
class AnswerStream:
    """A streamed answer: events to pass on as they come. It must be iterated inside `Routing.stream`."""

    decision: Decision
    events: AsyncIterator[bytes]


class Routing:
    """Routes calls to models. `now` is unix time in seconds, `clock` a monotonic one."""

    def __init__(self, learner: Learner, upstreams: Upstreams) -> None:
        self._learner, self._upstreams = learner, upstreams

    def decide(self, call: Call, *, ts: float) -> Decision:
        """Which model a call goes to: a pool's choice, or the one model it names."""
        if call.model in self._learner.pools:
            return self._learner.decide(call.model, call.prompt, ts, call.limits)
        if call.model in self._upstreams:
            if call.limits.set:
                message = f"{call.model!r} is one model, and limits choose among those of a pool: leave them out"
                raise InvalidRequest(message, "model", "limits_need_pool")
            return _pinned(call, self._learner.ids.new(ts), ts)
        raise UnknownModel(call.model, self.names)

    @property
    def names(self) -> list[str]:
        """What callers may put in the field `model`: pools first, then models."""
        return [*self._learner.pools, *self._upstreams]

    def upstream_model(self, model: str) -> str:
        """What a model's own endpoint calls it."""
        return self._upstreams[model].upstream_model

    async def complete(self, call: Call, principal: Principal, tags: Mapping[str, str]) -> Answer:
        """A call that is answered in one piece."""
        decision = self.decide(call, ts=time.time())
        endpoint = self._upstreams[decision.chosen]
        body = upstream_body(call, endpoint.upstream_model)
        record, durable = self._learner.record_decision(decision, Labels(principal, tags))
        attempt = _Attempt(self._learner, record, durable, endpoint, stream=False)
        async with attempt:
            answer = await endpoint.send(call.kind, body)
            attempt.usage = usage_of(answer)
            upstream_s = time.perf_counter() - attempt.started
            try:
                rendered = answer_body(call.kind, answer, decision.decision_id, decision.chosen)
            except ValueError as error:
                raise UpstreamError(endpoint.name, f"malformed answer: {error}", 200, "upstream_malformed") from None
        await durable
        assert record.outcome is not None  # noqa: S101 - the attempt has ended
        return Answer(decision, record.outcome, rendered, upstream_s)

    @contextlib.asynccontextmanager
    async def stream(self, call: Call, principal: Principal, tags: Mapping[str, str]) -> AsyncIterator[AnswerStream]:
        """A call that is answered event by event, from the first on; entered once the upstream has begun to answer."""
        decision = self.decide(call, ts=time.time())
        endpoint = self._upstreams[decision.chosen]
        body = upstream_body(call, endpoint.upstream_model)
        record, durable = self._learner.record_decision(decision, Labels(principal, tags))
        attempt = _Attempt(self._learner, record, durable, endpoint, stream=True)
        async with attempt, endpoint.stream(call.kind, body) as chunks:
            await durable
            rewriter = StreamRewriter(decision.decision_id, decision.chosen, show_usage=call.wants_usage)
            attempt.rewriter = rewriter
            yield AnswerStream(decision, self._events(attempt, chunks, rewriter))

    async def _events(
        self, attempt: _Attempt, chunks: AsyncIterator[bytes], rewriter: StreamRewriter
    ) -> AsyncIterator[bytes]:
        reader = EventReader(_MAX_EVENT_BYTES)
        async for chunk in chunks:
            attempt.first_byte()
            passed: list[bytes] = []
            malformed: str | None = None
            try:
                for data in reader.feed(chunk):
                    passed.append(rewriter.rewrite(data))
                    if rewriter.done:
                        break
            except ValueError as error:
                malformed = str(error)
            if any(passed):
                handed_over = time.perf_counter()
                yield b"".join(passed)  # what came before the malformed event, too
                attempt.waited_s += time.perf_counter() - handed_over
            if rewriter.done:
                return
            if malformed is not None:
                raise UpstreamError(attempt.endpoint.name, f"malformed stream: {malformed}", 200, "upstream_malformed")
        if not rewriter.done:
            raise UpstreamError(attempt.endpoint.name, "the stream ended early", 200, "upstream_disconnected")


class _Attempt:
    """One attempt from start to outcome: whichever way its block is left, exactly one outcome is recorded."""

    def __init__(
        self, learner: Learner, record: Record, durable: asyncio.Future[None], endpoint: Endpoint, *, stream: bool
    ) -> None:
        self.endpoint = endpoint
        self.waited_s = 0.0  # for the caller to read what had come: not the upstream's time
        self.usage = Usage(None, None)
        self.rewriter: StreamRewriter | None = None
        self.started = 0.0
        self._learner, self._record, self._durable, self._stream = learner, record, durable, stream
        self._first_byte_s: float | None = None

    def first_byte(self) -> None:
        """Note the time of the answer's first byte."""
        if self._first_byte_s is None:
            self._first_byte_s = time.perf_counter() - self.started

    async def __aenter__(self) -> Self:
        self._record.in_flight = True
        self.started = time.perf_counter()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._record_outcome("ok", 200, None)
        elif isinstance(error, UpstreamError):
            status: Status = "timeout" if isinstance(error, UpstreamTimeout) else "error"
            self._record_outcome(status, error.http_status, error.code)
            error.decision_id = self._record.decision.decision_id
            await self._durable  # the error's response names the decision
        elif isinstance(error, (asyncio.CancelledError, CallerGone)):
            self._record_outcome("cancelled", None, "caller_went_away")
        else:
            self._record_outcome("error", None, type(error).__name__)

    def _record_outcome(self, status: Status, http_status: int | None, error: str | None) -> None:
        self._record.in_flight = False
        usage, estimated = self._usage(status)
        self._learner.note_outcome(
            self._record,
            Outcome(
                decision_id=self._record.decision.decision_id,
                ts=time.time(),
                model=self.endpoint.name,
                status=status,
                latency_s=time.perf_counter() - self.started - self.waited_s,
                time_to_first_token_s=self._first_byte_s,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost_usd=self.endpoint.cost_usd(usage.input_tokens, usage.output_tokens, usage.cached_tokens),
                http_status=http_status,
                error=error,
                stream=self._stream,
                tokens_estimated=estimated,
                cached_tokens=usage.cached_tokens,
            ),
        )

    def _usage(self, status: Status) -> tuple[Usage, bool]:
        """The tokens of the answer, or of the part that came, and whether they are an estimate."""
        if self.rewriter is None:
            return self.usage, False
        usage = self.rewriter.usage
        if usage.output_tokens is not None:
            return usage, False
        if status == "ok" or not self.rewriter.pieces:
            return usage, False
        # An answer that broke off: what came of it, at about one token an event, has been paid for.
        return Usage(self._record.decision.context.input_tokens, self.rewriter.pieces), True


def _pinned(call: Call, decision_id: str, ts: float) -> Decision:
    model, prompt = call.model, call.prompt
    one = np.ones(1)
    unknown = np.full(1, np.nan)
    return Decision(
        decision_id=decision_id,
        ts=ts,
        pool=model,
        mode="pinned",
        step=0,
        context=Context(_NO_FEATURES, "none", prompt.input_tokens, prompt.category),
        policy_version="pinned",
        arms=(model,),
        feasible=np.ones(1, dtype=np.bool_),
        probabilities=one,
        chosen=model,
        propensity=1.0,
        predicted_quality=unknown,
        predicted_cost_usd=unknown,
        predicted_latency_s=unknown,
    )
