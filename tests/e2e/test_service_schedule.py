"""Suites by schedule in the real service: a run's end, good or bad, is the run's, and its process never outlives it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import orjson
import pytest

KEY, ADMIN_KEY = "callers-key-1", "admins-key-12"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
ITEM = {"prompt": "hello", "category": "greeting", "answer": "hello", "grader": {"kind": "exact"}}


def _config(trial, suite, models=("good", "fair"), **more):
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "models": [trial.model(name) for name in models],
        "pools": [{"name": "auto", "models": list(models), "constraints": {"min_accuracy": 0.5}}],
        "benchmarks": [{"suite": str(suite), "pool": "auto"} | more],
    }


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "greetings.jsonl"
    path.write_bytes(b"".join(orjson.dumps(ITEM | {"id": f"q{i}"}) + b"\n" for i in range(6)))
    return path


async def _metric(http, service, line):
    async with http.get(service.url + "/metrics") as response:
        return line in await response.text()


async def test_a_run_that_fails_is_counted_and_calls_go_on(run_service, trial, http, tmp_path):
    """The suite is not there. Nothing of the key is in the service's log."""
    with run_service(_config(trial, tmp_path / "missing.jsonl"), tmp_path) as service:
        failed = 'pointsman_benchmark_runs_total{status="failed",suite="missing"} 1.0'
        give_up_at = time.monotonic() + 30
        while not await _metric(http, service, failed):
            assert time.monotonic() < give_up_at, service.log
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with http.post(service.url + "/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == 200
        assert service.stop() == 0
        assert "suite missing: run failed with exit code 2" in service.log
        assert "benchmarks[0].suite: there is no" in service.log
        assert ADMIN_KEY not in service.log


async def test_a_new_suite_is_run_at_the_start_and_not_again_after_a_restart(run_service, trial, http, suite, tmp_path):
    """Six items for each of two models, through the service itself; the matrix has their grades."""
    config = _config(trial, suite, sample=None)
    with run_service(config, tmp_path) as service:
        ended = 'pointsman_benchmark_runs_total{status="ok",suite="greetings"} 1.0'
        give_up_at = time.monotonic() + 60
        while not await _metric(http, service, ended):
            assert time.monotonic() < give_up_at, service.log
        results = [event["payload"] for event in service.events("benchmark_result")]
        assert {(row["suite"], row["model"], row["item_id"]) for row in results} == {
            ("greetings", model, f"q{i}") for model in ("good", "fair") for i in range(6)
        }
        assert len(results) == 12
        assert {row["category"] for row in results} == {"greeting"}
        async with http.get(service.url + "/admin/matrix?pool=auto", headers=ADMIN) as response:
            matrix = await response.json()
        assert [entry["overall"]["accuracy"]["samples"] for entry in matrix["models"]] == [6, 6]
        assert matrix["untested_limits"] == []
        assert service.stop() == 0
    with run_service(config, tmp_path) as service:
        assert "run begins" in service.log  # of the first life
        assert service.log.count("run begins") == 1
        async with http.get(service.url + "/admin/matrix", headers=ADMIN) as response:
            assert response.status == 200  # it reads the log behind the schedule's own look at it
        assert service.log.count("run begins") == 1
        assert ADMIN_KEY not in service.log


async def test_a_run_under_way_ends_with_the_service(run_service, trial, http, suite, tmp_path):
    """Its model hangs: nothing waits for it, and no process stays."""
    with run_service(_config(trial, suite, models=("good", "steady"), concurrency=1), tmp_path) as service:
        give_up_at = time.monotonic() + 30
        while not service.events("decision"):
            assert time.monotonic() < give_up_at, service.log
        assert service.stop() == 0
        assert _evaluations(service.url) == []


def _evaluations(url):
    """Processes that have the service's address among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if url.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found
