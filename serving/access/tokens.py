"""Puts the reader of tokens together as the configuration says, and takes it apart again.

Owns the task that fetches a JWK set from a URL and its session; nothing else here waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from serving.access.jwks import FileKeys, UrlKeys
from serving.access.jwt import FixedKey, TokenReader

if TYPE_CHECKING:
    from serving.access.settings import AuthSettings

__all__ = ["token_reader"]


@contextlib.asynccontextmanager
async def token_reader(auth: AuthSettings | None) -> AsyncIterator[TokenReader | None]:
    """The reader of tokens; None where the configuration takes none. A set at a URL is fetched before it is yielded."""
    settings = None if auth is None else auth.jwt
    if settings is None:
        yield None
    elif settings.jwks_file is not None:
        yield TokenReader(settings, FileKeys(settings))
    elif settings.jwks_url is not None:
        from aiohttp import ClientSession, DummyCookieJar

        async with ClientSession(cookie_jar=DummyCookieJar()) as session:
            keys = UrlKeys(settings, session)
            await keys.refresh()
            task = asyncio.create_task(keys.run())
            try:
                yield TokenReader(settings, keys)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    else:
        yield TokenReader(settings, FixedKey(settings))
