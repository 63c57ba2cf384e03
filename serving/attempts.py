"""The attempts of one call: which endpoint each goes to, what each may take, and the one outcome that each leaves.

`async for attempt in attempts: async with attempt: …` makes them in order until one succeeds; a failure that another
attempt may mend ends its block quietly, any other leaves the loop. Knows nothing of what is asked or answered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from bandit.types import Outcome, Status
from serving.access.counters import Reservation
from serving.access.ledger import Ledger
from serving.access.worst_case import worst_case
from serving.endpoint import Endpoint
from serving.errors import (
    BudgetExhausted,
    CallerGone,
    DeadlineExceeded,
    InvalidRequest,
    NothingAvailable,
    ServiceError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from serving.learner import Learner
from serving.records import Caller, Record
from serving.retries import Plan
from serving.traffic.faults import Fault, Faults
from serving.upstream import ModelEndpoints, Upstreams
from serving.wire import Call, StreamRewriter, Usage

__all__ = ["Attempt", "Attempts", "Means"]

_NO_USAGE = Usage(None, None)
_SHORTLY_S = 0.001
_READING_SHARE = 0.1  # of an attempt's time: from there on it was the caller who let it pass


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Means:
    """What attempts are made with. `assumed_output_tokens`: what an answer may have where nobody says how many.

    `over`: whether the service gives up what is under way. `faults`: those on purpose; None where there are none.
    """

    learner: Learner
    upstreams: Upstreams
    ledger: Ledger
    rng: random.Random
    assumed_output_tokens: int
    over: Callable[[], bool] = _never
    faults: Faults | None = None


class Attempts:
    """One call's, within `deadline` (on the loop's clock); `fair_s`: the time whose overrun is the endpoint's fault.

    An attempt knows them, they keep none that has begun: all that a call held goes when it ends. A cycle would keep its
    body and its answer until the collector stops all calls to look for it.
    """

    def __init__(self, means: Means, call: Call, caller: Caller, plan: Plan, *, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        own_s = deadline_s if call.timeout_s is None else min(deadline_s, call.timeout_s)
        self.deadline = (loop.time() if caller.arrived is None else caller.arrived) + own_s
        if caller.deadline is not None:
            self.deadline = min(self.deadline, caller.deadline)
        self.deadline_s, self.fair_s = own_s, deadline_s
        self.means, self.call, self.caller = means, call, caller
        self.tried: list[dict[str, Any]] = []
        self.failed_at: set[Endpoint] = set()
        self.record: Record | None = None
        self.durable: asyncio.Future[None] | None = None
        self.error: ServiceError | None = None
        self.done = False
        self.started: float | None = None  # the first attempt's, by perf_counter
        self._plan = plan
        self._next: Attempt | None = None

    @classmethod
    async def begun(cls, means: Means, call: Call, caller: Caller, plan: Plan, *, deadline_s: float) -> Self:
        """With the first prepared; raises BudgetExhausted, NothingAvailable, Unavailable: nothing is recorded yet."""
        attempts = cls(means, call, caller, plan, deadline_s=deadline_s)
        attempts._next = await attempts._prepared(plan.first)
        return attempts

    def recorded(self, record: Record, durable: asyncio.Future[None]) -> None:
        """The decision has been recorded: attempts may begin."""
        self.record, self.durable = record, durable
        record.in_flight = True
        self._plan.budget.call()

    def abandon(self) -> None:
        """Nothing will be tried: give back what the first attempt set aside."""
        assert self._next is not None  # noqa: S101 - the first is prepared
        self.means.ledger.release(self._next.reservation)
        self._next = None

    def elsewhere(self, model: str, *, rested: bool) -> bool:
        """Whether an endpoint of the model can take this call at once that has not failed it, and is `rested`."""
        now = time.monotonic()
        known = self.means.upstreams
        return model in known and any(
            (endpoint.rested(now) if rested else endpoint.available(now)) and endpoint not in self.failed_at
            for endpoint in known[model].endpoints
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt:
        if self.done:
            raise StopAsyncIteration
        error, self.error = self.error, None
        if error is None:
            first, self._next = self._next, None
            assert first is not None  # noqa: S101 - it is prepared, and begins once
            return first
        try:
            return await self._another(error)
        except BaseException:
            self._end()
            raise

    def mends(self, error: UpstreamError, endpoint: Endpoint) -> bool:
        """Take note of an attempt that failed; whether anything is left to try is found out when it is asked for."""
        self.error = error
        self.failed_at.add(endpoint)
        self.tried.append(
            {"model": error.model, "endpoint": endpoint.name, "error": error.code}
            | ({} if error.http_status is None else {"status": error.http_status})
        )
        return True

    def ended(self) -> None:
        """The call has its answer, or an error that nothing mends."""
        self.done = True
        self._end()

    def _end(self) -> None:
        if self.record is not None:
            self.record.in_flight = False

    async def _another(self, error: ServiceError) -> Attempt:
        assert isinstance(error, UpstreamError)  # noqa: S101 - `mends` takes no other
        while True:
            left_s = self.deadline - asyncio.get_running_loop().time()
            following = None if left_s <= _SHORTLY_S else self._plan.after(error, self.elsewhere)
            if following is None or following.wait_s >= left_s:
                await self._give_up(error, late=left_s <= _SHORTLY_S)
            assert following is not None  # noqa: S101
            if following.wait_s:
                await asyncio.sleep(following.wait_s)
            try:
                return await self._prepared(following.model)
            except (BudgetExhausted, InvalidRequest, NothingAvailable):
                self._plan.unfit(following.model)

    async def _give_up(self, error: UpstreamError, *, late: bool) -> None:
        assert self.record is not None  # noqa: S101
        assert self.durable is not None  # noqa: S101
        await self.durable  # the error's response names the decision
        self.caller.headers["x-pointsman-attempts"] = str(len(self.tried))
        decision_id = self.record.decision.decision_id
        if late and not isinstance(error, UpstreamRefused):
            raise DeadlineExceeded(self.deadline_s, self.tried, decision_id)
        if isinstance(error, UpstreamRefused) or len(self.tried) <= 1:
            error.decision_id = decision_id
            raise error
        now = time.monotonic()
        waits = [
            self.means.upstreams[t["model"]].retry_after_s(now)
            for t in self.tried
            if t["model"] in self.means.upstreams
        ]
        message = f"{len(self.tried)} attempts failed, the last: {error}"
        raise NothingAvailable(message, self.tried, min(waits, default=1.0), decision_id)

    async def _prepared(self, model: str) -> Attempt:
        """An attempt on a model with its endpoint chosen and its worst case set aside."""
        means = self.means
        if model not in means.upstreams:  # it has left since it was chosen
            raise NothingAvailable(f"{model}: it is there no more", self.tried, _SHORTLY_S)
        endpoints = means.upstreams[model]
        endpoint = self._picked(endpoints)
        assumed = endpoints.unasked_output_tokens or means.assumed_output_tokens
        worst = worst_case(self.call, endpoints.arm.price, endpoints.max_output_tokens, assumed)
        reservation = await means.ledger.reserve(self.caller.principal, worst.usd, worst.tokens, time.time())
        call = self.call
        if reservation.hard and worst.max_tokens is not None:  # what was set aside must be what it can cost
            rest = {name: value for name, value in call.body.items() if name != "max_completion_tokens"}
            call = replace(call, body=rest | {"max_tokens": worst.max_tokens})
        try:
            if reservation.held and not endpoint.available(time.monotonic()):  # others were faster meanwhile
                endpoint = self._picked(endpoints)
            body = endpoints.provider.body(call, endpoints.upstream_model)
        except BaseException:  # what the protocol cannot say is known before anything is recorded or sent
            means.ledger.release(reservation)
            raise
        self._plan.made(model)
        number = self._plan.attempts - 1
        return Attempt(self, call, endpoints, endpoint, body=body, reservation=reservation, number=number)

    def _picked(self, endpoints: ModelEndpoints) -> Endpoint:
        now = time.monotonic()
        endpoint = endpoints.pick(self.means.rng, now, frozenset(self.failed_at))
        if endpoint is None:
            wait_s = endpoints.retry_after_s(now)
            raise NothingAvailable(f"{endpoints.name}: every endpoint is busy or down", self.tried, wait_s)
        return endpoint


class Attempt:
    """One attempt from start to outcome: whichever way its block is left, exactly one outcome is recorded."""

    def __init__(
        self,
        attempts: Attempts,
        call: Call,
        model: ModelEndpoints,
        endpoint: Endpoint,
        *,
        body: bytes,
        reservation: Reservation,
        number: int,
    ) -> None:
        self.call, self.body, self.model, self.endpoint, self.reservation = call, body, model, endpoint, reservation
        self._waited_s = 0.0
        self.usage = _NO_USAGE
        self.rewriter: StreamRewriter | None = None
        self.started = 0.0
        self.committed = False  # something was passed on: no other attempt can take over
        self._attempts, self._number = attempts, number
        self._first_event_s: float | None = None
        self._handed_over: float | None = None  # since when the caller reads what has come
        self._probe = False
        self._calls = 1  # that went as one with this
        self._fault: Fault | None = None
        self._sent = False  # by this attempt: what another sent is counted there, once, for the endpoint's breaker

    async def send(self) -> Any:
        """The endpoint's answer to the call, which may have gone there as one with others, but not with a fault."""
        if self._fault is not None:
            self._sent = True
            return await self._fault.send(self.endpoint, self.call, self.body)
        shared = await self.endpoint.send_shared(self.call, self._attempts.caller.principal.tenant, self._send_one)
        self._calls = shared.calls
        return shared.answer

    async def _send_one(self, call: Call) -> Any:
        self._sent = True
        body = self.body if call is self.call else self.model.provider.body(call, self.model.upstream_model)
        return await self.endpoint.send(call, body)

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The endpoint's streamed answer, to be entered inside the attempt."""
        if self._fault is not None:
            return self._fault.stream(self.endpoint, self.call, self.body)
        return self.endpoint.stream(self.call, self.body)

    def first_event(self) -> None:
        """Note the time of the answer's first event; what only keeps a connection alive is none."""
        if self._first_event_s is None:
            self._first_event_s = time.perf_counter() - self.started

    def handed_over(self) -> None:
        """What has come is the caller's to read."""
        self._handed_over = time.perf_counter()

    def taken(self) -> None:
        """It has been read; the next is the upstream's to say."""
        self._waited_s, self._handed_over = self.waited_s, None

    @property
    def waited_s(self) -> float:
        """Seconds that the caller took to read what had come, also if it still does: not the upstream's time."""
        now_s = 0.0 if self._handed_over is None else time.perf_counter() - self._handed_over
        return self._waited_s + now_s

    async def __aenter__(self) -> Self:
        self.started = time.perf_counter()
        if self._attempts.started is None:
            self._attempts.started = self.started
        self._probe = self.endpoint.breaker.begin()
        passed_on = self._attempts.caller.about.attempting(self._number, self.model, self.endpoint)
        if passed_on is not None:
            self.call = replace(self.call, passed_on=passed_on)
        if (faults := self._attempts.means.faults) is not None:
            self._fault = faults.draw(self.model.name, self.endpoint.name)
        now = asyncio.get_running_loop().time()
        self._given_s = min(self._attempts.deadline - now, self.model.timeout_s)
        self._timeout = asyncio.timeout_at(now + self._given_s)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        attempts = self._attempts
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            error = UpstreamTimeout(self.model.name, self._given_s)
        rushed = self._given_s < min(self.model.timeout_s, attempts.fair_s) - _SHORTLY_S
        read_slowly = self.waited_s > _READING_SHARE * self._given_s
        if error is None:
            self._record_outcome("ok", 200, None, failed=False)
        elif isinstance(error, UpstreamTimeout) and rushed:  # it was given too little time to be at fault
            self._record_outcome("cancelled", None, "deadline_exceeded", failed=None)
        elif isinstance(error, UpstreamTimeout) and read_slowly:  # nor where its caller took that time
            self._record_outcome("cancelled", None, "caller_read_slowly", failed=None)
        elif isinstance(error, UpstreamError):
            status: Status = "timeout" if isinstance(error, UpstreamTimeout) else "error"
            limited = error.http_status == 429  # which says that it is busy, and when again: not that it is down
            failed = None if limited else not isinstance(error, UpstreamRefused)
            self._record_outcome(status, error.http_status, error.code, failed=failed)
        elif isinstance(error, (asyncio.CancelledError, CallerGone)):
            why = "service_stopped" if attempts.means.over() else "caller_went_away"
            self._record_outcome("cancelled", None, why, failed=None)
        else:
            self._record_outcome("error", None, type(error).__name__, failed=None)
        if isinstance(error, UpstreamError) and not self.committed:
            return attempts.mends(error, self.endpoint)
        attempts.ended()
        if isinstance(error, UpstreamError):
            assert attempts.record is not None  # noqa: S101
            error.decision_id = attempts.record.decision.decision_id
            raise error
        return False

    def _record_outcome(
        self, status: Status, http_status: int | None, error: str | None, *, failed: bool | None
    ) -> None:
        attempts, means = self._attempts, self._attempts.means
        record = attempts.record
        assert record is not None  # noqa: S101 - attempts begin once the decision is recorded
        sent = self._sent or self.rewriter is not None
        self.endpoint.breaker.end(time.monotonic(), failed if sent else None, probe=self._probe)
        usage, estimated = self._usage(record, status)
        outcome = Outcome(
            decision_id=record.decision.decision_id,
            ts=time.time(),
            model=self.model.name,
            status=status,
            latency_s=max(0.0, time.perf_counter() - self.started - self.waited_s),
            time_to_first_token_s=self._first_event_s,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=self.model.cost_usd(usage, answered=status == "ok", calls=self._calls),
            attempt=self._number,
            http_status=http_status,
            error=error if self._fault is None else self._fault.told(status, error),
            stream=self.rewriter is not None,
            tokens_estimated=estimated,
            endpoint=self.endpoint.name,
            cached_tokens=usage.cached_tokens,
        )
        attempts.caller.tokens += (usage.input_tokens or 0) + (usage.output_tokens or 0)
        attempts.caller.about.attempted(outcome)
        try:
            means.learner.note_outcome(record, outcome)
        finally:  # in the step that booked it
            means.ledger.release(self.reservation)

    def _usage(self, record: Record, status: Status) -> tuple[Usage, bool]:
        """The tokens of the answer, or of the part that came, and whether they are an estimate."""
        if self.rewriter is None:
            return self.usage, False
        usage = self.rewriter.usage
        if usage.output_tokens is not None:
            return usage, False
        if status == "ok" or not self.rewriter.pieces:
            return usage, False
        # An answer that broke off: what came of it, at about one token an event, has been paid for.
        return Usage(record.decision.context.input_tokens, self.rewriter.pieces), True
