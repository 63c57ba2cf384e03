"""What the service learns from traffic: rewards change routing, limits filter models, pinned calls teach nothing."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from evaluation import grade
from evaluation.synthetic import SyntheticModel, SyntheticSource
from evaluation.upstreams import create_app

CALLS, CONCURRENCY = 2_000, 8
CHAT_PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "which of the two?"}]


async def test_a_reward_changes_routing(run_service, serve_in_thread, http, tmp_path):
    """Two models of equal price, right in 90 % and in 60 %: the better gets over 80 % of the second thousand calls."""
    rows = [SyntheticModel(name, q, 0.0, 0.0, 20, 1.0, 1.0) for name, q in (("better", 0.9), ("worse", 0.6))]
    with serve_in_thread(create_app(SyntheticSource(rows), seed=11)) as upstream_url:
        price = {"input_per_million": 1.0, "output_per_million": 1.0}
        config = {
            "models": [{"name": row.name, "endpoint": f"{upstream_url}/v1", "price": price} for row in rows],
            "pools": [{"name": "auto", "models": ["worse", "better"], "policy": {"seed": 7}}],
        }
        with run_service(config, tmp_path) as service:
            served: list[str] = []

            async def caller(calls):
                for _ in range(calls):
                    async with http.post(service.url + CHAT_PATH, json=body) as response:
                        answer = await response.json()
                    served.append(answer["model"])
                    quality = grade(answer["choices"][0]["message"]["content"])
                    reward = {"decision_id": answer["id"], "quality": quality}
                    async with http.post(service.url + "/reward", json=reward) as response:
                        assert response.status == 200

            body = {"model": "auto", "messages": MESSAGES}
            await asyncio.gather(*(caller(CALLS // CONCURRENCY) for _ in range(CONCURRENCY)))
    assert len(served) == CALLS
    assert Counter(served[CALLS // 2 :])["better"] > 0.8 * (CALLS // 2)


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    def pool(name, **more):
        return {"name": name, "models": ["good", "fair"]} | more

    config = {
        "models": [trial.model("good"), trial.model("fair"), trial.model("f500")],
        "pools": [
            pool("auto"),
            pool("strict", constraints={"p95_latency_s": 1e-5, "on_infeasible": "fail"}),
            pool("lenient", constraints={"p95_latency_s": 1e-5, "on_infeasible": "least_violation"}),
            {"name": "failing", "models": ["good", "f500"], "constraints": {"max_error_rate": 0.05}},
        ],
    }
    with run_service(config, tmp_path_factory.mktemp("learning")) as service:
        yield service


@pytest.fixture
def ask(service, http):
    async def ask(model):
        async with http.post(service.url + CHAT_PATH, json={"model": model, "messages": MESSAGES}) as response:
            return response.status, response.headers, await response.json()

    return ask


async def _metric(service, http, name):
    async with http.get(service.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)}


async def test_a_pool_that_shall_fail_answers_503_once_no_model_meets_its_limits(service, http, ask, wait_until):
    """But for a probe now and then: without one no model could show that it is better again."""
    for _ in range(200):
        status, headers, answer = await ask("strict")
        if status != 200:
            break
    assert (status, answer["error"]["code"]) == (503, "no_feasible_model")
    assert answer["error"]["type"] == "service_unavailable_error"
    assert headers["Retry-After"].isdecimal()
    in_strict = lambda: [e["payload"] for e in service.events("filter_event") if e["payload"]["pool"] == "strict"]  # noqa: E731
    moved = await wait_until(lambda: in_strict() if len(in_strict()) >= 2 else None)
    assert {(e["model"], e["to_state"]) for e in moved} == {("good", "filtered"), ("fair", "filtered")}
    assert all(e["evidence"] >= 100 and e["constraint_name"] == "p95_latency_s" for e in moved)
    states = await _metric(service, http, "pointsman_filter_state")
    assert states['pointsman_filter_state{model="good",pool="strict",state="filtered"}'] == 1.0


async def test_a_pool_that_shall_not_fail_takes_the_least_violation_and_says_so(service, ask):
    for _ in range(200):
        status, headers, answer = await ask("lenient")
        assert status == 200
        if "x-pointsman-limits" in headers:
            break
    assert headers["x-pointsman-limits"] == "least-violation"
    (decision,) = service.events("decision", answer["id"])
    assert decision["payload"]["infeasible"] is True
    assert decision["payload"]["feasible"] == [False, False]
    assert sum(decision["payload"]["probabilities"]) == pytest.approx(1.0)


async def test_a_model_that_fails_is_filtered_and_keeps_only_its_probe_share(service, ask):
    for _ in range(300):
        status, _, answer = await ask("failing")
        assert status in (200, 502)
    decision = service.events("decision", answer["id"])[0]["payload"] if status == 200 else None
    while decision is None:
        _, _, answer = await ask("failing")
        decision = service.events("decision", answer["id"])[0]["payload"] if "id" in answer else None
    assert decision["feasible"] == [True, False]
    assert 0 < decision["probabilities"][1] <= 0.02


async def test_pinned_calls_teach_pools_nothing(service, http, ask, stored_events):
    """No request is counted, nothing of outcome or feedback is learned."""
    from bandit.snapshot import loads

    for _ in range(5):
        _, headers, answer = await ask("good")
        assert headers["x-pointsman-mode"] == "pinned"
        reward = {"decision_id": answer["id"], "quality": 1.0}
        async with http.post(service.url + "/reward", json=reward) as response:
            assert response.status == 200
    assert service.stop() == 0
    learned = loads(_snapshot(service))["pools"]["auto"]
    assert learned["step"] == 0
    assert not learned["heads"]["weight"].any()


def _snapshot(service):
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(service.data_dir / "router.sqlite")) as connection:
        return connection.execute("SELECT payload FROM snapshots ORDER BY seq DESC LIMIT 1").fetchone()[0]
