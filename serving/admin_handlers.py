"""The routes of `/admin` for models, benchmarks and the log, a part of `handlers.Handlers`: desks do the work.

Holds no state and decides nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from aiohttp import web

from serving.admin import AdminDesk
from serving.admission import Principal
from serving.benchmarks import BenchmarkDesk, parse_results
from serving.errors import CallerGone, InvalidRequest
from serving.log_export import Excerpt, LogExport
from serving.matrix import Matrix
from serving.query_strings import moment_of, number_of, parameters_of
from serving.wire import parse_body, parse_json

__all__ = ["AdminHandlers", "Reload"]

_CHUNK_BYTES = 1 << 18
Reload = Callable[[str, str | None], Coroutine[Any, Any, dict[str, Any]]]  # why, by whom; what became of it


class AdminHandlers:
    """What `Handlers` has besides; it provides the desks, who is admitted, and how a body is read."""

    _admin: AdminDesk
    _benchmarks: BenchmarkDesk
    _matrix: Matrix
    _export: LogExport
    _reload: Reload

    def admin_routes(self) -> list[web.RouteDef]:
        """The table of these routes."""
        return [
            web.get("/admin/models", self.admin_models),
            web.post("/admin/models", self.add_model),
            web.delete("/admin/models/{name:.+}", self.remove_model),
            web.post("/admin/benchmarks", self.post_benchmarks),
            web.get("/admin/matrix", self.admin_matrix),
            web.get("/admin/log.parquet", self.admin_log),
            web.post("/admin/reload", self.admin_reload),
        ]

    async def admin_models(self, request: web.Request) -> web.Response:
        """`GET /admin/models`: every model, its part in each pool, and what is wrong with one that is out."""
        self._admit_admin(request)
        return _json({"models": self._admin.models()})

    async def add_model(self, request: web.Request) -> web.Response:
        """`POST /admin/models`: a new model, or one that is there, joins pools."""
        principal = self._admit_admin(request)
        body = parse_body(await self._read(request))
        return _json(await self._admin.add(body, principal.user), status=201)

    async def remove_model(self, request: web.Request) -> web.Response:
        """`DELETE /admin/models/{name}`: it leaves all pools, or those of the query (`?pools=a&pools=b`)."""
        principal = self._admit_admin(request)
        unknown = [name for name in request.query if name != "pools"]
        if unknown:
            raise InvalidRequest("unknown; there is only pools", unknown[0])
        pools = request.query.getall("pools", [])
        return _json(await self._admin.remove(request.match_info["name"], pools, principal.user))

    async def post_benchmarks(self, request: web.Request) -> web.Response:
        """`POST /admin/benchmarks`: up to 1,000 graded answers of one run of a suite."""
        self._admit_admin(request)
        results = parse_results(parse_json(await self._read(request)))
        became = await self._benchmarks.accept(results, time.time())
        return _json({"recorded": became.recorded, "duplicates": became.duplicates})

    async def admin_matrix(self, request: web.Request) -> web.Response:
        """`GET /admin/matrix`: what benchmarks and traffic say of each model, in all and by category."""
        self._admit_admin(request)
        given = parameters_of(request.query, "pool", "days")
        days = number_of(given, "days", default=7.0, above=0.0, at_most=366.0)
        return _json(await self._matrix.of(given.get("pool"), days, time.time()))

    async def admin_reload(self, request: web.Request) -> web.Response:
        """`POST /admin/reload`: the configuration is read again, and applied whole or refused whole."""
        principal = self._admit_admin(request)
        return _json(await asyncio.shield(self._reload("POST /admin/reload", principal.user)))

    async def admin_log(self, request: web.Request) -> web.StreamResponse:
        """`GET /admin/log.parquet`: a table of the analytical log, or a stretch of time of it."""
        self._admit_admin(request)
        given = parameters_of(request.query, "table", "since", "until")
        excerpt = Excerpt(given.get("table", ""), moment_of(given, "since"), moment_of(given, "until"))
        with await self._export.open(excerpt) as file:
            headers = {
                "Content-Type": "application/vnd.apache.parquet",
                "Content-Length": str(file.seek(0, os.SEEK_END)),
                "Content-Disposition": f'attachment; filename="{excerpt.table}.parquet"',
            }
            file.seek(0)
            response = web.StreamResponse(headers=headers)
            try:
                await self._passed_on(response.prepare(request))
                while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                    await self._passed_on(response.write(chunk))
                await self._passed_on(response.write_eof())
            except CallerGone:
                if request.transport is not None:
                    request.transport.abort()
        return response

    def _admit_admin(self, request: web.Request) -> Principal:
        raise NotImplementedError

    async def _read(self, request: web.Request) -> bytes:
        raise NotImplementedError

    async def _passed_on(self, writing: Awaitable[Any]) -> None:
        raise NotImplementedError


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
