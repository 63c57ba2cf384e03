"""When a suite is run, by which command, and that its process ends; the command is a script that notes its call."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import orjson
import pytest

from serving.analytics import AnalyticalLog
from serving.benchmark_settings import BenchmarkSettings
from serving.metrics import Metrics
from serving.schedule import Schedule
from serving.store import Event

HOUR_S = 3600.0
NOTE = """
import json, os, pathlib, signal, sys, time
folder, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
call = {"argv": sys.argv[3:], "key": os.environ.get("POINTSMAN_ADMIN_KEY"), "pid": os.getpid()}
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = folder / f"call-{len(list(folder.glob('call-*')))}"
path.with_suffix(".part").write_text(json.dumps(call))
path.with_suffix(".part").rename(path)
print("10 of 10", "x" * 5000, flush=True)
print("half a line", end="", flush=True)
if behaviour in ("hang", "deaf"):
    time.sleep(600)
sys.exit(3 if behaviour == "fail" else 0)
"""


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def log(held_store, tmp_path):
    log = AnalyticalLog(tmp_path / "log.duckdb", held_store)
    yield log
    await log.close()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
async def start(log, metrics, clock, tmp_path):
    """Run a schedule of these entries in the background, by a command that behaves as told."""
    tasks = []
    script = tmp_path / "evaluate.py"
    script.write_text(NOTE)

    def start(*entries, behaviour="good", admin_key="the-admin-key", grace_s=5.0):
        command = (sys.executable, str(script), str(tmp_path), behaviour)
        told = {
            "url": "http://127.0.0.1:1",
            "admin_key": admin_key,
            "folder": tmp_path,
            "clock": clock,
            "grace_s": grace_s,
        }
        schedule = Schedule(entries, log, metrics, command=command, **told)
        tasks.append(asyncio.create_task(schedule.run()))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Seen:
    """What the script was called with, and which runs have ended, by (suite, status)."""

    def __init__(self, folder, metrics, wait_until):
        self.folder, self.metrics, self.wait_until = folder, metrics, wait_until

    def calls(self):
        return [orjson.loads(path.read_bytes()) for path in sorted(self.folder.glob("call-*")) if not path.suffix]

    def runs(self):
        (family,) = self.metrics.benchmark_runs.collect()
        return {(s.labels["suite"], s.labels["status"]): s.value for s in family.samples if s.name.endswith("_total")}

    async def call(self):
        """The first call, once it was made."""
        return (await self.wait_until(self.calls))[0]

    async def ended(self, count=1):
        """The runs, once so many have ended."""
        await self.wait_until(lambda: sum(self.runs().values()) >= count)
        return self.runs()


@pytest.fixture
def seen(tmp_path, metrics, wait_until):
    return Seen(tmp_path, metrics, wait_until)


def entry(suite="math.jsonl", **more):
    return BenchmarkSettings(suite=suite, **more)


def post(held_store, ts, suite="math"):
    held_store.append_nowait([Event("benchmark_result", "", ts, orjson.dumps({"ts": ts, "suite": suite}))])
    held_store.commit()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_suite_without_results_is_run_by_the_command_line(start, seen, tmp_path):
    """All that is set is an option, the key is none of them, and the sample's seed is the time."""
    start(entry("suites/math.v2.jsonl", pool="auto", sample=50, concurrency=8, budget_usd=0.5))
    await seen.ended()
    (call,) = seen.calls()
    expected = "evaluate --url http://127.0.0.1:1 --suite suites/math.v2.jsonl --suite-name math.v2 --pool auto"
    expected += " --sample 50 --seed 1000000 --concurrency 8 --budget-usd 0.5"
    assert call["argv"] == [*expected.split(), "--state", f"{tmp_path}/evaluate-math.v2.jsonl", "--restart"]
    assert call["key"] == "the-admin-key"
    assert seen.runs() == {("math.v2", "ok"): 1.0}


async def test_what_is_not_set_is_no_option(start, seen, tmp_path, monkeypatch):
    """Nor does a key of the service's own environment pass for one of an open service."""
    monkeypatch.setenv("POINTSMAN_ADMIN_KEY", "of something else")
    start(entry(sample=None, models=("a", "b")), admin_key=None)
    await seen.ended()
    (call,) = seen.calls()
    expected = "evaluate --url http://127.0.0.1:1 --suite math.jsonl --suite-name math --models a,b --concurrency 4"
    assert call["argv"] == [*expected.split(), "--state", f"{tmp_path}/evaluate-math.jsonl", "--restart"]
    assert call["key"] is None


async def test_a_restart_does_not_run_again_what_has_young_results(start, seen, held_store, clock):
    """They may be anybody's. 24 hours after the youngest it is due."""
    post(held_store, clock.now - 23 * HOUR_S)
    post(held_store, clock.now - 1 * HOUR_S, suite="other")
    start(entry(), entry("law.jsonl"))
    await seen.ended()
    assert [call["argv"][4] for call in seen.calls()] == ["law.jsonl"]


async def test_an_hour_later_it_is_due(start, seen, held_store, clock):
    post(held_store, clock.now - 24 * HOUR_S)
    start(entry())
    await seen.ended()
    assert len(seen.calls()) == 1


async def test_a_suite_is_run_again_after_its_hours(start, seen, clock):
    start(entry(every_hours=1e-4))  # 0.36 s
    await seen.ended()
    await asyncio.sleep(0.5)
    assert len(seen.calls()) == 1  # the clock stands
    clock.now += 0.5
    assert await seen.ended(2) == {("math", "ok"): 2.0}


async def test_a_run_that_fails_is_logged_and_counted_and_the_next_suite_has_its_turn(start, seen, caplog):
    start(entry(), entry("law.jsonl"), behaviour="fail")
    assert await seen.ended(2) == {("math", "failed"): 1.0, ("law", "failed"): 1.0}
    assert "suite math: run failed with exit code 3" in caplog.text


async def test_what_a_run_says_is_in_the_log_line_by_line(start, seen, caplog):
    """Of a long line the beginning; the last line need not end."""
    caplog.set_level("INFO", "pointsman.schedule")
    start(entry())
    await seen.ended()
    said = [record.getMessage() for record in caplog.records if record.name == "pointsman.schedule"]
    assert said[1].startswith("suite math: 10 of 10 xxx")
    assert len(said[1]) == len("suite math: ") + 2_000
    assert said[2:] == ["suite math: half a line", "suite math: run is through"]


async def test_a_command_that_cannot_be_started_is_counted(log, metrics, seen, tmp_path, caplog):
    told = {"url": "http://127.0.0.1:1", "admin_key": None, "folder": tmp_path}
    task = asyncio.create_task(Schedule([entry()], log, metrics, command=("/nowhere/python",), **told).run())
    assert await seen.ended() == {("math", "failed"): 1.0}
    assert "suite math cannot be run" in caplog.text
    assert not task.done()
    task.cancel()


async def test_a_run_that_takes_too_long_is_ended(start, seen):
    start(entry(timeout_s=1.0), behaviour="hang")
    assert await seen.ended() == {("math", "timeout"): 1.0}
    assert not alive(seen.calls()[0]["pid"])


@pytest.mark.parametrize("behaviour", ["hang", "deaf"])
async def test_a_run_ends_with_the_service(start, seen, behaviour):
    """Also one that does not listen."""
    task = start(entry(), behaviour=behaviour, grace_s=0.3)
    pid = (await seen.call())["pid"]
    assert alive(pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)
    assert seen.runs() == {}


async def test_suites_are_run_one_at_a_time(start, seen):
    start(entry(), entry("law.jsonl"), behaviour="hang")
    await seen.call()
    await asyncio.sleep(0.3)
    assert len(seen.calls()) == 1


async def test_a_log_that_cannot_be_read_delays_a_run_and_ends_nothing(start, seen, log, tmp_path, caplog):
    await log.flush()
    (tmp_path / "log.duckdb").rename(tmp_path / "moved")
    task = start(entry())
    await seen.wait_until(lambda: "suite math waits" in caplog.text)
    assert (seen.calls(), task.done()) == ([], False)
