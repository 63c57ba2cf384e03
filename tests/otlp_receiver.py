"""An OTLP receiver over HTTP: takes spans as OpenTelemetry's own messages, and keeps them as plain values.

Served in a thread of the tests' own process. `answers` are statuses to give first, one for each batch.
"""

from __future__ import annotations

import gzip
from collections import deque

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {1: "internal", 2: "server", 3: "client"}


class Receiver:
    """What has come: every span, the requests' headers, and the raw bytes of all bodies."""

    def __init__(self) -> None:
        self.spans: list[dict] = []
        self.headers: list[dict] = []
        self.raw = b""
        self.answers: deque[int] = deque()
        self.rejects = 0
        self.app = web.Application(client_max_size=2**26)
        self.app.router.add_post("/v1/traces", self.take)

    async def take(self, request):
        self.headers.append(dict(request.headers))
        body = await request.read()  # aiohttp has undone the compression
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        if self.answers:
            return web.Response(status=self.answers.popleft())
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [plain(span) | {"resource": about} for span in scope.spans]
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.rejects
        return web.Response(body=answer.SerializeToString(), content_type="application/x-protobuf")

    def trace(self, trace_id):
        """The spans of a trace by the time they began, once its root is there; else none."""
        spans = sorted((s for s in self.spans if s["trace_id"] == trace_id), key=lambda s: (s["begun"], -s["ended"]))
        return spans if any(span["kind"] == "server" for span in spans) else []


def plain(span):
    return {
        "trace_id": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "state": span.trace_state,
        "name": span.name,
        "kind": KINDS[span.kind],
        "begun": span.start_time_unix_nano,
        "ended": span.end_time_unix_nano,
        "failed": span.status.code == 2,
        **attributes(span.attributes),
    }


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
