"""The spans of a call, in OpenTelemetry's messages and its words for generative AI (semantic conventions 1.41).

A call is one span of kind SERVER with children: admission, decision, each attempt (kind CLIENT), logging. They are made
as messages at once: with the SDK's objects in between, one cost 82 µs until it was sent, instead of 15. It must never
see a prompt, an answer or a key.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving.telemetry.trace_context import TraceContext

if TYPE_CHECKING:
    from bandit.types import Decision, Outcome
    from serving.telemetry.export import Exporter
    from serving.upstream import Endpoint, ModelEndpoints
    from serving.wire import Call

__all__ = ["Trace", "Tracing"]

Value = str | int | float | bool | None
_OPERATIONS = {"chat/completions": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_PREFIX = "/v1/"


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
        self._operation, self._name = operation, operation
        own_id = self._random(8)
        self._context = context or TraceContext(self._random(16).hex(), own_id.hex(), "01")
        self._parent_id = b"" if context is None else bytes.fromhex(context.span_id)
        self._trace_id, self._id = bytes.fromhex(self._context.trace_id), own_id
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._begun = self._now()
        self._phase: tuple[str, int] | None = ("admission", self._begun)
        self._spans: list[Span] | None = []
        self._attributes: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "http.request.method": method,
            "http.route": path if operation != "infer" else "/v1/infer/{pool}",
        }
        self._attempt: tuple[bytes, int, str, dict[str, Value]] | None = None
        self._writing: tuple[asyncio.Future[None], int] | None = None
        self._attempts, self._cost_usd = 0, 0.0

    @property
    def trace_id(self) -> str:
        """In hex, for log lines."""
        return self._context.trace_id

    def admitted(self, call: Call) -> None:
        """The call may be made."""
        self._name = f"{self._operation} {call.model}"
        self._attributes["gen_ai.request.model"] = call.model
        if call.stream:
            self._attributes["gen_ai.request.stream"] = True
        self._end_phase()

    def deciding(self) -> None:
        """A model is about to be chosen."""
        self._phase = ("decision", self._now())

    def decided(self, decision: Decision) -> None:
        """It was, or an answer was found that needs none."""
        chosen: dict[str, Value] = {
            "pointsman.decision_id": decision.decision_id,
            "pointsman.pool": decision.pool,
            "pointsman.mode": decision.mode,
            "pointsman.model": decision.chosen,
            "pointsman.propensity": float(decision.propensity),
        }
        self._attributes.update(chosen)
        self._attributes["gen_ai.response.id"] = decision.decision_id
        if decision.mode == "cached":  # no attempt will say it
            self._attributes["gen_ai.response.model"] = decision.chosen
        self._end_phase(chosen)

    def logging(self, durable: asyncio.Future[None]) -> None:
        """The decision is being written."""
        self._writing = (durable, self._now())
        durable.add_done_callback(self._written)

    def attempting(self, number: int, model: ModelEndpoints, endpoint: Endpoint) -> Mapping[str, str]:
        """An attempt begins; the headers that make its span the upstream's parent."""
        own_id = self._random(8)
        # Kinds of endpoints beside OpenAI's say which they are; what speaks OpenAI's protocol counts as that.
        provider = getattr(model.settings, "kind", "openai")
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model.upstream_model,
            "server.address": endpoint.host,
            "server.port": endpoint.port,
            "pointsman.attempt": number,
            "pointsman.model": model.name,
            "pointsman.endpoint": endpoint.name,
        }
        self._attempt = (own_id, self._now(), f"{self._operation} {model.upstream_model}", attributes)
        return self._context.headers(own_id.hex())

    def attempted(self, outcome: Outcome) -> None:
        """It has ended."""
        if self._attempt is None:
            return
        (own_id, begun, name, attributes), self._attempt = self._attempt, None
        attributes["gen_ai.usage.input_tokens"] = outcome.input_tokens
        attributes["gen_ai.usage.output_tokens"] = outcome.output_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = outcome.cached_tokens
        attributes["http.response.status_code"] = outcome.http_status
        attributes["pointsman.cost_usd"] = outcome.cost_usd
        if outcome.stream:
            attributes["gen_ai.request.stream"] = True
            attributes["gen_ai.response.time_to_first_chunk"] = outcome.time_to_first_token_s
        self._attempts += 1
        self._cost_usd += outcome.cost_usd or 0.0
        error = None
        if outcome.status == "ok":
            self._attributes["gen_ai.response.model"] = outcome.model
        else:
            error = outcome.error or outcome.status
        span = self._span(name, begun, self._now(), attributes, own_id=own_id, kind=Span.SPAN_KIND_CLIENT, error=error)
        self._keep(span)

    def ended(self, status: int | None, error: str | None, request_id: str) -> None:
        """The call is over: `status` is what was answered; `error` the code of what went wrong, with it or after it."""
        fault = error is not None and (status is None or status >= 500 or status < 400)
        self._end_phase(error=error)
        if self._writing is not None and self._writing[0].done():  # so recently that its callback is still to come
            self._written(self._writing[0])
        self._attributes["http.response.status_code"] = status
        self._attributes["pointsman.request_id"] = request_id
        if self._attempts:
            self._attributes["pointsman.attempts"] = self._attempts
            self._attributes["pointsman.cost_usd"] = self._cost_usd
        root = self._span(
            self._name,
            self._begun,
            self._now(),
            self._attributes,
            own_id=self._id,
            parent_id=self._parent_id,
            kind=Span.SPAN_KIND_SERVER,
            error=error,
            fault=fault,
        )
        spans, self._spans = self._spans or [], None
        self._exporter.put([*spans, root])

    def _now(self) -> int:
        return self._epoch_ns + time.perf_counter_ns()

    def _end_phase(self, attributes: Mapping[str, Value] | None = None, error: str | None = None) -> None:
        if self._phase is not None:
            (name, begun), self._phase = self._phase, None
            self._keep(self._span(name, begun, self._now(), attributes or {}, error=error))

    def _written(self, durable: asyncio.Future[None]) -> None:
        if self._writing is not None:
            (_, begun), self._writing = self._writing, None
            failed = not durable.cancelled() and durable.exception() is not None
            self._keep(self._span("logging", begun, self._now(), {}, error="store_unavailable" if failed else None))

    def _keep(self, span: Span) -> None:
        if self._spans is None:  # the call is over: its caller left before this came to its end
            self._exporter.put([span])
        else:
            self._spans.append(span)

    def _span(
        self,
        name: str,
        begun: int,
        ended: int,
        attributes: Mapping[str, Value],
        *,
        own_id: bytes | None = None,
        parent_id: bytes | None = None,
        kind: Span.SpanKind.ValueType = Span.SPAN_KIND_INTERNAL,
        error: str | None = None,
        fault: bool = True,
    ) -> Span:
        """`fault`: whether an error is the service's own; refusing what a caller asks is none (HTTP's convention)."""
        span = Span(
            trace_id=self._trace_id,
            span_id=own_id or self._random(8),
            parent_span_id=self._id if parent_id is None else parent_id,
            name=name,
            kind=kind,
            start_time_unix_nano=begun,
            end_time_unix_nano=ended,
        )
        if self._context.state is not None:
            span.trace_state = self._context.state
        add = span.attributes.add
        for key, value in attributes.items():
            if isinstance(value, str):
                add(key=key).value.string_value = value
            elif isinstance(value, bool):
                add(key=key).value.bool_value = value
            elif isinstance(value, int):
                add(key=key).value.int_value = value
            elif value is not None:
                add(key=key).value.double_value = value
        if error is not None:
            add(key="error.type").value.string_value = error
            if fault:
                span.status.code = Status.STATUS_CODE_ERROR
        return span
