"""The routes of `/admin/faults`, a part of `handlers.Handlers`: each reads its request, and `Faults` does the work.

Decides nothing, and keeps nothing.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from aiohttp import web

from serving.admission import Principal
from serving.query_strings import parameters_of
from serving.traffic.fault_settings import FaultRule
from serving.traffic.faults import Faults
from serving.traffic.pool_desk import checked
from serving.wire import parse_body

__all__ = ["FaultHandlers"]


class FaultHandlers:
    """What `Handlers` has besides; it provides the faults, who is admitted, and how a body is read."""

    _faults: Faults

    def fault_routes(self) -> list[web.RouteDef]:
        """The table of these routes."""
        return [
            web.get("/admin/faults", self.admin_faults),
            web.post("/admin/faults", self.inject_fault),
            web.delete("/admin/faults", self.end_faults),
        ]

    async def admin_faults(self, request: web.Request) -> web.Response:
        """`GET /admin/faults`: the faults that stand."""
        self._admit_admin(request)
        return _json({"faults": self._faults.listed(time.time())})

    async def inject_fault(self, request: web.Request) -> web.Response:
        """`POST /admin/faults`: one more."""
        principal = self._admit_admin(request)
        rule = checked(FaultRule, parse_body(await self._read(request)))
        return _json(await self._faults.add(rule, principal.user, time.time()), status=201)

    async def end_faults(self, request: web.Request) -> web.Response:
        """`DELETE /admin/faults`: all of them end, or with `?id=` one."""
        principal = self._admit_admin(request)
        name = parameters_of(request.query, "id").get("id")
        return _json({"ended": await self._faults.remove(name, principal.user, time.time())})

    def _admit_admin(self, request: web.Request) -> Principal:
        raise NotImplementedError

    async def _read(self, request: web.Request) -> bytes:
        raise NotImplementedError


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
