"""A disk that is full, that takes no larger files, or that cannot be written at all."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys

import aiohttp
import orjson
import pytest
from killed_service import assert_recorded_once

PATH = "/v1/chat/completions"
DISK, ROOMIER = "6m", "64m"
FILE_BYTES = 3_000_000
CALLERS, GIVE_UP_S = 8, 60
PADDING = {"x-pointsman-tags": ",".join(f"t{i}={'x' * 60}" for i in range(10))}  # so that a small disk is soon full


def config(trial):
    return {
        "models": [trial.model("good")],
        "pools": [{"name": "auto", "models": ["good"]}],
        "store": {"snapshot_every_events": 500},
        "log": {"flush_interval_s": 0.5},
    }


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own, of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)):
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Callers:
    """They call and grade until the service takes nothing any more, and remember what was acknowledged."""

    def __init__(self, url) -> None:
        self.url, self.decisions, self.graded = url, [], []
        self.statuses: dict[int, int] = {}
        self.broken = 0

    async def run(self):
        async with asyncio.timeout(GIVE_UP_S), aiohttp.ClientSession(headers=PADDING) as session:
            await asyncio.gather(*(self._call(session) for _ in range(CALLERS)))

    async def _call(self, session):
        body, refused = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}, 0
        while refused < 20:
            status, answer = await self._post(session, PATH, body)
            if status != 200:
                refused += 1
                assert status in (0, 503), answer
                await asyncio.sleep(0.02)
                continue
            self.decisions.append(answer["id"])
            status, answer = await self._post(session, "/reward", {"decision_id": answer["id"], "quality": 1.0})
            if status == 200:
                self.graded.append(answer["decision_id"])

    async def _post(self, session, path, body):
        status, raw = 0, b"{}"
        with contextlib.suppress(aiohttp.ClientError):
            async with session.post(self.url + path, json=body) as response:
                status, raw = response.status, await response.read()
        self.statuses[status] = self.statuses.get(status, 0) + 1
        return status, orjson.loads(raw)


async def assert_refusing(patient, service):
    """It says so: /readyz is red, /healthz is not, and the log has the reason and no key or prompt."""
    async with patient.get(f"{service.url}/readyz") as response:
        assert response.status == 503
    async with patient.get(f"{service.url}/healthz") as response:
        assert response.status == 200
    assert "events are lost" in service.log


async def after_a_restart(run_service, config, folder, callers, case, patient):  # noqa: PLR0917 - fixtures
    """With room again everything that was acknowledged is there, once, and calls are taken."""
    with run_service(config, folder) as service:
        events = service.events()
        assert_recorded_once(events, callers.decisions)
        graded = {event["decision_id"] for event in events if event["kind"] == "feedback"}
        case.made, case.answered = sum(callers.statuses.values()), sum(callers.statuses.values())
        case.lost = len(set(callers.graded) - graded)
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        async with patient.post(service.url + PATH, json=body) as response:
            assert response.status == 200
        assert service.stop() == 0
    assert case.lost == 0
    told = dict(sorted(callers.statuses.items()))
    case.happened = f"statuses {told}; {len(callers.decisions):,} decisions and {len(callers.graded):,} grades all kept"


async def test_the_disk_is_full(run_service, trial, small_disk, case, patient):
    """Calls get 503 and /readyz is red, no answer is given that is not on disk; with room again nothing is missing."""
    with run_service(config(trial), small_disk) as service:
        callers = Callers(service.url)
        await callers.run()
        await assert_refusing(patient, service)
        service.kill()
    assert mount("-o", f"remount,size={ROOMIER}", str(small_disk))
    await after_a_restart(run_service, config(trial), small_disk, callers, case, patient)


async def test_a_file_may_grow_no_more(run_service, trial, case, patient, tmp_path):
    """The same where files may grow no more (EFBIG), and the end is an orderly one: exit code 0 or 1."""
    with run_service(config(trial), tmp_path) as service:
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        callers = Callers(service.url)
        await callers.run()
        await assert_refusing(patient, service)
        assert service.stop() in (0, 1)
    await after_a_restart(run_service, config(trial), tmp_path, callers, case, patient)


async def test_the_disk_is_read_only(run_service, trial, small_disk, case):
    """The start is refused with one line that says why, whether the files are there or not; they stay as they are."""
    with run_service(config(trial), small_disk) as service:
        assert service.stop() == 0
    kept = {path: path.read_bytes() for path in (small_disk / "data").iterdir()}
    (small_disk / "empty").mkdir()
    assert mount("-o", "remount,ro", str(small_disk))
    said = []
    for name in ("data", "empty/data"):
        command = [sys.executable, "-m", "serving", "serve", "-c", str(small_disk / "pointsman.yaml"), "--port", "0"]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "--data-dir", str(small_disk / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
        said.append(done.stderr.strip().splitlines()[-1].replace(str(small_disk), "DIR"))
    assert all(line.startswith("pointsman: ") for line in said)
    assert {path: path.read_bytes() for path in (small_disk / "data").iterdir()} == kept
    case.happened = f"exit code 1, {said[0]!r}"
