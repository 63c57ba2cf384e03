"""JWK sets: the public keys of whoever makes the tokens, from a file or a URL, read again as they change.

Takes public keys alone: a shared secret in a set would let its readers sign. A set that cannot be read leaves the last
one in force; where there never was one, the service says that it cannot tell, not that the token is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from serving.errors import Unauthorized, Unavailable

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from jwt import PyJWK

    from serving.access.settings import JwtSettings

__all__ = ["FileKeys", "UrlKeys", "parse_set"]

_log = logging.getLogger("pointsman.jwt")
_MOST_KEYS: Final = 1_000
_LOOK_S: Final = 1.0  # at most so often is it looked whether the file has changed
_KINDS: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # of keys, by the algorithm's first letters
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "EdDSA": "Ed25519"}


def parse_set(raw: bytes) -> tuple[Mapping[str, Any], ...]:
    """The public signing keys of a set, as their JWKs; raises ValueError where it is none."""
    data = orjson.loads(raw)
    entries = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(entries, list) or len(entries) > _MOST_KEYS:
        raise ValueError(f"it must be an object with at most {_MOST_KEYS:,} 'keys'")
    return tuple(
        entry
        for entry in entries
        if isinstance(entry, dict) and entry.get("kty") in _KINDS.values() and entry.get("use", "sig") == "sig"
    )


class _Set:
    """The keys of one reading; those of a kind or curve that is not supported are passed over when asked for."""

    def __init__(self, entries: tuple[Mapping[str, Any], ...]) -> None:
        self._entries = entries
        self._made: dict[tuple[int, str], PyJWK | None] = {}

    def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The key that `kid` names and `algorithm` may use; without a kid, the only such key."""
        fitting = [i for i, entry in enumerate(self._entries) if _fits(entry, kid, algorithm)]
        if not fitting or (kid is None and len(fitting) > 1):
            return None
        at = (fitting[0], algorithm)
        if at not in self._made:  # bounded: keys times algorithms of the configuration
            self._made[at] = _made(self._entries[fitting[0]], algorithm)
        return self._made[at]


def _fits(entry: Mapping[str, Any], kid: str | None, algorithm: str) -> bool:
    if kid is not None and entry.get("kid") != kid:
        return False
    if entry.get("kty") != _KINDS.get(algorithm[:2]) or entry.get("alg", algorithm) != algorithm:
        return False
    return algorithm not in _CURVES or entry.get("crv") == _CURVES[algorithm]


def _made(entry: Mapping[str, Any], algorithm: str) -> PyJWK | None:
    from jwt import PyJWK, PyJWTError

    try:
        return PyJWK(dict(entry), algorithm)
    except PyJWTError:
        _log.warning("a key of the JWK set cannot be used (kid %.64r)", entry.get("kid"))
        return None


class FileKeys:
    """The set in a file, read again once it has changed."""

    def __init__(self, settings: JwtSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._max_bytes = Path(settings.jwks_file or ""), settings.jwks_max_bytes
        self._clock = clock
        self._looked_at, self._seen = -_LOOK_S, (0, 0)
        self._set: _Set | None = None
        self._look()

    async def key_for(self, kid: str | None, algorithm: str) -> PyJWK:
        """The key a token names; raises Unauthorized, and Unavailable while there is no set."""
        if self._clock() - self._looked_at >= _LOOK_S:
            self._look()
        return _known(self._set, kid, algorithm)

    def _look(self) -> None:
        self._looked_at = self._clock()
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return
            self._seen = seen
            if stat.st_size > self._max_bytes:
                raise ValueError(f"it is larger than {self._max_bytes:,} bytes")  # noqa: TRY301
            self._set = _Set(parse_set(self._path.read_bytes()))
        except (OSError, ValueError) as error:
            _log.warning("the JWK set in %s cannot be read: %s", self._path, _why(error))


class UrlKeys:
    """The set at a URL, fetched when asked, every `jwks_refresh_s`, and once for a key id that is not known yet."""

    def __init__(
        self, settings: JwtSettings, session: ClientSession, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._session, self._clock = settings, session, clock
        self._url = "" if settings.jwks_url is None else settings.jwks_url.get_secret_value()
        self._set: _Set | None = None
        self._asked_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Fetch the set again and again."""
        while True:
            await asyncio.sleep(self._settings.jwks_refresh_s)
            await self.refresh()

    async def key_for(self, kid: str | None, algorithm: str) -> PyJWK:
        """The key a token names; raises Unauthorized, and Unavailable while there is no set."""
        found = None if self._set is None else self._set.find(kid, algorithm)
        if found is not None:
            return found
        # Whoever makes up key ids must not make us fetch: not before jwks_retry_s, and all wait for the same answer.
        due = self._asked_at is None or self._clock() - self._asked_at >= self._settings.jwks_retry_s
        if due or self._fetching is not None:
            await self.refresh()
        return _known(self._set, kid, algorithm)

    async def refresh(self) -> None:
        """Fetch the set now; one that cannot be read leaves the last in force. All who ask meanwhile share one call."""
        if self._fetching is None:
            self._asked_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        await asyncio.shield(self._fetching)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        if not task.cancelled() and task.exception() is not None:
            _log.error("reading the JWK set failed", exc_info=task.exception())

    async def _fetch(self) -> None:
        from aiohttp import ClientError

        limit = self._settings.jwks_max_bytes
        try:
            async with (
                asyncio.timeout(self._settings.jwks_timeout_s),
                self._session.get(self._url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise ValueError(f"status {response.status}")  # noqa: TRY301
                raw = bytearray()
                async for chunk in response.content.iter_any():
                    raw += chunk
                    if len(raw) > limit:
                        raise ValueError(f"it is larger than {limit:,} bytes")  # noqa: TRY301
                self._set = _Set(parse_set(bytes(raw)))
        except (ClientError, OSError, ValueError) as error:
            _log.warning("the JWK set cannot be fetched: %s", _why(error))


def _known(keys: _Set | None, kid: str | None, algorithm: str) -> PyJWK:
    if keys is None:
        raise Unavailable("the keys that tokens are signed with cannot be read now")
    found = keys.find(kid, algorithm)
    if found is None:
        raise Unauthorized("the token is refused: nobody here knows the key it is signed with")
    return found


def _why(error: Exception) -> str:
    """What went wrong, without the URL, which may hold a secret."""
    from aiohttp import ClientError

    told = isinstance(error, ValueError) and not isinstance(error, ClientError)
    return str(error) if told else type(error).__name__
