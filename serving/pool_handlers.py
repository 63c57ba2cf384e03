"""The routes of `/admin/pools`, a part of `handlers.Handlers`: each reads its request, and has the desk do the work.

Decides nothing, and knows neither pools nor models.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from aiohttp import web

from serving.admission import Principal
from serving.intake import Intake
from serving.traffic.pool_desk import PoolDesk
from serving.wire import parse_body

__all__ = ["PoolHandlers"]


class PoolHandlers:
    """What `Handlers` has besides; it provides the desk, the cache, who is admitted, and how a body is read."""

    _pools: PoolDesk
    _intake: Intake

    def pool_routes(self) -> list[web.RouteDef]:
        """The table of these routes; a pool's own name comes last, since it may have slashes."""
        return [
            web.get("/admin/pools", self.admin_pools),
            web.post("/admin/pools/{name:.+}/experiments", self.start_experiment),
            web.get("/admin/pools/{name:.+}/experiments/{experiment:.+}", self.admin_experiment),
            web.delete("/admin/pools/{name:.+}/experiments/{experiment:.+}", self.end_experiment),
            web.get("/admin/pools/{name:.+}/canary", self.admin_canary),
            web.post("/admin/pools/{name:.+}/canary", self.start_canary),
            web.delete("/admin/pools/{name:.+}/canary", self.end_canary),
            web.delete("/admin/pools/{name:.+}/cache", self.purge_cache),
            web.get("/admin/pools/{name:.+}", self.admin_pool),
            web.patch("/admin/pools/{name:.+}", self.patch_pool),
            web.patch("/admin/models/{name:.+}", self.patch_model),
        ]

    async def admin_pools(self, request: web.Request) -> web.Response:
        """`GET /admin/pools`: every pool and what is set about its traffic."""
        self._admit_admin(request)
        return _json({"pools": self._pools.pools()})

    async def admin_pool(self, request: web.Request) -> web.Response:
        """`GET /admin/pools/{name}`: one pool."""
        self._admit_admin(request)
        return _json(self._pools.pool(request.match_info["name"]))

    async def patch_pool(self, request: web.Request) -> web.Response:
        """`PATCH /admin/pools/{name}`: change its weights, its learning, its disabled models."""
        principal = self._admit_admin(request)
        body = parse_body(await self._read(request))
        return _json(await self._pools.patch(request.match_info["name"], body, principal.user, time.time()))

    async def patch_model(self, request: web.Request) -> web.Response:
        """`PATCH /admin/models/{name}`: disable it everywhere, or let it serve again."""
        principal = self._admit_admin(request)
        body = parse_body(await self._read(request))
        return _json(await self._pools.patch_model(request.match_info["name"], body, principal.user, time.time()))

    async def start_experiment(self, request: web.Request) -> web.Response:
        """`POST /admin/pools/{name}/experiments`: an experiment begins."""
        principal, name = self._admit_admin(request), request.match_info["name"]
        body = parse_body(await self._read(request))
        return _json(await self._pools.start_experiment(name, body, principal.user, time.time()), status=201)

    async def admin_experiment(self, request: web.Request) -> web.Response:
        """`GET /admin/pools/{name}/experiments/{experiment}`: what it has found so far."""
        self._admit_admin(request)
        return _json(self._pools.experiment(request.match_info["name"], request.match_info["experiment"]))

    async def end_experiment(self, request: web.Request) -> web.Response:
        """`DELETE /admin/pools/{name}/experiments/{experiment}`: it ends, and says what it had found."""
        principal, place = self._admit_admin(request), request.match_info
        status = await self._pools.end_experiment(place["name"], place["experiment"], principal.user, time.time())
        return _json(status)

    async def admin_canary(self, request: web.Request) -> web.Response:
        """`GET /admin/pools/{name}/canary`: where it stands, what it was seen to do, and what happened to it."""
        self._admit_admin(request)
        return _json({"canary": self._pools.canary(request.match_info["name"])})

    async def start_canary(self, request: web.Request) -> web.Response:
        """`POST /admin/pools/{name}/canary`: a model of the pool goes on trial."""
        principal, name = self._admit_admin(request), request.match_info["name"]
        body = parse_body(await self._read(request))
        return _json({"canary": await self._pools.start_canary(name, body, principal.user, time.time())}, status=201)

    async def end_canary(self, request: web.Request) -> web.Response:
        """`DELETE /admin/pools/{name}/canary`: a running one is aborted; a model kept out is let in again."""
        principal, name = self._admit_admin(request), request.match_info["name"]
        return _json({"canary": await self._pools.end_canary(name, principal.user, time.time())})

    async def purge_cache(self, request: web.Request) -> web.Response:
        """`DELETE /admin/pools/{name}/cache`: drop all answers that the pool keeps."""
        principal, name = self._admit_admin(request), request.match_info["name"]
        dropped = self._intake.caching.purge(name)
        await self._pools.note_purge(name, dropped, principal.user, time.time())
        return _json({"dropped": dropped})

    def _admit_admin(self, request: web.Request) -> Principal:
        raise NotImplementedError

    async def _read(self, request: web.Request) -> bytes:
        raise NotImplementedError


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
