"""The connections to one Valkey server: how it is reached and checked, how scripts run, how long trouble is borne.

It knows nothing of events, batches or followers, and what it raises or logs never has the address's password in it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from serving.store import StoreUnusable
from serving.valkey_scripts import LAYOUT_VERSION, OPEN

if TYPE_CHECKING:
    import valkey.asyncio

__all__ = ["ValkeyLink", "ended", "without_credentials"]

_T = TypeVar("_T")
_OLDEST_MAJOR = 7
_FIND_TIMEOUT_S = 1.0  # the event loop stands still meanwhile
_RETRY_PAUSE_S = 0.05


class ValkeyLink:
    """Checked clients of the server at `url`, for keys that begin with `{name}:`; opening blocks for milliseconds.

    `client`, `committer` and `follower` are for the event loop: who uses them sets the time, as `insist` does. `reader`
    is for any thread, `finder` for questions asked on the event loop. `retry_s`: how long a server that does not answer
    is asked again. Raises StoreUnusable.
    """

    def __init__(self, url: str, name: str, retry_s: float) -> None:
        self.where, self.prefix, self.retry_s = without_credentials(url), f"{{{name}}}:", retry_s
        try:
            import valkey
            import valkey.asyncio
            from valkey.backoff import NoBackoff
            from valkey.exceptions import ConnectionError as Unreachable
            from valkey.exceptions import TimeoutError as Late
            from valkey.exceptions import ValkeyError
            from valkey.retry import Retry

            from serving.valkey_line import Line
        except ImportError as error:
            raise StoreUnusable(self.where, "the package valkey is missing: install pointsman[valkey]") from error
        self.lost: tuple[type[Exception], ...] = (Unreachable, Late, OSError)
        self.failed: tuple[type[Exception], ...] = (ValkeyError, OSError)
        self._attempt_s = retry_s / 2  # so there are two attempts
        timeouts: dict[str, Any] = {"socket_timeout": self._attempt_s, "socket_connect_timeout": self._attempt_s}
        once = {"retry": Retry(NoBackoff(), 0)}
        again_at_once = {"retry": Retry(NoBackoff(), 1), "socket_timeout": _FIND_TIMEOUT_S}
        try:
            self.client: valkey.asyncio.Valkey = valkey.asyncio.Valkey.from_url(
                url, socket_connect_timeout=self._attempt_s
            )
            self.committer, self.follower = Line(self.client), Line(self.client)
            self.reader = valkey.Valkey.from_url(url, **timeouts | once)  # `insist_now` asks again
            self.finder = valkey.Valkey.from_url(url, **timeouts | again_at_once, retry_on_error=list(self.lost))
            self.reader.set_response_callback("XRANGE", _as_it_came)  # a dictionary for every event costs more than it
            self.log_id, self.position = self.insist_now(self._opened)
        except ValueError:  # its text may quote the address
            raise StoreUnusable(self.where, "its address is none: valkey://user:password@host:6379/0") from None
        except self.failed as error:
            raise StoreUnusable(self.where, f"{error}") from error

    def key(self, name: str) -> str:
        """The key of that name in this log's layout."""
        return self.prefix + name

    def script(self, client: Any, text: str) -> Callable[[Sequence[Any]], Any]:
        """Runs by its hash over one of the clients; to be awaited if that is of the event loop."""
        run = client.register_script(text)
        return lambda args: run([self.key("log")], args)

    async def insist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """What `attempt` gives, made again for `retry_s` while the server cannot be reached."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.retry_s
        while True:
            try:
                async with asyncio.timeout(self._attempt_s):
                    return await attempt()
            except self.lost:
                if loop.time() >= deadline:
                    raise
            await asyncio.sleep(_RETRY_PAUSE_S)

    def insist_now(self, question: Callable[[], _T]) -> _T:
        """As `insist`, and this thread does nothing else meanwhile."""
        deadline = time.monotonic() + self.retry_s
        while True:
            try:
                return question()
            except self.lost:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_PAUSE_S)

    async def close(self) -> None:
        """Give all connections up."""
        self.finder.close()
        self.reader.close()
        for line in (self.committer, self.follower):
            await line.drop()
        await self.client.aclose()

    def _opened(self) -> tuple[bytes, int]:
        info: dict[str, Any] = self.reader.info()  # type: ignore[assignment]
        reason = _unfit(info)
        if reason:
            raise StoreUnusable(self.where, reason)
        version, log_id, position = self.script(self.reader, OPEN)([LAYOUT_VERSION, secrets.token_hex(8)])
        if version is None or int(version) != LAYOUT_VERSION:
            raise StoreUnusable(
                self.where,
                f"{self.key('log')} has layout {(version or b'?').decode()} and this program knows {LAYOUT_VERSION};"
                " use its program, or another store.name",
            )
        return log_id, int(position)


async def ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: in the client, waiting at the same time for a timeout, one can get lost."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_RETRY_PAUSE_S)


def _as_it_came(response: Any, **_: Any) -> Any:
    return response


def _unfit(info: dict[str, Any]) -> str:
    version = str(info.get("redis_version", "0"))
    if int(version.partition(".")[0]) < _OLDEST_MAJOR:
        return f"it speaks version {version}, and {_OLDEST_MAJOR} is the oldest that can be used"
    if info.get("cluster_enabled"):
        return "it is part of a cluster; use a server of its own"
    if info.get("role", "master") != "master":
        return "it is a replica; name the server that takes writes"
    if info.get("maxmemory") and info.get("maxmemory_policy", "noeviction") != "noeviction":
        return f"it may drop what was stored: set maxmemory-policy to noeviction, it is {info['maxmemory_policy']}"
    return ""


def without_credentials(url: str) -> str:
    """The address as it may be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"  # also of a password that was not escaped
