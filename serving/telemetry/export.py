"""Sends finished spans to an OTLP receiver over HTTP, in batches, from a bounded queue.

A receiver that is slow, down or wrong costs spans, which are counted, and never a call. Knows nothing of what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
from collections.abc import Callable

import aiohttp
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from serving.telemetry.settings import TracingSettings
from serving.telemetry.spans import Noted, message

__all__ = ["Exporter"]

_log = logging.getLogger("pointsman.tracing")
_RETRIED = (429, 502, 503, 504)  # as OTLP's specification says
_ANSWER_BYTES = 65_536
_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 10.0


class Exporter:
    """One receiver's. `count` is told what became of how many spans: exported, dropped, rejected or failed."""

    def __init__(
        self, settings: TracingSettings, session: aiohttp.ClientSession, count: Callable[[str, int], None]
    ) -> None:
        self._settings, self._session, self._count = settings, session, count
        self._headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._headers["Content-Type"] = "application/x-protobuf"
        if settings.compression == "gzip":
            self._headers["Content-Encoding"] = "gzip"
        self._waiting: list[Noted] = []
        self._enough, self._closing = asyncio.Event(), asyncio.Event()
        self._failing = False

    def put(self, spans: list[Noted]) -> None:
        """Have spans sent; all of them are dropped where the queue is full."""
        if len(self._waiting) + len(spans) > self._settings.queue_size or self._closing.is_set():
            self._count("dropped", len(spans))
            return
        self._waiting.extend(spans)
        if len(self._waiting) >= self._settings.batch_size:
            self._enough.set()

    async def run(self) -> None:
        """Send until `close`: full batches as soon as they are, and what there is every `flush_interval_s`."""
        size = self._settings.batch_size
        while not self._closing.is_set():
            await _wait(self._enough, self._settings.flush_interval_s)
            full = self._enough.is_set()
            self._enough.clear()
            # What comes while one is sent waits for its own: else as many were sent as an answer takes, of a few each.
            waiting = len(self._waiting)
            await self._send(waiting - waiting % size if full else waiting)
            if len(self._waiting) >= size:
                self._enough.set()

    async def close(self, running: asyncio.Task[None]) -> None:
        """Send what waits, within `timeout_s` for all of it, and end `running`; the rest is dropped."""
        self._closing.set()
        self._enough.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.timeout_s):
                await running  # cancelled with the wait for it
                await self._send(len(self._waiting))
        self._count("dropped", len(self._waiting))
        self._waiting.clear()

    async def _send(self, spans: int) -> None:
        """The first so many of those that wait, in batches."""
        for start in range(0, spans, self._settings.batch_size):
            size = min(self._settings.batch_size, spans - start)
            batch = self._waiting[:size]
            del self._waiting[:size]
            what = "dropped"
            try:
                what = await self._delivered(batch)
            finally:
                self._count(what, len(batch))

    async def _delivered(self, batch: list[Noted]) -> str:
        """What became of a batch."""
        body = await asyncio.to_thread(self._packed, batch)
        backoff_s = _BACKOFF_S
        for attempt in range(1, self._settings.attempts + 1):
            why, retry_after = await self._posted(body)
            if why is None:
                if self._failing:
                    _log.info("traces are delivered again")
                self._failing = False
                return "exported"
            if not self._failing:
                _log.warning("traces are not delivered: %s", why)
            self._failing = True
            if retry_after is None or attempt == self._settings.attempts or self._closing.is_set():
                break
            await _wait(self._closing, min(_MAX_BACKOFF_S, max(backoff_s, retry_after)))
            backoff_s *= 2
        return "failed"

    def _packed(self, batch: list[Noted]) -> bytes:
        request = ExportTraceServiceRequest()
        traces = request.resource_spans.add()
        traces.resource.attributes.add(key="service.name").value.string_value = self._settings.service_name
        part = traces.scope_spans.add()
        part.scope.name = "pointsman"
        part.spans.extend(map(message, batch))
        body = request.SerializeToString()
        return body if self._settings.compression == "none" else gzip.compress(body, compresslevel=1)

    async def _posted(self, body: bytes) -> tuple[str | None, float | None]:
        """Why it was not taken (None: it was), and after how many seconds to try again (None: not at all)."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                sending = self._session.post(
                    self._settings.endpoint, data=body, headers=self._headers, allow_redirects=False
                )
                async with sending as response:
                    raw = await response.content.read(_ANSWER_BYTES)
                    status, after = response.status, response.headers.get("Retry-After", "")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return type(error).__name__, 0.0
        if 200 <= status < 300:
            self._note_rejected(raw)
            return None, None
        return f"status {status}", (float(after[:6]) if after.isdecimal() else 0.0) if status in _RETRIED else None

    def _note_rejected(self, raw: bytes) -> None:
        """A receiver may take a batch but for some spans."""
        answer = ExportTraceServiceResponse()
        try:
            answer.ParseFromString(raw)
        except DecodeError:  # it took them, and says so in its own way
            return
        if rejected := answer.partial_success.rejected_spans:
            self._count("rejected", rejected)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
