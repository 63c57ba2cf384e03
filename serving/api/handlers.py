"""The routes that tell the API, a part of `handlers.Handlers`: the document, and the page to explore it.

The document is made when it is first asked for, beside the event loop, and kept.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from serving.api.page import POLICY, file, page

__all__ = ["ApiHandlers"]

_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


class ApiHandlers:
    """What `Handlers` has besides; it says who is admitted."""

    _document: bytes | None = None

    def api_routes(self) -> list[web.RouteDef]:
        """The table of these routes."""
        return [
            web.get("/openapi.json", self.openapi),
            web.get("/docs", self.docs),
            web.get("/docs/{file}", self.docs_file),
        ]

    async def openapi(self, request: web.Request) -> web.Response:
        """`GET /openapi.json`: every route, what it takes and answers."""
        await self._admit_operator(request)
        if self._document is None:
            self._document = await asyncio.to_thread(_made)
        headers = _HEADERS | {"ETag": f'"{sha256(self._document).hexdigest()[:16]}"'}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._document, content_type="application/json", headers=headers)

    async def docs(self, request: web.Request) -> web.Response:
        """`GET /docs`: the page."""
        await self._admit_operator(request)
        if (body := page()) is None:
            raise web.HTTPNotFound(reason="the page comes with: pip install 'pointsman[docs]'")
        headers = _HEADERS | {"Content-Security-Policy": POLICY}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    async def docs_file(self, request: web.Request) -> web.Response:
        """`GET /docs/{file}`: a script, a style sheet or an image of the page."""
        await self._admit_operator(request)
        found = file(request.match_info["file"])
        if found is None:
            raise web.HTTPNotFound
        headers = _HEADERS | {"ETag": found.etag}
        if request.headers.get("If-None-Match") == found.etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=found.body, content_type=found.content_type, headers=headers)

    async def _admit_operator(self, request: web.Request) -> None:
        raise NotImplementedError


def _made() -> bytes:
    from serving.api.document import document  # what it takes to make one is needed for nothing else

    try:
        return document(version("pointsman"))
    except PackageNotFoundError:
        return document("0")
