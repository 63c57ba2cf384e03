"""The server of the workers' store stands still, dies, or stays away: what was acknowledged is there after."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter

import aiohttp
import pytest
from crew import crew_of, polled
from scripted_upstream import Scripted
from steered_service import ADMIN_KEY, AUTH, KEY

from tests.valkey_server import ValkeyServer

HELLO = [{"role": "user", "content": "hello"}]
CALLERS = 8
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
PASSWORD = "password-5f0c1d7e9b42a683"


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture
def config(scripted):
    return {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "models": [scripted.model(name) for name in ("one", "two")],
        "pools": [{"name": "auto", "models": ["one", "two"]}],
    }


@pytest.fixture
def server(tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("v"), durable=True) as server:
        yield server


class Callers:
    """Call and grade over connections of their own until told to stop; what was acknowledged, and what was refused."""

    def __init__(self, crew) -> None:
        self.crew, self.statuses, self.lost = crew, Counter(), 0
        self.served: list[str] = []
        self.graded: list[str] = []
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._caller()) for _ in range(CALLERS)]

    async def end(self):
        self._stop.set()
        async with asyncio.timeout(30):  # nobody waits without a bound
            await asyncio.gather(*self._tasks)

    async def some_more(self, count=30, timeout_s=30.0):
        """Return once so many more calls were served and graded."""
        until = len(self.graded) + count

        async def so_many():
            return len(self.graded) >= until or any(task.done() for task in self._tasks)

        await polled(so_many, timeout_s)

    async def _caller(self):
        timeout = aiohttp.ClientTimeout(total=25)
        while not self._stop.is_set():
            try:
                async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}, timeout=timeout) as http:
                    await self._call(http)
            except aiohttp.ClientError:
                self.lost += 1
                await asyncio.sleep(0.05)

    async def _call(self, http):
        body = {"model": "auto", "messages": HELLO, "max_tokens": 5}
        async with http.post(f"{self.crew.url}/v1/chat/completions", json=body) as response:
            answer = await response.json()
            if not self._told(response, answer):
                return
        self.served.append(answer["id"])
        item = {"decision_id": answer["id"], "quality": 0.5}
        async with http.post(f"{self.crew.url}/reward", json=item) as response:
            if self._told(response, await response.json()):
                self.graded.append(answer["id"])

    def _told(self, response, answer):
        """Count how it ended; 200, or a clear 503."""
        self.statuses[response.status] += 1
        assert response.status in (200, 503), answer
        if response.status == 503:
            assert set(answer["error"]) >= {"message", "type", "code"}
        return response.status == 200


async def nothing_lost(crew, callers):
    events = await crew.events()
    for kind, known in (("decision", callers.served), ("feedback", callers.graded), ("outcome", ())):
        counted = Counter(event["decision_id"] for event in events if event["kind"] == kind)
        assert set(known) <= set(counted), kind  # nobody waits for an outcome: the last ones may be missing
        assert set(counted.values()) == {1}, kind
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


async def test_a_server_that_stands_still_or_dies_and_is_back_at_once_costs_time_alone(config, server, tmp_path):
    """No worker ends, and no call is lost: all of them waited."""
    with crew_of(config, tmp_path, server) as crew:
        before, callers = crew.pids(), Callers(crew)
        await callers.some_more()
        server.stand_still()
        await asyncio.sleep(2)  # the time that it stands still
        server.go_on()
        await callers.some_more()
        server.kill()
        server.start()
        await callers.some_more()
        await callers.end()
        assert (crew.pids(), callers.lost) == (before, 0)
        assert set(callers.statuses) == {200}
        await nothing_lost(crew, callers)
        assert await asyncio.to_thread(crew.service.stop) == 0


async def test_a_server_that_stays_away_ends_the_workers_until_it_is_back(config, server, tmp_path):
    """Who calls meanwhile is told so, or finds nobody; started anew, the service has all that it acknowledged."""
    with crew_of(config, tmp_path, server) as crew:
        before, callers = crew.pids(), Callers(crew)
        await callers.some_more()
        server.kill()

        async def ended():
            return not set(crew.pids().values()) & set(before.values())

        await polled(ended, 30)
        server.start()
        await callers.some_more(timeout_s=40)
        await callers.end()
        assert callers.lost > 0
        await nothing_lost(crew, callers)
        assert "the service ends" in crew.service.log
        assert "Traceback" not in crew.service.log
        assert await asyncio.to_thread(crew.service.stop) == 0


@pytest.fixture
def guarded(server):
    """A server that wants a password, at an address that has it."""
    client = server.client()
    client.config_set("requirepass", PASSWORD)
    client.close()
    return f"unix://:{PASSWORD}@{server.path}"


async def test_the_password_of_the_store_is_said_nowhere(config, server, guarded, tmp_path, http):
    """Not when all is well, nor in what is said of a server that is gone; `check` names the store without it."""
    from tests.e2e.test_secrets import GET_ROUTES

    with crew_of(config, tmp_path, server, url=guarded) as crew:
        told = []
        async with crew.worker(1) as other:
            decision_id = (await other.at.ask("auto")).decision_id
            await polled(lambda: other.at.admin("GET", "/matrix?pool=auto"))
            for path, filled in GET_ROUTES.items():
                address = (filled if filled.startswith("/") else path + filled) + (
                    decision_id if filled.endswith("decisions/") else ""
                )
                async with other.http.get(crew.url + address, headers=ADMIN) as response:
                    body = response.content.readuntil(b"\n\n") if path == "/admin/live" else response.read()
                    told.append((await body).decode(errors="replace"))
                    assert response.status == 200 or "experiment" in path or "faults" in path, address
            for path in ("/metrics", "/readyz", "/healthz", "/openapi.json"):
                async with other.http.get(crew.url + path, headers=ADMIN) as response:
                    told.append(await response.text())
            before = crew.pids()
            server.kill()
            with contextlib.suppress(aiohttp.ClientError):
                told.append(str((await other.at.ask("auto", status=503)).body))

            async def ended():
                return not set(crew.pids().values()) & set(before.values())

            await polled(ended, 30)
        assert await asyncio.to_thread(crew.service.stop) >= 0
        told += [crew.service.log, crew.service.process.stdout.read().decode()]
        assert "the service ends" in crew.service.log
    path = tmp_path / "pointsman.yaml"
    for name, code in (("check", 0), ("serve", 1)):
        command = [sys.executable, "-m", "serving", name, "-c", str(path)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        told += [done.stdout, done.stderr]
        assert "unix://" in " ".join(told[-2:])
    for text in told:
        assert PASSWORD not in text
