"""Suites by schedule in the real service: a run's end, good or bad, is the run's, and its process never outlives it."""

from __future__ import annotations

import time

KEY, ADMIN_KEY = "callers-key-1", "admins-key-12"


def _config(trial, suite, models=("good", "fair"), **more):
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "models": [trial.model(name) for name in models],
        "pools": [{"name": "auto", "models": list(models), "constraints": {"min_accuracy": 0.5}}],
        "benchmarks": [{"suite": str(suite), "pool": "auto"} | more],
    }


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
