"""Replay of a running service's log, from its file and over HTTP: the same answer, and nothing lost meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys

import duckdb
import pytest

CALLS = 80
KEY = "operator-of-the-tests"


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "log": {"flush_interval_s": 0.1},
        "auth": {"admin_key": KEY, "keys": [{"key": "caller-of-the-tests", "user": "tester"}]},
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"], "policy": {"exploration_floor": 0.3, "seed": 3}}],
    }
    with run_service(config, tmp_path_factory.mktemp("replay")) as service:
        yield service


def replayed(tmp_path, *arguments, key=KEY):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "serving", "replay", *map(str, arguments), "--json", str(out)]
    command += ["--policy", "uniform", "--policy", "fixed:good", "--min-effective-samples", "10", "--pool", "auto"]
    done = subprocess.run(
        command, capture_output=True, timeout=60, check=False, text=True, env={"POINTSMAN_ADMIN_KEY": key}
    )
    return done, json.loads(out.read_text()) if out.exists() else None


async def test_the_file_of_a_running_service_and_its_url_say_the_same(service, http, wait_until, tmp_path):
    headers = {"Authorization": "Bearer caller-of-the-tests"}
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    for i in range(CALLS):
        async with http.post(service.url + "/v1/chat/completions", json=body, headers=headers) as response:
            decision_id = (await response.json())["id"]
        feedback = {"decision_id": decision_id, "quality": i % 2}
        async with http.post(service.url + "/reward", json=feedback, headers=headers) as response:
            assert response.status == 200

    def all_logged():
        try:
            with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
                return log.execute("SELECT count(*) FROM rewards").fetchall() == [(CALLS,)]
        except duckdb.Error:  # the service holds the file, or has not made it yet
            return False

    await wait_until(all_logged)
    done, from_file = replayed(tmp_path, service.data_dir)
    assert done.returncode == 0, done.stderr
    done, from_url = replayed(tmp_path, "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert from_file["selection"]["decisions"] == CALLS
    assert from_file["policies"] == from_url["policies"]
    # The service writes on as soon as it is let in.
    async with http.post(service.url + "/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200

    def written_on():
        try:
            with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
                return log.execute("SELECT count(*) FROM decisions").fetchall() == [(CALLS + 1,)]
        except duckdb.Error:
            return False

    await wait_until(written_on)


def test_a_wrong_key_is_said(service, tmp_path):
    done, _ = replayed(tmp_path, "--url", service.url, key="caller-of-the-tests")
    assert done.returncode == 2
    assert "answered 403" in done.stderr
    assert "POINTSMAN_ADMIN_KEY" in done.stderr
