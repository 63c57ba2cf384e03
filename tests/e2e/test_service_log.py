"""The analytical log, read by another process while the service runs: rows that join and speak for themselves."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest

CALLS = 30
QUERY = """
import json, sys, time
import duckdb
deadline = time.monotonic() + 20
while True:
    try:
        with duckdb.connect(sys.argv[1], read_only=True) as log:
            rows = log.execute(sys.argv[2]).fetchall()
            if len(rows) >= int(sys.argv[3]):
                break
    except duckdb.Error as error:  # the service holds the file, or has not made it yet
        problem = error
    if time.monotonic() > deadline:
        sys.exit(f"it never came: {problem}")
    time.sleep(0.02)
print(json.dumps(rows))
"""
JOINED = """
SELECT d.decision_id, d.pool, d.arms, d.feasible, d.probabilities, d.chosen, d.propensity, len(d.context), d.user,
       d.tags['run'], o.model, o.status, o.cost_usd, o.latency_s, r.quality, r.reward, d.seq < o.seq AND o.seq < r.seq
FROM decisions d JOIN outcomes o USING (decision_id) JOIN rewards r USING (decision_id) ORDER BY d.seq
"""


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "log": {"flush_interval_s": 0.1},
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("log")) as service:
        yield service


def _query(service, sql, rows):
    command = [sys.executable, "-c", QUERY, str(service.data_dir / "log.duckdb"), sql, str(rows)]
    return orjson.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)


async def test_rows_join_and_are_self_contained(service, http):
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(CALLS):
        async with http.post(
            service.url + "/v1/chat/completions", json=body, headers={"x-pointsman-tags": "run=7"}
        ) as response:
            decision_id = (await response.json())["id"]
        async with http.post(service.url + "/reward", json={"decision_id": decision_id, "quality": 0.75}) as response:
            assert response.status == 200
    rows = _query(service, JOINED, CALLS)
    assert len(rows) == len({row[0] for row in rows}) == CALLS
    for row in rows:
        _, pool, arms, feasible, probabilities, chosen, propensity, dimension, user, tag = row[:10]
        assert (pool, arms, feasible, user, tag) == ("auto", ["good", "fair"], [True, True], None, "7")
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-9)
        assert propensity == probabilities[arms.index(chosen)] > 0
        assert 1 < dimension <= 32
        model, status, cost_usd, latency_s, quality, reward, ordered = row[10:]
        assert (model, status, quality, ordered) == (chosen, "ok", 0.75, True)
        assert cost_usd > 0
        assert latency_s > 0
        assert reward == pytest.approx(0.75)  # the objective is quality alone


async def test_metrics_agree_with_the_log(service, http):
    """Each call and each reward above is counted once, under bounded labels."""
    async with http.get(service.url + "/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def total(name, *labels):
        return sum(v for k, v in values.items() if k.partition("{")[0] == name and all(x in k for x in labels))

    outcomes = [event["payload"] for event in service.events("outcome")]
    assert total("pointsman_calls_total", 'pool="auto"', 'mode="bandit"', 'status="ok"') == CALLS
    assert total("pointsman_call_duration_seconds_count") == CALLS
    assert total("pointsman_overhead_seconds_count") == CALLS
    assert total("pointsman_tokens_total", 'direction="output"') == sum(o["output_tokens"] for o in outcomes)
    assert total("pointsman_cost_usd_total") == pytest.approx(sum(o["cost_usd"] for o in outcomes))
    assert total("pointsman_feedback_total", 'status="recorded"') == total("pointsman_quality_count") == CALLS
    assert total("pointsman_quality_sum") == pytest.approx(0.75 * CALLS)
    assert total("pointsman_unexpected_errors_total") == 0


async def test_what_the_store_has_the_log_has_once_after_the_end(service):
    assert service.stop() == 0
    tables = {"decision": "decisions", "outcome": "outcomes", "feedback": "rewards", "filter_event": "filter_events"}
    for kind, table in tables.items():
        seqs = [event["seq"] for event in service.events(kind)]
        assert [row[0] for row in _query(service, f"SELECT seq FROM {table} ORDER BY seq", 0)] == seqs  # noqa: S608
    assert _query(service, "SELECT count(*) FROM rejected", 1) == [[0]]
