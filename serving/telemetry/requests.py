"""What is done around every request: it gets an id, its trace begins and ends, and a line of the log tells of it.

Knows nothing of what requests ask; what they become is for others to say (`serving.telemetry.about`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from serving.telemetry.about import ABOUT, About, under_way
from serving.telemetry.trace_context import read_trace_context

if TYPE_CHECKING:
    from serving.telemetry.traces import Tracing

__all__ = ["REQUEST_ID", "name_request", "request_middleware"]

REQUEST_ID = "x-request-id"
_SANE = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")
_PROBES = ("/healthz", "/readyz", "/metrics")
_log = logging.getLogger("pointsman.access")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request_middleware(tracing: Tracing | None, *, access: bool, rng: random.Random) -> Any:
    """The outermost middleware; `access`: log each request."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = time.perf_counter()
        given = request.headers.get(REQUEST_ID)
        sane = given is not None and _SANE.fullmatch(given)
        request_id = given if given is not None and sane else f"req-{rng.getrandbits(80):020x}"
        about = request[ABOUT] = About(request_id, read_trace_context(request.headers))
        under_way.set(about)
        if tracing is not None:
            about.trace = tracing.begin(request.method, request.path, about.context)
        response: web.StreamResponse | None = None
        try:
            response = await handler(request)
        except (asyncio.CancelledError, ConnectionResetError):
            about.error = "caller_went_away"
            raise
        finally:
            gone = about.error == "caller_went_away"
            status = None if response is None or gone else response.status
            if about.trace is not None:
                about.trace.ended(status, about.error, about.request_id)
            if access and request.path not in _PROBES:
                _tell(request, about, response, status, begun)
        return response

    return middleware


async def name_request(request: web.Request, response: web.StreamResponse) -> None:
    """Tell the caller the request's id; a signal that every response sends before its headers go out."""
    about = request.get(ABOUT)
    if about is not None:
        response.headers[REQUEST_ID] = about.request_id


def _tell(
    request: web.Request, about: About, response: web.StreamResponse | None, status: int | None, begun: float
) -> None:
    """One line; the route and not the path, which may hold whatever a caller puts there."""
    resource = request.match_info.route.resource
    fields: dict[str, Any] = {
        "method": request.method,
        "route": None if resource is None else resource.canonical,
        "status": status,
        "duration_ms": round((time.perf_counter() - begun) * 1e3, 2),
    }
    if about.decision is not None:
        served = None if response is None else response.headers.get("x-pointsman-model")
        fields["pool"], fields["mode"] = about.decision.pool, about.decision.mode
        fields["model"] = served or about.decision.chosen
    if about.error is not None:
        fields["error"] = about.error
    _log.info("request", extra={"fields": fields})
