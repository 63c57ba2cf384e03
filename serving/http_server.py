"""The HTTP server: listens, serves the handlers' routes, and stops in the order in which nothing accepted is lost.

Red first, then no new connections, then calls under way, then connections that are idle. Knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from serving.http_errors import error_middleware, without_request_bytes
from serving.telemetry.requests import name_request

if TYPE_CHECKING:
    from serving.lifecycle import Life
    from serving.metrics import Metrics
    from serving.settings import ServerSettings

__all__ = ["listening"]

_log = logging.getLogger("pointsman.http")
_BACKLOG = 1_024  # connections that wait to be accepted: with 128, a pause under load had the kernel reset some
_LAST_S = 1.0  # that requests which are no calls, and the last bytes of answers, get at the end


@contextlib.asynccontextmanager
async def listening(
    routes: Iterable[web.RouteDef],
    metrics: Metrics,
    server: ServerSettings,
    life: Life,
    *,
    around: Any,
    close_feeds: Callable[[], None],
    reuse_port: bool = False,
) -> AsyncIterator[str]:
    """The server, with the middleware `around` all others; yields host:port. On leaving it ends as `life` says.

    `reuse_port`: other processes of this user may listen on the same port, and each gets some of the connections.
    """
    app = web.Application(
        client_max_size=server.max_body_bytes, middlewares=[around, error_middleware(metrics, server.max_body_bytes)]
    )
    app.add_routes(routes)
    app.on_response_prepare.append(name_request)

    async def last_of_its_connection(request: web.Request, response: web.StreamResponse) -> None:
        # The parser takes a CONNECT's body for the next request: whoever stands before us may have read it as a body.
        if life.leaving or request.method == "CONNECT":
            response.headers["Connection"] = "close"
            response.force_close()

    app.on_response_prepare.append(last_of_its_connection)
    logging.getLogger("aiohttp.server").addFilter(without_request_bytes)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a caller who goes away cancels the upstream call
        auto_decompress=False,  # no body may grow while it is read
        access_log=None,
        keepalive_timeout=server.idle_timeout_s,  # from the connection's beginning, or the last answer's end
        shutdown_timeout=_LAST_S,
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it has just been set up
    _bound(runner.server, server.max_connections)
    try:
        shared = reuse_port or None  # None: uvloop's and asyncio's own choice
        await web.TCPSite(runner, server.host, server.port, backlog=_BACKLOG, reuse_port=shared).start()
        port = runner.addresses[0][1]
        yield f"[{server.host}]:{port}" if ":" in server.host else f"{server.host}:{port}"
    finally:
        await life.drain()
        for site in runner.sites:
            await site.stop()
        close_feeds()  # who listens never ends by himself
        await life.finish()
        await runner.cleanup()


def _bound(server: web.Server, most: int) -> None:
    """Have connections beyond `most` closed as soon as they are made: before a byte of theirs is read."""
    made, told = server.connection_made, [False]

    def connection_made(handler: Any, transport: asyncio.Transport) -> None:
        made(handler, transport)
        full = len(server.connections) > most
        if full:
            transport.abort()
        if full and not told[0]:
            _log.warning("connections are turned away: there are %d, the most by server.max_connections", most)
        told[0] = full

    server.connection_made = connection_made  # type: ignore[method-assign] # aiohttp has no bound of its own
