"""Benchmark results over HTTP: a model leaves the feasible set and comes back; each counts once, none is lost."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson
import pytest
from test_service_durability import assert_same_learning, folded, snapshot_of

KEY, ADMIN_KEY = "callers-key-1", "admins-key-12"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CALLER = {"Authorization": f"Bearer {KEY}"}
PATH = "/admin/benchmarks"
RESULT = {"item_id": "1", "model": "good", "quality": 1.0}


def _config(trial, **more):
    limited = {"min_accuracy": 0.8}
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "models": [trial.model(name) for name in ("good", "fair", "steady")],
        "pools": [
            {"name": "auto", "models": ["good", "fair"], "constraints": limited},
            {"name": "other", "models": ["fair", "steady"], "constraints": limited | {"accuracy_evidence": "feedback"}},
        ],
    } | more


def _post(run, numbers, *, model="fair", quality=1.0, **more):
    results = [{"item_id": f"q{n}", "model": model, "quality": quality, **more} for n in numbers]
    return {"suite": "bfcl", "run": run, "results": results}


async def _posted(http, service, body):
    async with http.post(service.url + PATH, json=body, headers=ADMIN) as response:
        return response.status, await response.json()


async def _states(http, service, model="fair"):
    async with http.get(service.url + "/admin/models", headers=ADMIN) as response:
        (entry,) = [entry for entry in (await response.json())["models"] if entry["name"] == model]
    return {part["pool"]: part["state"] for part in entry["pools"]}


async def _share(http, service, model="fair"):
    async with http.post(service.url + "/v1/route", json={"model": "auto", "input": "x"}, headers=CALLER) as response:
        return (await response.json())["probabilities"][model]


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    """For what is refused, and so changes nothing."""
    with run_service(_config(trial), tmp_path_factory.mktemp("benchmarks")) as service:
        yield service


async def test_a_model_leaves_the_feasible_set_on_bad_results_and_comes_back_on_good_ones(
    run_service, trial, http, tmp_path
):
    """In the pool whose limit benchmarks test; its share falls to that of probes, at most 0.02·4, and recovers."""
    with run_service(_config(trial), tmp_path) as service:
        assert await _share(http, service) > 0.1
        assert await _posted(http, service, _post("1", range(10), quality=0.0)) == (
            200,
            {"recorded": 10, "duplicates": 0},
        )
        assert await _states(http, service) == {"auto": "filtered", "other": "unknown"}
        assert await _share(http, service) <= 0.08
        assert (await _posted(http, service, _post("2", range(30))))[0] == 200
        assert (await _states(http, service))["auto"] == "probing"
        assert (await _posted(http, service, _post("3", range(60), category="math")))[0] == 200
        assert (await _states(http, service))["auto"] == "admitted"
        assert await _share(http, service) > 0.08
        moves = [(e["payload"]["from_state"], e["payload"]["to_state"]) for e in service.events("filter_event")]
        assert moves == [("unknown", "filtered"), ("filtered", "probing"), ("probing", "admitted")]
        async with http.get(service.url + "/metrics") as response:
            shown = await response.text()
        assert 'pointsman_filter_state{model="fair",pool="auto",state="admitted"} 1.0' in shown
        assert 'pointsman_benchmark_results_total{model="fair",status="graded"} 100.0' in shown


async def test_a_result_posted_twice_counts_once_also_at_the_same_time(run_service, trial, http, tmp_path):
    with run_service(_config(trial), tmp_path) as service:
        answers = await asyncio.gather(*(_posted(http, service, _post("1", range(200))) for _ in range(4)))
        assert [status for status, _ in answers] == [200] * 4
        assert sum(body["recorded"] for _, body in answers) == 200
        assert sum(body["duplicates"] for _, body in answers) == 600
        again = await _posted(http, service, _post("1", range(150, 250), quality=0.0))
        assert again == (200, {"recorded": 50, "duplicates": 50})
        assert len(service.events("benchmark_result")) == 250
        assert len({event["decision_id"] for event in service.events("benchmark_result")}) == 250


BAD = [
    (b"{", 400, "invalid_json", None),
    (
        {"suite": "s", "run": "r", "results": [RESULT, RESULT | {"quality": 2}]},
        422,
        "invalid_field",
        "results[1].quality",
    ),
    ({"suite": "s", "run": "r", "results": [RESULT | {"quality": None}]}, 422, "invalid_field", "results[0]"),
    ({"suite": "s", "run": "r", "results": [RESULT | {"error": "timeout"}]}, 422, "invalid_field", "results[0]"),
    ({"suite": "s", "run": "r", "results": [RESULT | {"eror": "x"}]}, 422, "invalid_field", "results[0].eror"),
    ({"suite": "s", "run": "r", "results": [RESULT] * 1001}, 422, "invalid_field", "results"),
    ({"suite": "s", "results": [RESULT]}, 422, "invalid_field", "run"),
    (
        {"suite": "s", "run": "r", "results": [RESULT, RESULT | {"model": "god"}]},
        404,
        "model_not_found",
        "results[1].model",
    ),
    ({"suite": "s", "run": "r", "results": [RESULT | {"model": "auto"}]}, 404, "model_not_found", "results[0].model"),
]


@pytest.mark.parametrize(("body", "said"), [(body, said) for body, *said in BAD])
async def test_what_is_wrong_with_a_post_is_said_and_nothing_is_recorded(service, expect_refusal, body, said):
    found, error = await expect_refusal(service, "POST", PATH, body, ADMIN)
    assert [found, error["code"], error["param"]] == said


async def test_only_the_operator_may_post_results(service, expect_refusal):
    body = {"suite": "s", "run": "r", "results": [RESULT]}
    assert (await expect_refusal(service, "POST", PATH, body, CALLER))[0] == 403
    assert (await expect_refusal(service, "POST", PATH, body))[0] == 401


@pytest.mark.parametrize("snapshot_every", [30, 10**6])
async def test_after_kill_9_nothing_acknowledged_is_missing_and_nothing_is_learned_twice(
    run_service, trial, tmp_path, wait_until, snapshot_every
):
    """Killed under two writers; sent again, every result is there once, and the state is the fold of the log."""
    config = _config(trial, store={"snapshot_every_events": snapshot_every})
    config["pools"] = [pool | {"budget": {"usd_per_request": 0.001}} for pool in config["pools"]]
    bodies = [_post(f"{n}", range(20), model=("good", "fair")[n % 2], quality=n % 3 / 2) for n in range(60)]
    acknowledged = set()

    async def write(http, service, own):
        for body in own:
            if (await _posted(http, service, body))[0] == 200:
                acknowledged.add(body["run"])

    async with aiohttp.ClientSession() as http:
        with run_service(config, tmp_path) as service:
            writers = asyncio.gather(
                *(write(http, service, bodies[start::2]) for start in (0, 1)), return_exceptions=True
            )
            await wait_until(lambda: len(acknowledged) >= 10)
            service.kill()
            await writers
            assert len(acknowledged) < len(bodies)
        with run_service(config, tmp_path) as service:
            recorded = {(e["payload"]["run"], e["payload"]["item_id"]) for e in service.events("benchmark_result")}
            assert {(run, f"q{n}") for run in acknowledged for n in range(20)} <= recorded
            for body in bodies:
                assert (await _posted(http, service, body))[0] == 200
            assert service.stop() == 0
        events = service.events()
    keys = [event["decision_id"] for event in events if event["kind"] == "benchmark_result"]
    assert len(keys) == len(set(keys)) == 20 * len(bodies)
    _, learned = snapshot_of(service.data_dir)
    for pool, expected in folded(config, events).items():
        assert_same_learning(learned[pool], expected)
    assert orjson.dumps(learned["auto"]["standing"]["filters"]["arms"][0]["state"]) in (b'"filtered"', b'"probing"')
