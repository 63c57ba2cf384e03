"""What the workers of one machine show each other, each at a Unix socket of its own that only their user can open.

One thing so far: a worker's metrics. Nothing else of the service is reachable there, and no key is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from pathlib import Path

    from serving.workers.told import Told

__all__ = ["Siblings"]

_log = logging.getLogger("pointsman.workers")
_ANSWER_S: Final = 1.0  # that a sibling has to answer; Prometheus waits for ten by default
_MOST_BYTES: Final = 64 << 20


class Siblings:
    """The other workers, as this one sees them. `own` makes what this one shows."""

    def __init__(self, told: Told, own: Callable[[], Awaitable[bytes]]) -> None:
        self.index, self._told, self._own = told.index, told, own

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer the others."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_ANSWER_S)
        await runner.setup()
        path = self._told.socket(self.index)
        try:
            await web.SockSite(runner, _bound(path)).start()
            yield
        finally:
            await runner.cleanup()
            path.unlink(missing_ok=True)

    async def metrics(self) -> dict[int, bytes | None]:
        """What each of the others shows; None: it did not answer in time."""
        others = [index for index in range(self._told.count) if index != self.index]
        return dict(zip(others, await asyncio.gather(*map(self._asked, others)), strict=True))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._own())

    async def _asked(self, index: int) -> bytes | None:
        connector = aiohttp.UnixConnector(str(self._told.socket(index)))
        try:
            async with (
                asyncio.timeout(_ANSWER_S),
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://worker/metrics") as response,
            ):
                response.raise_for_status()
                return await _bounded(response.content)
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            _log.warning("worker %d does not show its metrics: %s", index, error or type(error).__name__)
            return None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = b""
    async for part in content.iter_any():
        body += part
        if len(body) > _MOST_BYTES:
            raise aiohttp.ClientPayloadError(f"more than {_MOST_BYTES:,} bytes")
    return body


def _bound(path: Path) -> socket.socket:
    """A socket at `path`, in the place of what a process that was killed has left; for this user alone."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound
