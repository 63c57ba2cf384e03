"""The routes of `/admin/keys`, a part of `handlers.Handlers`: each reads its request, and has the desk do the work.

Knows no key, and decides nothing; an answer with a secret is marked so that nothing between keeps it.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from serving.admin_keys import KeyDesk
from serving.admission import Principal
from serving.wire import parse_json

__all__ = ["KeyHandlers"]


class KeyHandlers:
    """What `Handlers` has besides; it provides the desk, who is admitted, and how a body is read."""

    _keys: KeyDesk

    def key_routes(self) -> list[web.RouteDef]:
        """The table of these routes."""
        return [
            web.get("/admin/keys", self.admin_keys),
            web.post("/admin/keys", self.create_key),
            web.post("/admin/keys/{id:.+}/rotate", self.rotate_key),
            web.delete("/admin/keys/{id:.+}", self.revoke_key),
        ]

    async def admin_keys(self, request: web.Request) -> web.Response:
        """`GET /admin/keys`: every key, never a secret."""
        self._admit_admin(request)
        return _json({"keys": self._keys.listed()})

    async def create_key(self, request: web.Request) -> web.Response:
        """`POST /admin/keys`: a new key, its secret in this answer only."""
        principal = self._admit_admin(request)
        body = parse_json(await self._read(request))
        return _json(await self._keys.create(body, principal.user), status=201)

    async def rotate_key(self, request: web.Request) -> web.Response:
        """`POST /admin/keys/{id}/rotate`: a new secret; the old one is valid for `grace_s` more seconds."""
        principal = self._admit_admin(request)
        raw = await self._read(request)
        body = parse_json(raw) if raw else {}
        return _json(await self._keys.rotate(request.match_info["id"], body, principal.user))

    async def revoke_key(self, request: web.Request) -> web.Response:
        """`DELETE /admin/keys/{id}`: revoked at once."""
        principal = self._admit_admin(request)
        return _json(await self._keys.revoke(request.match_info["id"], principal.user))

    def _admit_admin(self, request: web.Request) -> Principal:
        raise NotImplementedError

    async def _read(self, request: web.Request) -> bytes:
        raise NotImplementedError


def _json(body: Any, status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)
