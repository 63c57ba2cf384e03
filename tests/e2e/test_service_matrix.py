"""The accuracy matrix and the log's tables over HTTP, from a service that was driven by hand-countable traffic."""

from __future__ import annotations

import duckdb
import openai
import pytest

from bandit.intervals import wilson

KEY, ADMIN_KEY = "callers-key-1", "admins-key-12"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CALLER = {"Authorization": f"Bearer {KEY}"}
NOTHING = {"mean": None, "low": None, "high": None, "samples": 0}


def _config(trial, **more):
    fixed = {"kind": "fixed", "model": "good"}
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "models": [trial.model(name) for name in ("good", "fair", "steady")],
        "pools": [
            {"name": "auto", "models": ["good", "fair"], "policy": fixed, "constraints": {"min_accuracy": 0.5}},
            {"name": "other", "models": ["good"]},
        ],
    } | more


async def _get(http, service, path, headers=ADMIN):
    async with http.get(service.url + path, headers=headers) as response:
        return response.status, await response.json()


async def _driven(http, service):
    """Four calls of the pool, graded 1, 1, 0 and not at all, one pinned call, and a suite of ten for `fair`."""
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0) as client:
        for number, model in enumerate(["auto"] * 4 + ["good"]):
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "hello"}],
                extra_headers={"x-pointsman-category": "math" if number else "law"},
            )
            if number < 3:
                reward = {"decision_id": answer.id, "quality": float(number < 2)}
                async with http.post(service.url + "/reward", json=reward, headers=CALLER) as response:
                    assert response.status == 200
    results = [{"item_id": str(i), "model": "fair", "category": "math", "quality": float(i < 8)} for i in range(10)]
    results[0] |= {"latency_s": 2.0, "cost_usd": 0.25}
    body = {"suite": "s", "run": "1", "results": results}
    async with http.post(service.url + "/admin/benchmarks", json=body, headers=ADMIN) as response:
        assert await response.json() == {"recorded": 10, "duplicates": 0}


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    """For what is refused, and an empty matrix."""
    with run_service(_config(trial), tmp_path_factory.mktemp("matrix")) as service:
        yield service


@pytest.fixture
async def driven(run_service, trial, http, tmp_path):
    with run_service(_config(trial), tmp_path) as service:
        await _driven(http, service)
        yield service


async def test_a_new_service_has_an_empty_matrix(service, http):
    status, matrix = await _get(http, service, "/admin/matrix")
    assert (status, matrix["days"], matrix["log_lag_events"], matrix["pool"]) == (200, 7.0, 0, None)
    assert [entry["model"] for entry in matrix["models"]] == ["good", "fair", "steady"]
    for entry in matrix["models"]:
        assert entry["overall"]["accuracy"] == entry["overall"]["quality"] == NOTHING
        assert entry["overall"]["latency_s"] == {"p50": None, "p95": None, "samples": 0}
        assert (entry["overall"]["calls"], entry["categories"]) == (0, [])
    untested = {"pool": "auto", "limit": "min_accuracy", "needs": "benchmark results", "models": ["good", "fair"]}
    assert matrix["untested_limits"] == [untested]


async def test_the_matrix_is_what_can_be_counted(driven, http):
    """At once, since a read copies what is committed first. 2 of 3 graded right; 8 of 10 benchmark answers."""
    _, matrix = await _get(http, driven, "/admin/matrix?days=1")
    good, fair, steady = matrix["models"]
    part = {"state": "unknown", "newcomer": False}
    assert good["pools"] == [{"pool": "auto"} | part, {"pool": "other"} | part | {"state": "admitted"}]
    low, high = wilson(2, 3)
    assert good["overall"]["quality"] == {"mean": pytest.approx(2 / 3), "low": low, "high": high, "samples": 3}
    assert good["overall"]["accuracy"] == NOTHING
    assert (good["overall"]["calls"], good["overall"]["failed"]) == (4, 0)
    assert good["overall"]["latency_s"]["samples"] == good["overall"]["cost_usd_per_call"]["samples"] == 4
    assert [(c["category"], c["calls"], c["quality"]["samples"]) for c in good["categories"]] == [
        ("law", 1, 1),
        ("math", 3, 2),
    ]
    outcomes = [event["payload"] for event in driven.events("outcome")][:4]
    mean = sum(outcome["cost_usd"] for outcome in outcomes) / 4
    assert good["overall"]["cost_usd_per_call"]["mean"] == pytest.approx(mean)
    low, high = wilson(8, 10)
    assert (
        fair["categories"][0]["accuracy"]
        == fair["overall"]["accuracy"]
        == {"mean": 0.8, "low": low, "high": high, "samples": 10}
    )
    assert fair["overall"]["benchmark_latency_s"] == {"p50": 2.0, "p95": 2.0, "samples": 1}
    assert fair["overall"]["benchmark_cost_usd_per_call"] == {"mean": 0.25, "samples": 1}
    assert (fair["overall"]["calls"], steady["pools"], steady["overall"]["calls"]) == (0, [], 0)
    assert [entry["models"] for entry in matrix["untested_limits"]] == [["good"]]


async def test_a_pools_matrix_has_its_models_and_its_traffic(driven, http):
    _, matrix = await _get(http, driven, "/admin/matrix?pool=other")
    (good,) = matrix["models"]
    assert [part["pool"] for part in good["pools"]] == ["other"]
    assert (good["overall"]["calls"], matrix["untested_limits"], matrix["pool"]) == (0, [], "other")


BAD = [
    ("/admin/matrix?pool=atuo", 404, "model_not_found", "pool"),
    ("/admin/matrix?days=0", 400, "invalid_request", "days"),
    ("/admin/matrix?days=367", 400, "invalid_request", "days"),
    ("/admin/matrix?days=nan", 400, "invalid_request", "days"),
    ("/admin/matrix?days=week", 400, "invalid_request", "days"),
    ("/admin/matrix?days=1&days=2", 400, "invalid_request", "days"),
    ("/admin/matrix?day=1", 400, "invalid_request", "day"),
    ("/admin/log.parquet", 400, "invalid_request", "table"),
    ("/admin/log.parquet?table=secrets", 400, "invalid_request", "table"),
    ("/admin/log.parquet?table=outcomes&since=yesterday", 400, "invalid_request", "since"),
    ("/admin/log.parquet?table=outcomes&until=inf", 400, "invalid_request", "until"),
    ("/admin/log.parquet?table=outcomes&since=2&until=1", 400, "invalid_request", "since"),
    ("/admin/log.parquet?table=outcomes&from=2", 400, "invalid_request", "from"),
]


@pytest.mark.parametrize(("path", "said"), [(path, said) for path, *said in BAD])
async def test_what_is_wrong_with_a_query_is_named(service, expect_refusal, path, said):
    status, error = await expect_refusal(service, "GET", path, None, ADMIN)
    assert [status, error["code"], error["param"]] == said


@pytest.mark.parametrize("path", ["/admin/matrix", "/admin/log.parquet?table=outcomes"])
async def test_only_the_operator_may_read_the_log(service, expect_refusal, path):
    assert (await expect_refusal(service, "GET", path, None, CALLER))[0] == 403


async def test_a_table_comes_as_a_parquet_file_and_leaves_none_behind(driven, http, tmp_path):
    for path, expected in (
        ("table=outcomes", 5),
        ("table=benchmark_results", 10),
        ("table=rewards&since=2020-01-01T00:00:00Z", 3),
        ("table=decisions&until=2020-01-01", 0),
    ):
        async with http.get(f"{driven.url}/admin/log.parquet?{path}", headers=ADMIN) as response:
            assert (response.status, response.content_type) == (200, "application/vnd.apache.parquet")
            (tmp_path / "got.parquet").write_bytes(await response.read())
        assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/got.parquet'").fetchall() == [(expected,)]  # noqa: S608
    assert not list(driven.data_dir.glob("*.parquet"))


async def test_a_log_that_cannot_be_read_is_503_and_calls_go_on(driven, http):
    log = driven.data_dir / "log.duckdb"
    await _get(http, driven, "/admin/matrix")
    moved = log.rename(log.with_name("moved"))
    status, answer = await _get(http, driven, "/admin/matrix")
    assert (status, answer["error"]["code"]) == (503, "log_unavailable")
    moved.rename(log)
    assert (await _get(http, driven, "/admin/matrix"))[0] == 200
