"""The routes of the dashboard, a part of `handlers.Handlers`: the page and its files, and what it asks for.

The page and its files hold no data and are open; everything they show is asked for with the admin key.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from serving.admission import Principal
from serving.dashboard.assets import POLICY, asset, page
from serving.dashboard.feed import Feed
from serving.dashboard.live import Live
from serving.dashboard.why import Decisions
from serving.errors import CallerGone
from serving.history import MOST_EVENTS, History, Wanted
from serving.query_strings import count_of, moment_of, parameters_of

__all__ = ["Dashboard", "DashboardHandlers"]

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The parts that answer. `open`: nobody is asked for a key."""

    live: Live
    feed: Feed
    decisions: Decisions
    open: bool


class DashboardHandlers:
    """What `Handlers` has besides; it provides the parts, who is admitted, and how a stream is written."""

    _dashboard: Dashboard
    _history: History

    def dashboard_routes(self) -> list[web.RouteDef]:
        """The table of these routes."""
        return [
            web.get("/dashboard", self.dashboard),
            web.get("/dashboard/{file}", self.dashboard_file),
            web.get("/admin/live", self.admin_live, allow_head=False),  # its body never ends
            web.get("/admin/events", self.admin_events),
            web.get("/admin/decisions", self.admin_decisions),
            web.get("/admin/decisions/{id:.+}", self.admin_decision),
        ]

    async def dashboard(self, request: web.Request) -> web.Response:
        """`GET /dashboard`: the page, without any data."""
        del request
        body = page(asks_for_key=not self._dashboard.open)
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=_HEADERS)

    async def dashboard_file(self, request: web.Request) -> web.Response:
        """`GET /dashboard/{file}`: a script or a style sheet of the page."""
        found = asset(request.match_info["file"])
        if found is None:
            raise web.HTTPNotFound
        headers = _HEADERS | {"ETag": found.etag}
        if request.headers.get("If-None-Match") == found.etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=found.body, content_type=found.content_type, charset="utf-8", headers=headers)

    async def admin_live(self, request: web.Request) -> web.StreamResponse:
        """`GET /admin/live`: a pool's figures as server-sent events, all at first and then every second."""
        self._admit_admin(request)
        given = parameters_of(request.query, "pool")
        with self._dashboard.feed.listen(given.get("pool")) as events:
            response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
            response.content_type = "text/event-stream"
            try:
                await self._passed_on(response.prepare(request))
                async for event in events:
                    await self._passed_on(response.write(event))
                await self._passed_on(response.write_eof())
            except CallerGone:
                if request.transport is not None:
                    request.transport.abort()
        return response

    async def admin_events(self, request: web.Request) -> web.Response:
        """`GET /admin/events`: what happened to pools and models and who changed what, newest first."""
        self._admit_admin(request)
        given = parameters_of(request.query, "limit", "pool", "kind", "since", "cursor")
        limit = count_of(given, "limit", default=100, at_most=MOST_EVENTS)
        since = moment_of(given, "since")
        wanted = Wanted(limit, given.get("kind"), given.get("pool"), since, given.get("cursor"))
        return _json(await self._history.of(wanted))

    async def admin_decisions(self, request: web.Request) -> web.Response:
        """`GET /admin/decisions`: the last decisions, newest first."""
        self._admit_admin(request)
        given = parameters_of(request.query, "limit", "pool")
        limit = count_of(given, "limit", default=100, at_most=100)
        return _json({"decisions": self._dashboard.decisions.last(limit, given.get("pool"))})

    async def admin_decision(self, request: web.Request) -> web.Response:
        """`GET /admin/decisions/{id}`: why one call went where it did, and what came of it."""
        self._admit_admin(request)
        return _json(self._dashboard.decisions.why(request.match_info["id"], time.time()))

    def _admit_admin(self, request: web.Request) -> Principal:
        raise NotImplementedError

    async def _passed_on(self, writing: Awaitable[Any]) -> None:
        raise NotImplementedError


def _json(body: Any) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
