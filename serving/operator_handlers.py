"""The routes of `/admin` for the service as a whole, a part of `handlers.Handlers`: configuration, snapshot, drain.

Decides nothing, and keeps nothing.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from aiohttp import web

from serving.admission import Principal
from serving.operator_desk import OperatorDesk
from serving.traffic.drain import Drain
from serving.traffic.pool_desk import PoolDesk

__all__ = ["OperatorHandlers"]


class OperatorHandlers:
    """What `Handlers` has besides; it provides the desks, and who is admitted."""

    _operator: OperatorDesk
    _drain: Drain
    _pools: PoolDesk

    def operator_routes(self) -> list[web.RouteDef]:
        """The table of these routes."""
        return [
            web.get("/admin/config", self.admin_config),
            web.get("/admin/canaries", self.admin_canaries),
            web.get("/admin/experiments", self.admin_experiments),
            web.get("/admin/snapshot", self.admin_snapshot),
            web.get("/admin/drain", self.admin_drain),
            web.post("/admin/drain", self.begin_drain),
            web.delete("/admin/drain", self.end_drain),
        ]

    async def admin_config(self, request: web.Request) -> web.Response:
        """`GET /admin/config`: the settings in force, secrets masked, and what was changed at run time."""
        self._admit_admin(request)
        return _json(self._operator.config() | {"draining": self._drain.status()["draining"]})

    async def admin_canaries(self, request: web.Request) -> web.Response:
        """`GET /admin/canaries`: every pool's canary."""
        self._admit_admin(request)
        return _json({"canaries": self._pools.canaries()})

    async def admin_experiments(self, request: web.Request) -> web.Response:
        """`GET /admin/experiments`: every pool's experiments."""
        self._admit_admin(request)
        return _json({"experiments": self._pools.experiments()})

    async def admin_snapshot(self, request: web.Request) -> web.Response:
        """`GET /admin/snapshot`: what was learned, as a file that another service can start from."""
        self._admit_admin(request)
        headers = {"Content-Disposition": 'attachment; filename="warmstart.npz"', "Cache-Control": "no-store"}
        body = self._operator.snapshot(time.time())
        return web.Response(body=body, content_type="application/zip", headers=headers)

    async def admin_drain(self, request: web.Request) -> web.Response:
        """`GET /admin/drain`: whether new calls are taken, and how many are under way."""
        self._admit_admin(request)
        return _json(self._drain.status())

    async def begin_drain(self, request: web.Request) -> web.Response:
        """`POST /admin/drain`: finish the calls under way, take no new ones, and be not ready."""
        principal = self._admit_admin(request)
        return _json(await self._drain.begin(principal.user, time.time()))

    async def end_drain(self, request: web.Request) -> web.Response:
        """`DELETE /admin/drain`: take calls again."""
        principal = self._admit_admin(request)
        return _json(await self._drain.end(principal.user, time.time()))

    def _admit_admin(self, request: web.Request) -> Principal:
        raise NotImplementedError


def _json(body: Any) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
