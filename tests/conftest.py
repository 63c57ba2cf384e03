"""Fixtures shared by tests that start the real program: trial upstreams in a thread, the service as a child process.

Whatever is started here is ended here, whether its test passes or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# As the command line does (serving/cli.py), before anything imports numpy: threads that spin cost more than they bring.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import aiohttp
import orjson
import pytest
import yaml
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, not about a law.
settings.register_profile("laws", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("laws")

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 10.0


class LoopThread:
    """An event loop in a thread, for servers that outlive one test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-servers", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def entered(self, manager: Any) -> Iterator[Any]:
        """What the asynchronous context manager yields, while it is open on the loop."""
        value = self._run(manager.__aenter__())
        try:
            yield value
        finally:
            self._run(manager.__aexit__(None, None, None))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT_S)


@dataclass(slots=True)
class Service:
    """The program `pointsman serve` as a child process, and the files it leaves."""

    process: subprocess.Popen[bytes]
    url: str
    data_dir: Path
    log_path: Path
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> str:
        """All it has written to its log so far."""
        return self.log_path.read_text(errors="replace")

    def stop(self) -> int:
        """Ask it to end, as an operator does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def events(self, kind: str | None = None, decision_id: str | None = None) -> list[dict[str, Any]]:
        """Durable events in order, payloads parsed."""
        return read_events(self.data_dir, kind, decision_id)

    async def outcome(self, decision_id: str) -> dict[str, Any]:
        """The one outcome of a decision, once it is durable."""
        await eventually(lambda: self.events("outcome", decision_id))
        (event,) = self.events("outcome", decision_id)
        return dict(event["payload"])


def read_events(data_dir: Path, kind: str | None = None, decision_id: str | None = None) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{data_dir}/router.sqlite?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT seq, kind, decision_id, ts, payload FROM events"
            " WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR decision_id = ?2) ORDER BY seq",
            (kind, decision_id),
        ).fetchall()
    names = ("seq", "kind", "decision_id", "ts", "payload")
    return [dict(zip(names, (*row[:4], orjson.loads(row[4])), strict=True)) for row in rows]


async def eventually(condition: Callable[[], Any], timeout_s: float = SETTLE_TIMEOUT_S) -> Any:
    """The first true value of `condition`, asked again and again: another process needs its time."""
    give_up_at = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up_at, "it never came true"
        await asyncio.sleep(0.01)
    return value


@contextlib.contextmanager
def running_service(config: Mapping[str, Any], folder: Path, *, arguments: Sequence[str] = ()) -> Iterator[Service]:
    """Run the service with this configuration and its data in `folder`; killed on leaving if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    config_path, log_path = folder / "pointsman.yaml", folder / "service.log"
    config_path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    command = [sys.executable, "-m", "serving", "serve", "-c", str(config_path), "--port", "0"]
    command += ["--data-dir", str(folder / "data"), *arguments]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=os.environ)
    try:
        line = first_line(process)
        assert " at http://" in line, f"it did not start: {line}\n{log_path.read_text(errors='replace')}"
        yield Service(process, line.split()[-1], folder / "data", log_path)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(STOP_TIMEOUT_S)
        process.stdout.close()


def first_line(process: subprocess.Popen[bytes]) -> str:
    """The first line a process prints; ends the process if none comes in time."""
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        return process.stdout.readline().decode().strip()
    finally:
        timer.cancel()


@pytest.fixture(scope="session")
def loop_thread():
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def serve_in_thread(loop_thread):
    """A context manager that serves an aiohttp application beside the tests and yields its base URL."""
    from evaluation.upstreams import serve

    return lambda app: loop_thread.entered(serve(app))


@pytest.fixture(scope="session")
def run_service():
    return running_service


@pytest.fixture(scope="session")
def wait_until():
    return eventually


@pytest.fixture(scope="session")
def stored_events():
    return read_events


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory):
    """A Valkey server for all tests: each takes a `name` (a prefix of keys) of its own, such as `tmp_path.name`."""
    from tests.valkey_server import ValkeyServer

    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


# --- the trial pool most tests route to

TRIAL_FAULTS = {
    "f500": "status-500",
    "f429": "status-429",
    "f400": "status-400",
    "f401": "status-401",
    "hang": "timeout",
    "stall": "stall",
    "malformed": "malformed",
    "reset": "reset",
}
QUICK_TIMEOUT_S = 0.5


class Trial:
    """The trial upstreams: their address, what they were asked, and entries for a configuration."""

    def __init__(self, url: str) -> None:
        self.url = url

    def model(self, name: str, **more: Any) -> dict[str, Any]:
        """A model's entry in the configuration."""
        entry: dict[str, Any] = {"name": name, "endpoint": f"{self.url}/v1"}
        entry["price"] = {"input_per_million": 1.0, "output_per_million": 10.0}
        return entry | ({"timeout_s": QUICK_TIMEOUT_S} if name in ("hang", "stall") else {}) | more

    async def seen(self, http: aiohttp.ClientSession, model: str) -> dict[str, int]:
        """Calls of one model: started, finished, failed, cancelled."""
        async with http.get(f"{self.url}/control?last=0") as response:
            return dict((await response.json())["models"][model])

    async def last_request(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        """What the upstreams received last: path, headers, body."""
        async with http.get(f"{self.url}/control?last=1") as response:
            return dict((await response.json())["requests"][0])


@pytest.fixture(scope="session")
def trial(serve_in_thread):
    from evaluation.faults import Fault
    from evaluation.synthetic import SyntheticModel, SyntheticSource
    from evaluation.upstreams import create_app

    latencies_s = {"good": 0.0, "fair": 0.0, "steady": 0.6, "slow": 30.0} | dict.fromkeys(TRIAL_FAULTS, 0.0)
    models = [SyntheticModel(name, 1.0, latency_s, 0.0, 60) for name, latency_s in latencies_s.items()]
    faults = {name: Fault.of(kind) for name, kind in TRIAL_FAULTS.items()}
    with serve_in_thread(create_app(SyntheticSource(models), faults=faults)) as url:
        yield Trial(url)


@pytest.fixture
def expect_refusal(http):
    """Send what must be refused: (status, error), after checking its shape and that nothing was recorded."""

    async def expect_refusal(service: Service, method: str, path: str, body: Any, headers: Any = None) -> Any:
        before = service.events()
        data = body() if callable(body) else body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        async with http.request(method, service.url + path, data=data, headers=headers) as response:
            assert response.content_type == "application/json"
            answer = await response.json()
        assert response.status >= 400
        assert set(answer) == {"error"}
        error = answer["error"]
        assert {"message", "type", "param", "code"} == set(error) - {"problems", "recorded"}
        assert all(isinstance(error[name], str) and error[name] for name in ("message", "type", "code"))
        assert error["param"] is None or isinstance(error["param"], str)
        assert service.events() == before
        return response.status, error

    return expect_refusal


# --- a store whose disk is as slow, full or broken as a test wants it


class HeldStore:
    """`serving.store.Store` in memory: nothing is durable before `commit`."""

    def __init__(self) -> None:
        self.committed: list[Any] = []
        self.waiting: list[Any] = []
        self.snapshots: list[tuple[int, bytes]] = []
        self.full = self.snapshots_full = False
        self.healthy = True
        self._futures: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def position(self) -> int:
        return len(self.committed) + len(self.waiting)

    @property
    def placed_position(self) -> int:
        return self.position

    @property
    def name(self) -> str:
        return "held"

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def append_nowait(self, events: Sequence[Any], placed: Any = None) -> None:
        from serving.store import StoreFull

        if self.full:
            raise StoreFull(self.pending, self.pending)
        for event in events:
            self.waiting.append(replace(event, seq=self.position + 1))
        if placed is not None:
            placed()

    def append(self, events: Sequence[Any], placed: Any = None) -> asyncio.Future[None]:
        self.append_nowait(events, placed)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures.append((self.position, future))
        return future

    def commit(self, count: int | None = None) -> None:
        """The next `count` events, or all appended so far, are durable now."""
        count = len(self.waiting) if count is None else count
        self.committed, self.waiting = self.committed + self.waiting[:count], self.waiting[count:]
        due = [future for position, future in self._futures if position <= len(self.committed)]
        self._futures = [entry for entry in self._futures if entry[0] > len(self.committed)]
        for future in due:
            if not future.done():
                future.set_result(None)

    def fail(self) -> None:
        """The disk breaks: whoever waits is told."""
        from serving.store import StoreFailed

        self.healthy = False
        for _, future in self._futures:
            if not future.done():
                future.set_exception(StoreFailed("writing", OSError("disk")))

    def find(self, decision_id: str) -> list[Any]:
        return [event for event in self.committed if event.decision_id == decision_id]

    def read(self, after_seq: int, limit: int) -> list[Any]:
        return [event for event in self.committed if event.seq > after_seq][:limit]

    def without_feedback(self, after: Any, up_to_ts: float, limit: int) -> Any:
        graded = {event.decision_id for event in self.committed if event.kind == "feedback"}
        outcomes = sorted((e.ts, e.seq, e.decision_id) for e in self.committed if e.kind == "outcome")
        due = [row for row in outcomes if row[:2] > after and row[0] <= up_to_ts][:limit]
        found = dict.fromkeys(name for _, _, name in due if name not in graded)
        return list(found), (due[-1][:2] if due else after)

    def save_snapshot(self, seq: int, payload: bytes) -> asyncio.Future[None]:
        from serving.store import StoreFull

        if self.snapshots_full:
            raise StoreFull(16, 16)
        self.snapshots.append((seq, payload))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def latest_snapshot(self) -> tuple[int, bytes] | None:
        return self.snapshots[-1] if self.snapshots else None

    async def prune(self, before_ts: float, up_to_seq: int, limit: int) -> int:
        del before_ts, up_to_seq, limit
        return 0

    async def flush(self) -> None:
        self.commit()

    async def close(self) -> None:
        self.commit()


@pytest.fixture
def held_store():
    return HeldStore()


@pytest.fixture
def make_learner(held_store):
    """A learner of one pool, `auto` over `a` and `b`, on the held store; a second call is a restart."""
    import numpy as np

    from bandit import Arm, Constraints, Objective, Pool, Price
    from serving.learner import Learner
    from serving.metrics import Metrics

    def make_learner(**more: Any) -> Any:
        constraints = Constraints(max_error_rate=0.2, min_accuracy=0.3, accuracy_evidence="feedback")
        pool = Pool(
            [Arm("a", Price(1.0, 10.0)), Arm("b")],
            name="auto",
            objective=Objective(quality=1.0, cost=1.0, cost_reference_usd=0.001),
            constraints=constraints,
            half_life_requests=100.0,
        )
        settings: dict[str, Any] = {"cache_decisions": 100, "snapshot_every_events": 10**9} | more
        return Learner({"auto": pool}, {"auto": np.random.default_rng(1)}, held_store, Metrics(), **settings)

    return make_learner
