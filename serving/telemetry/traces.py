"""The spans of a call, in OpenTelemetry's messages and its words for generative AI (semantic conventions 1.41).

A call is one span of kind SERVER with children: admission, decision, each attempt (kind CLIENT), logging. They are
noted here and become messages when they are sent (`serving.telemetry.spans`): with the SDK's objects in between, one
cost 82 µs until then. It must never see a prompt, an answer or a key.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serving.telemetry.spans import Noted
from serving.telemetry.trace_context import TraceContext

if TYPE_CHECKING:
    from bandit.types import Decision, Outcome
    from serving.endpoint import Endpoint
    from serving.telemetry.export import Exporter
    from serving.upstream import ModelEndpoints
    from serving.wire import Call

__all__ = ["Trace", "Tracing"]

_OPERATIONS = {"chat/completions": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_PREFIX = "/v1/"
_CALL = ("gen_ai.operation.name", "http.request.method", "http.route")
_ASKED = ("gen_ai.request.model", "gen_ai.request.stream")
_DECISION = ("pointsman.pool", "pointsman.mode", "pointsman.model")
_ATTEMPT = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "pointsman.model",
    "pointsman.attempt",
    "server.address",
    "server.port",
    "pointsman.endpoint",
)
_STATUS = ("http.response.status_code", "gen_ai.request.stream")
_ANSWERED = ("gen_ai.response.model",)
_ENDED = ("http.response.status_code", "pointsman.attempts")


class Tracing:
    """Begins the traces: of `sample_ratio` of the calls, and of each whose caller records its own trace; no other."""

    def __init__(self, exporter: Exporter, sample_ratio: float, rng: random.Random) -> None:
        self.exporter, self.rng = exporter, rng
        self._ratio = sample_ratio

    def begin(self, method: str, path: str, context: TraceContext | None) -> Trace | None:
        """The trace of a request that has come for this route; None: it is no call, or not sampled."""
        kind = path.removeprefix(_PREFIX)
        operation = _OPERATIONS.get(kind) or ("infer" if kind.startswith("infer/") else None)
        if operation is None:
            return None
        if context is not None:
            return Trace(self, operation, context, method, path) if context.sampled else None
        if self._ratio < 1.0 and self.rng.random() >= self._ratio:
            return None
        return Trace(self, operation, None, method, path)


class Trace:
    """One call's trace, from its arrival to its last byte."""

    def __init__(self, tracing: Tracing, operation: str, context: TraceContext | None, method: str, path: str) -> None:
        self._exporter, self._random = tracing.exporter, tracing.rng.randbytes
        self._operation = operation
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._context = context or TraceContext(self._random(16).hex(), "", "01")
        trace_id = bytes.fromhex(self._context.trace_id)
        self._ids = (trace_id, bytes.fromhex(self._context.span_id))  # the root is below the caller's, if there is one
        self._root = self._begun(operation, Span.SPAN_KIND_SERVER)
        self._ids = (trace_id, self._root.span_id)
        route = path if operation != "infer" else "/v1/infer/{pool}"
        self._root.shared.append((_CALL, (operation, method, route)))
        self._phase: Noted | None = self._begun("admission")
        self._attempt: Noted | None = None
        self._writing: tuple[asyncio.Future[None], Noted] | None = None
        self._attempts, self._cost_usd = 0, 0.0
        self._ended: list[Noted] | None = []

    @property
    def trace_id(self) -> str:
        """In hex, for log lines."""
        return self._context.trace_id

    def admitted(self, call: Call) -> None:
        """The call may be made."""
        self._root.name = f"{self._operation} {call.model}"
        self._root.shared.append((_ASKED, (call.model, call.stream or None)))
        self._end_phase()

    def deciding(self) -> None:
        """A model is about to be chosen."""
        self._phase = self._begun("decision")

    def decided(self, decision: Decision) -> None:
        """It was, or an answer was found that needs none."""
        for span in (self._root, self._phase):
            if span is not None:
                span.shared.append((_DECISION, (decision.pool, decision.mode, decision.chosen)))
                span.own.append(("pointsman.propensity", float(decision.propensity)))
        self._root.own.append(("pointsman.decision_id", decision.decision_id))
        self._root.own.append(("gen_ai.response.id", decision.decision_id))
        if decision.mode == "cached":  # no attempt will say it
            self._root.shared.append((_ANSWERED, (decision.chosen,)))
        self._end_phase()

    def logging(self, durable: asyncio.Future[None]) -> None:
        """The decision is being written."""
        self._writing = (durable, self._begun("logging"))
        durable.add_done_callback(self._written)

    def attempting(self, number: int, model: ModelEndpoints, endpoint: Endpoint) -> Mapping[str, str]:
        """An attempt begins; the headers that make its span the upstream's parent."""
        self._attempt = self._begun(f"{self._operation} {model.upstream_model}", Span.SPAN_KIND_CLIENT)
        # Kinds of endpoints beside OpenAI's say which they are; what speaks OpenAI's protocol counts as that.
        provider = getattr(model.settings, "kind", "openai")
        place = (endpoint.host, endpoint.port, endpoint.name)
        self._attempt.shared.append(
            (_ATTEMPT, (self._operation, provider, model.upstream_model, model.name, number, *place))
        )
        return self._context.headers(self._attempt.span_id.hex())

    def attempted(self, outcome: Outcome) -> None:
        """It has ended."""
        span, self._attempt = self._attempt, None
        if span is None:
            return
        span.shared.append((_STATUS, (outcome.http_status, outcome.stream or None)))
        span.own.append(("gen_ai.usage.input_tokens", outcome.input_tokens))
        span.own.append(("gen_ai.usage.output_tokens", outcome.output_tokens))
        span.own.append(("gen_ai.usage.cache_read.input_tokens", outcome.cached_tokens))
        span.own.append(("pointsman.cost_usd", outcome.cost_usd))
        if outcome.stream:
            span.own.append(("gen_ai.response.time_to_first_chunk", outcome.time_to_first_token_s))
        self._attempts += 1
        self._cost_usd += outcome.cost_usd or 0.0
        if outcome.status == "ok":
            self._root.shared.append((_ANSWERED, (outcome.model,)))
            self._end(span)
        else:
            self._end(span, outcome.error or outcome.status)

    def ended(self, status: int | None, error: str | None, request_id: str) -> None:
        """The call is over: `status` is what was answered; `error` the code of what went wrong, with it or after it."""
        self._end_phase(error)
        if self._writing is not None and self._writing[0].done():  # so recently that its callback is still to come
            self._written(self._writing[0])
        self._root.shared.append((_ENDED, (status, self._attempts or None)))
        self._root.own.append(("pointsman.request_id", request_id))
        if self._attempts:
            self._root.own.append(("pointsman.cost_usd", self._cost_usd))
        refused = status is not None and 400 <= status < 500  # by HTTP's convention no fault of who answers
        self._end(self._root, error, fault=not refused)
        spans, self._ended = self._ended or [], None
        self._exporter.put(spans)

    def _written(self, durable: asyncio.Future[None]) -> None:
        if self._writing is not None:
            (_, span), self._writing = self._writing, None
            failed = not durable.cancelled() and durable.exception() is not None
            self._end(span, "store_unavailable" if failed else None)

    def _begun(self, name: str, kind: Span.SpanKind.ValueType = Span.SPAN_KIND_INTERNAL) -> Noted:
        span = Noted(self._ids, self._random(8), name, kind, self._context.state)
        span.begun_ns = self._epoch_ns + time.perf_counter_ns()
        return span

    def _end_phase(self, error: str | None = None) -> None:
        if self._phase is not None:
            self._end(self._phase, error)
            self._phase = None

    def _end(self, span: Noted, error: str | None = None, *, fault: bool = True) -> None:
        span.ended_ns = self._epoch_ns + time.perf_counter_ns()
        span.error, span.fault = error, fault
        if self._ended is None:  # the call is over: its caller left before this came to its end
            self._exporter.put([span])
        else:
            self._ended.append(span)
