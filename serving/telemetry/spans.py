"""A span as it is noted while a call runs, and the OpenTelemetry message that it becomes when it is sent.

Noting takes little: the message is made beside the calls' way, many one after the other. Says nothing of what spans are
there.
"""

from __future__ import annotations

from functools import lru_cache

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

__all__ = ["Noted", "Value", "message"]

Value = str | int | float | bool | None


class Noted:
    """One span: `ids` are those of its trace and of the span above it (b"" for none), `state` the caller's tracestate.

    Attributes: `shared` are names and values that many spans have alike, `own` this one's alone. None is no value.
    """

    __slots__ = ("begun_ns", "ended_ns", "error", "fault", "ids", "kind", "name", "own", "shared", "span_id", "state")

    def __init__(
        self, ids: tuple[bytes, bytes], span_id: bytes, name: str, kind: Span.SpanKind.ValueType, state: str | None
    ) -> None:
        self.ids, self.span_id, self.name, self.kind, self.state = ids, span_id, name, kind, state
        self.begun_ns = self.ended_ns = 0
        self.shared: list[tuple[tuple[str, ...], tuple[Value, ...]]] = []
        self.own: list[tuple[str, Value]] = []
        self.error: str | None = None
        self.fault = False


def message(noted: Noted) -> Span:
    """What is sent."""
    span = Span(
        trace_id=noted.ids[0],
        parent_span_id=noted.ids[1],
        span_id=noted.span_id,
        name=noted.name,
        kind=noted.kind,
        start_time_unix_nano=noted.begun_ns,
        end_time_unix_nano=noted.ended_ns,
    )
    if noted.state is not None:
        span.trace_state = noted.state
    for names, values in noted.shared:
        # As they are in messages, which takes a tenth of making each anew.
        span.MergeFromString(_encoded(names, values))
    for name, value in noted.own:
        _add(span, name, value)
    if noted.error is not None:
        _add(span, "error.type", noted.error)
        if noted.fault:
            span.status.code = Status.STATUS_CODE_ERROR
    return span


@lru_cache(maxsize=4_096)
def _encoded(names: tuple[str, ...], values: tuple[Value, ...]) -> bytes:
    span = Span()
    for name, value in zip(names, values, strict=True):
        _add(span, name, value)
    encoded: bytes = span.SerializeToString()
    return encoded


def _add(span: Span, name: str, value: Value) -> None:
    if value is None:
        return
    attribute = span.attributes.add()
    attribute.key = name
    if isinstance(value, str):
        attribute.value.string_value = value
    elif isinstance(value, bool):
        attribute.value.bool_value = value
    elif isinstance(value, int):
        attribute.value.int_value = value
    else:
        attribute.value.double_value = value
