"""Tracing, where the configuration asks for it: opened and closed here, its libraries imported here and only then."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from serving.telemetry.settings import TracingSettings
    from serving.telemetry.traces import Tracing

__all__ = ["open_tracing"]


@contextlib.asynccontextmanager
async def open_tracing(
    settings: TracingSettings | None, count: Callable[[str, int], None]
) -> AsyncIterator[Tracing | None]:
    """Traces while it is open; None without settings. `count` is told what became of spans."""
    if settings is None:
        yield None
        return
    from serving.telemetry.export import Exporter
    from serving.telemetry.traces import Tracing

    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        exporter = Exporter(settings, session, count)
        running = asyncio.create_task(exporter.run())
        try:
            yield Tracing(exporter, settings.sample_ratio, random.Random())
        finally:
            await exporter.close(running)
