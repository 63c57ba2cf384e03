"""The routes of budgets and usage, a part of `handlers.Handlers`: each reads its request, and has a desk do the work.

Decides nothing, and counts nothing.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from aiohttp import web

from serving.access.budget_desk import BudgetDesk
from serving.access.usage import Usage, UsageQuery
from serving.admission import Principal
from serving.errors import InvalidRequest
from serving.query_strings import moment_of, parameters_of
from serving.wire import parse_body

__all__ = ["SpendingHandlers"]

_FORMATS = ("json", "csv")


class SpendingHandlers:
    """What `Handlers` has besides; it provides the desks, who is admitted, and how a body is read."""

    _budgets: BudgetDesk
    _usage: Usage

    def spending_routes(self) -> list[web.RouteDef]:
        """The table of these routes."""
        return [
            web.get("/admin/budgets", self.admin_budgets),
            web.patch("/admin/budgets/{name:.+}", self.patch_budget),
            web.get("/admin/usage", self.admin_usage),
        ]

    async def admin_budgets(self, request: web.Request) -> web.Response:
        """`GET /admin/budgets`: every budget with what is spent, set aside and left of it."""
        self._admit_admin(request)
        return _json({"budgets": await self._budgets.listed_of_all(time.time())})

    async def patch_budget(self, request: web.Request) -> web.Response:
        """`PATCH /admin/budgets/{name}`: another limit from now on; null goes back to the configuration's."""
        principal, name = self._admit_admin(request), request.match_info["name"]
        body = parse_body(await self._read(request))
        return _json(await self._budgets.patch(name, body, principal.user, time.time()))

    async def admin_usage(self, request: web.Request) -> web.Response:
        """`GET /admin/usage`: what was used and spent, by columns of choice, as JSON or CSV."""
        self._admit_admin(request)
        given = parameters_of(request.query, "by", "from", "to", "format")
        by = tuple(name.strip() for name in given.get("by", "team,model").split(","))
        wanted = given.get("format", "csv" if "text/csv" in request.headers.get("Accept", "") else "json")
        if wanted not in _FORMATS:
            raise InvalidRequest(f"must be one of {', '.join(_FORMATS)}", "format")
        bill = await self._usage.of(UsageQuery(by, moment_of(given, "from"), moment_of(given, "to")))
        if wanted == "json":
            return _json(bill.to_json())
        headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
        return web.Response(text=bill.to_csv(), content_type="text/csv", headers=headers)

    def _admit_admin(self, request: web.Request) -> Principal:
        raise NotImplementedError

    async def _read(self, request: web.Request) -> bytes:
        raise NotImplementedError


def _json(body: Any) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
