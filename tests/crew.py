"""`serve --workers N` as tests see it: each worker by a connection of its own, its process, and the log all share.

Says what came back and never judges it; whatever is awaited here is awaited with a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from serving.valkey_store import ValkeyStore
from tests.conftest import eventually, running_service
from tests.steered_service import Steered

__all__ = ["Crew", "Worker", "crew_of"]

WAIT_S = 20.0
TRIES = 200
LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Worker:
    """One of them, by a connection that stays with it; `at` is what `steered_service` has for one service."""

    index: int
    http: aiohttp.ClientSession
    at: Steered


class Crew:
    """The workers of one running `service` over the store `name` at `url`."""

    def __init__(self, service: Any, url: str, name: str) -> None:
        self.service, self.url, self._store_url, self._name = service, service.url, url, name

    def pids(self) -> dict[int, int]:
        """The processes that run now, by worker."""
        found = {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.service.process.pid:
                    told = re.search(rb'POINTSMAN_WORKER=\{"index":(\d+)', (folder / "environ").read_bytes())
                    if told is not None:
                        found[int(told[1])] = int(folder.name)
        return found

    async def kill(self, index: int, *, wait: bool = True) -> None:
        """End a worker as a power cut would, and return once another serves in its place, or at once."""
        before = self.pids()[index]
        os.kill(before, signal.SIGKILL)
        if not wait:
            return
        await eventually(lambda: self.pids().get(index, before) != before, WAIT_S)
        await self.all_up()

    async def all_up(self) -> None:
        """Return once every worker shows its metrics."""

        async def up() -> bool:
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as response:
                return 'pointsman_worker_up{worker="' in (text := await response.text()) and not re.search(
                    r"pointsman_worker_up\{[^}]*\} 0\.0", text
                )

        await polled(up)

    @contextlib.asynccontextmanager
    async def worker(self, index: int) -> AsyncIterator[Worker]:
        """That one, by as many new connections as it takes to come to it."""
        for _ in range(TRIES):
            connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
            timeout = aiohttp.ClientTimeout(total=30)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
                if await asked(http, self.url) == index:
                    yield Worker(index, http, Steered(http, self.service))
                    return
        raise AssertionError(f"{TRIES} connections, and none came to worker {index}")

    @contextlib.asynccontextmanager
    async def workers(self, count: int = 2) -> AsyncIterator[list[Worker]]:
        """All of them."""
        async with contextlib.AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.worker(index)) for index in range(count)]

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[ValkeyStore]:
        """The store, for reading."""
        store = ValkeyStore(self._store_url, name=self._name)
        try:
            yield store
        finally:
            await store.close()

    async def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All events of the shared log in order, payloads parsed."""
        async with self.store() as store:
            found = store.read(0, LIMIT)
        return [
            {"seq": e.seq, "kind": e.kind, "decision_id": e.decision_id, "ts": e.ts, "payload": orjson.loads(e.payload)}
            for e in found
            if kind in (None, e.kind)
        ]

    async def changes(self, what: str | None = None) -> list[dict[str, Any]]:
        """The changes that were logged, or those of one kind."""
        rows = [event["payload"] for event in await self.events("change")]
        return [row for row in rows if what in (None, row["what"])]


@contextlib.contextmanager
def crew_of(config: dict[str, Any], folder: Path, server: Any, *, workers: int = 2, url: str = "") -> Iterator[Crew]:
    """Run so many workers over the store on `server`, named as `folder` is."""
    store = {"url": url or server.url, "name": folder.name} | config.get("store", {})
    with running_service(config | {"store": store}, folder, arguments=("--workers", str(workers))) as service:
        yield Crew(service, store["url"], folder.name)


async def polled(condition: Any, timeout_s: float = WAIT_S) -> Any:
    """As `eventually`, of a condition that is awaited; a connection that is lost meanwhile is asked anew."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            if value := await condition():
                return value
        assert time.monotonic() < give_up_at, "it never came true"
        await asyncio.sleep(0.02)


async def asked(http: aiohttp.ClientSession, url: str) -> int | None:
    """Which worker this connection has come to: who is asked shows its own metrics first."""
    async with http.get(f"{url}/metrics") as response:
        found = re.search(r'worker="(\d+)"', await response.text())
    return None if found is None else int(found[1])
