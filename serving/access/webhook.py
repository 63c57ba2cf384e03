"""Tells webhooks that a budget is warned of, spent or refuses calls: one at a time, from a bounded queue.

No call waits for it. What was not delivered when the service stops is not delivered later; the log's `changes` have
it. A URL may hold a secret: it is never shown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import orjson

if TYPE_CHECKING:
    from serving.access.budget_settings import BudgetEntry, MeteringSettings

__all__ = ["Webhooks"]

_log = logging.getLogger("pointsman.webhook")
_FIRST_PAUSE_S: Final = 0.5
_AGAIN: Final = (408, 425, 429)


class Webhooks:
    """Constructed in the running loop, which has a session to send with; `run` delivers until it is cancelled."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: MeteringSettings,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._session, self.settings, self._sleep = session, settings, sleep
        self._queue: asyncio.Queue[tuple[str, bytes, str]] = asyncio.Queue(settings.webhook_queue)
        self.delivered = self.failed = self.dropped = 0

    def put(self, entry: BudgetEntry, notice: dict[str, Any]) -> None:
        """Have the budget's webhook told, if it has one; what does not fit into the queue is dropped and logged."""
        _log.info("budget %s: %s", entry.name, notice["event"])
        if entry.webhook is None:
            return
        try:
            self._queue.put_nowait((entry.webhook.get_secret_value(), orjson.dumps(notice), entry.name))
        except asyncio.QueueFull:
            self.dropped += 1
            _log.error("budget %s: its webhook is not told, %d others wait", entry.name, self._queue.maxsize)

    async def run(self) -> None:
        """Deliver what comes."""
        while True:
            url, body, name = await self._queue.get()
            try:
                await self._deliver(url, body, name)
            except Exception as error:  # noqa: BLE001 - the task's boundary; its text could show the URL
                self.failed += 1
                _log.error("budget %s: its webhook was not told: %s", name, type(error).__name__)

    async def _deliver(self, url: str, body: bytes, name: str) -> None:
        why = ""
        for attempt in range(self.settings.webhook_attempts):
            if attempt:
                await self._sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                status = await self._send(url, body)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                why = type(error).__name__
                continue
            if status < 300:
                self.delivered += 1
                return
            why = f"it answered {status}"
            if status < 500 and status not in _AGAIN:
                break
        self.failed += 1
        _log.error("budget %s: its webhook was not told: %s", name, why)

    async def _send(self, url: str, body: bytes) -> int:
        timeout = aiohttp.ClientTimeout(total=self.settings.webhook_timeout_s)
        headers = {"Content-Type": "application/json"}
        async with self._session.post(
            url, data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            return response.status
