"""Models that are no chat: any ML endpoint is routed, limited, paid for and rewarded like the others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from inference_server import InferenceServer

ADMIN = {"Authorization": "Bearer admins-key-12"}
ADA, BO, CY = ({"Authorization": f"Bearer key-of-{name}"} for name in ("ada", "bo", "cy"))
ROWS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}]}


@pytest.fixture(scope="module")
def server(serve_in_thread):
    server = InferenceServer()
    with serve_in_thread(server.app) as server.url:
        yield server


@pytest.fixture(scope="module")
def service(run_service, server, trial, tmp_path_factory):
    models = [
        server.model("cheap", price={"per_call": 0.001}, api_key="upstreams-key"),
        server.model("dear", price={"per_call": 0.01}),
        server.model("second", upstream_model="first/versions/2", price={"per_call": 0.4}),
        server.model("broken"),
        server.model("labels", "json"),
        trial.model("good"),
    ]
    pools = [
        {"name": "sums", "models": ["cheap", "dear"], "features": {"vector": 2, "categories": ["night"]}},
        {"name": "paid", "models": ["second"]},
        {"name": "safe", "models": ["broken", "cheap"], "weights": {"broken": 1}},
        {"name": "labelling", "models": ["labels"]},
        {"name": "auto", "models": ["good"]},
    ]
    keys = [
        {"key": f"key-of-{name}", "user": name, "tier": "slow" if name == "cy" else "any"}
        for name in ("ada", "bo", "cy")
    ]
    config = {
        "auth": {"admin_key": "admins-key-12", "keys": keys},
        "tiers": [{"name": "any"}, {"name": "slow", "pools": {"sums": "safe"}}],
        "budgets": [{"scope": "user", "match": "bo", "usd": 1.0, "per": "total", "kind": "hard"}],
        "limits": [{"scope": "user", "match": "cy", "requests_per_minute": 2}],
        "models": models,
        "pools": pools,
    }
    with run_service(config, tmp_path_factory.mktemp("infer")) as service:
        yield service


@pytest.fixture
async def refused(service, expect_refusal, wait_until):
    """`expect_refusal`, once the outcomes of the calls before are durable: they are no sign of a record."""

    async def refused(path, body):
        decided = {event["decision_id"] for event in service.events("decision")}
        await wait_until(lambda: decided <= {event["decision_id"] for event in service.events("outcome")})
        return await expect_refusal(service, "POST", path, body, ADA)

    return refused


@pytest.fixture
def infer(service, http):
    async def infer(pool, body, headers=ADA):
        async with http.post(f"{service.url}/v1/infer/{pool}", json=body, headers=headers) as response:
            return response.status, response.headers, await response.json()

    return infer


async def test_tensors_go_by_the_protocol_and_come_back_with_the_decisions_id(service, server, infer, http):
    told, headers, answer = await infer("sums", ROWS, ADA | {"x-pointsman-category": "night"})
    model, decision_id = headers["x-pointsman-model"], headers["x-pointsman-decision-id"]
    output = {"name": "found", "datatype": "FP32", "shape": [2], "data": [3.0, 7.0]}
    assert told == 200
    assert answer == {"model_name": model, "model_version": "1", "id": decision_id, "outputs": [output]}
    assert server.bodies[model][-1] == ROWS
    assert headers["x-pointsman-cost-usd"] == {"cheap": "0.001000000", "dear": "0.010000000"}[model]
    outcome = await service.outcome(decision_id)
    assert (outcome["status"], outcome["input_tokens"], outcome["cost_usd"] > 0) == ("ok", None, True)
    (decision,) = service.events("decision", decision_id)
    assert (decision["payload"]["category"], decision["payload"]["mode"]) == ("night", "bandit")
    reward = {"decision_id": decision_id, "quality": 1.0}
    async with http.post(f"{service.url}/reward", json=reward, headers=ADA) as response:
        assert (await response.json())["status"] == "recorded"


async def test_a_callers_own_id_stays_and_a_version_is_part_of_the_name(server, infer):
    told, headers, answer = await infer("second", ROWS | {"id": "mine"})
    assert (told, answer["id"], answer["model_name"], headers["x-pointsman-mode"]) == (200, "mine", "second", "pinned")
    assert server.bodies["first"][-1] == ROWS | {"id": "mine"}


async def test_json_of_its_own_passes_as_it_is(server, infer):
    """Also an answer that is no object."""
    body = {"text": "how now", "model": "theirs", "options": {"top": 1}}
    told, headers, answer = await infer("labelling", body)
    assert (told, answer) == (200, [{"label": "labels", "score": 0.5}])
    assert server.bodies["labels"][-1] == body
    assert headers["x-pointsman-decision-id"]
    assert "x-pointsman-cost-usd" not in headers  # it has no price


async def test_an_answer_that_was_made_is_an_answer(server, infer):
    """201 is what many servers say to a POST that made something."""
    server.made.add("labels")
    told, _, answer = await infer("labelling", {"text": "how now"})
    server.made.clear()
    assert (told, answer) == (200, [{"label": "labels", "score": 0.5}])


async def test_the_models_key_is_sent_and_the_callers_is_not(server, infer):
    await infer("cheap", ROWS)
    assert server.headers["cheap"][-1]["Authorization"] == "Bearer upstreams-key"


async def test_a_limit_of_the_request_leaves_the_model_that_keeps_it(infer):
    models = Counter()
    for _ in range(10):
        _, headers, _ = await infer("sums", ROWS, ADA | {"x-pointsman-max-cost-usd": "0.005"})
        models[headers["x-pointsman-model"]] += 1
    assert models == {"cheap": 10}


async def test_features_of_ones_own_are_taken(infer):
    assert (await infer("sums", ROWS, ADA | {"x-pointsman-context": "0.5,-1"}))[0] == 200
    told, _, answer = await infer("sums", ROWS, ADA | {"x-pointsman-context": "0.5"})
    assert (told, answer["error"]["code"]) == (400, "invalid_context")


async def test_another_model_takes_over_where_one_fails(server, infer):
    server.failing["broken"] = 500
    told, headers, answer = await infer("safe", ROWS)
    assert (told, answer["model_name"], headers["x-pointsman-attempts"]) == (200, "cheap", "2")


async def test_what_the_endpoint_refuses_is_passed_on_with_its_sentence(server, infer):
    server.failing["first"] = 400
    told, headers, answer = await infer("second", ROWS)
    del server.failing["first"]
    assert (told, answer["error"]["message"]) == (400, "what the server says of it")
    assert headers["x-pointsman-decision-id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"model": "sums", "messages": [{"role": "user", "content": "hi"}]}),
        ("chat/completions", {"model": "cheap", "messages": [{"role": "user", "content": "hi"}], "stream": True}),
        ("completions", {"model": "labels", "prompt": "hi"}),
        ("embeddings", {"model": "labelling", "input": "hi"}),
        ("infer/auto", ROWS),
        ("infer/good", ROWS),
    ],
)
async def test_a_call_of_another_kind_is_refused(refused, path, body):
    told, error = await refused(f"/v1/{path}", body)
    assert (told, error["code"], error["param"]) == (400, "wrong_kind_of_model", "model")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": ["2"], "data": []}]}, "inputs[0].shape"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}, "inputs[0].data"),
        (ROWS | {"outputs": [{}]}, "outputs[0].name"),
        (ROWS | {"parameters": {"binary_data_output": True}}, "parameters.binary_data_output"),
        (ROWS | {"stream": True}, "stream"),
        ([1, 2], None),
    ],
)
async def test_what_the_protocol_cannot_say_is_refused(refused, body, param):
    told, error = await refused("/v1/infer/sums", body)
    assert (told, error["param"]) == (400, param)


async def test_an_unknown_name_is_not_found(refused):
    told, error = await refused("/v1/infer/sum", ROWS)
    assert (told, error["code"]) == (404, "model_not_found")
    assert "'sums'" in error["message"]


async def test_a_budget_holds_by_the_price_of_a_call(infer):
    told = [(await infer("paid", ROWS, BO))[0] for _ in range(3)]
    assert told == [200, 200, 402]


async def test_a_tiers_pool_and_rate_are_its_own(server, infer):
    server.failing["broken"] = 500
    answers = [await infer("sums", ROWS, CY) for _ in range(3)]
    assert [told for told, _, _ in answers] == [200, 200, 429]
    assert {answer["model_name"] for _, _, answer in answers[:2]} == {"cheap"}
    assert answers[1][1]["x-ratelimit-remaining-requests"] == "0"


async def test_a_decision_alone_is_to_be_had_for_such_a_pool(service, http):
    async with http.post(f"{service.url}/v1/route", json={"model": "sums"} | ROWS, headers=ADA) as response:
        decision = await response.json()
    assert (response.status, decision["model"] in {"cheap", "dear"}) == (200, True)
    outcome = {"decision_id": decision["decision_id"], "status": "ok", "latency_s": 0.1, "cost_usd": 0.001}
    async with http.post(f"{service.url}/outcome", json=outcome, headers=ADA) as response:
        assert response.status == 200


async def test_only_models_that_take_the_same_calls_join_a_pool(service, http):
    for model, pool, status in (("good", "sums", 409), ("second", "sums", 201), ("labels", "sums", 409)):
        body = {"model": model, "pools": [pool]}
        async with http.post(f"{service.url}/admin/models", json=body, headers=ADMIN) as response:
            assert response.status == status, await response.text()
    async with http.delete(f"{service.url}/admin/models/second?pools=sums", headers=ADMIN) as response:
        assert response.status == 200


async def test_what_is_rewarded_gets_the_calls(service, server, infer, http):
    """After sixty graded calls, the model whose answers were good gets most of the next forty."""
    chosen = []
    for i in range(100):
        _, headers, _ = await infer("sums", ROWS)
        chosen.append(headers["x-pointsman-model"])
        if i < 60:
            grade = {"decision_id": headers["x-pointsman-decision-id"], "quality": float(chosen[-1] == "dear")}
            async with http.post(f"{service.url}/reward", json=grade, headers=ADA) as response:
                assert response.status == 200
    assert Counter(chosen[60:])["dear"] >= 30


def test_suites_are_for_chat_models(service, tmp_path):
    suite = tmp_path / "suite.jsonl"
    suite.write_text('{"id": "1", "prompt": "2 + 2?", "answer": 4, "grader": "numeric"}\n')
    command = [sys.executable, "-m", "serving", "evaluate", "--url", service.url, "--suite", str(suite)]
    env = os.environ | {"POINTSMAN_ADMIN_KEY": "admins-key-12"}
    done = subprocess.run([*command, "--models", "labels"], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert "no chat model" in done.stdout + done.stderr
