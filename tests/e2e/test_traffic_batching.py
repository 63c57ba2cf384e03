"""Small calls that go to their endpoint as one: few upstream calls, and everyone has an answer, a cost and an error."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter

import pytest
from inference_server import REFUSED, InferenceServer, vector

BATCHING = {"max_size": 16, "max_wait_ms": 100}
TENANTS = {name: {"Authorization": f"Bearer key-of-{name}"} for name in ("ada", "bo")}
ADA = TENANTS["ada"]
BREAKER = {"min_calls": 3, "failure_share": 0.5, "open_s": 30.0}


@pytest.fixture(scope="module")
def server(serve_in_thread):
    server = InferenceServer()
    with serve_in_thread(server.app) as server.url:
        yield server


@pytest.fixture(scope="module")
def service(run_service, server, tmp_path_factory):
    price = {"input_per_million": 1.0, "output_per_million": 0.0, "per_call": 0.01}
    models = [
        server.model("many", None, price=price, batching=BATCHING),
        server.model("bad", None, batching=BATCHING),
        server.model("slow", None, batching=BATCHING),
        server.model("apart", None, batching=BATCHING),
        server.model("shared", None, batching=BATCHING | {"across_tenants": True}),
        server.model("failing", None, batching=BATCHING, breaker=BREAKER),
        server.model("narrow", None, batching=BATCHING | {"max_size": 4}, max_concurrent=1),
        server.model("rows", "oip", price={"per_call": 0.01}, batching=BATCHING),
        server.model("listed", "json", batching=BATCHING),
        server.model("plain", None),
    ]
    config = {
        "auth": {"keys": [{"key": f"key-of-{name}", "user": name} for name in TENANTS]},
        "failures": {"retries": {"max_attempts": 1}},
        "models": models,
        "pools": [{"name": f"p-{model['name']}", "models": [model["name"]]} for model in models],
    }
    with run_service(config, tmp_path_factory.mktemp("batching")) as service:
        yield service


@pytest.fixture
def post(service, http):
    async def post(path, body, headers=ADA):
        async with http.post(f"{service.url}/v1/{path}", json=body, headers=headers) as response:
            return response.status, response.headers, await response.json()

    return post


@pytest.fixture
def embed(post):
    async def embed(name, text, headers=ADA):
        return await post("embeddings", {"model": f"p-{name}", "input": text}, headers)

    return embed


async def spared(service, http, model):
    async with http.get(f"{service.url}/metrics") as response:
        text = await response.text()
    found = re.search(rf'pointsman_batching_spared_calls_total{{model="{model}"}} ([\d.]+)', text)
    return 0 if found is None else int(float(found[1]))


async def test_fifty_calls_are_few_upstream_calls_and_each_has_its_own(service, server, embed, http):
    """Vectors, decisions, tokens, and a share of the price of a call, which all together is what was to pay."""
    texts = [f"text {i}" for i in range(50)]
    answers = await asyncio.gather(*(embed("many", text) for text in texts))
    assert {told for told, _, _ in answers} == {200}
    assert [answer["data"] for _, _, answer in answers] == [
        [{"object": "embedding", "index": 0, "embedding": vector(text)}] for text in texts
    ]
    asked = server.calls("many")
    assert 4 <= asked <= 10
    assert sorted(text for body in server.bodies["many"] for text in body["input"]) == sorted(texts)
    assert await spared(service, http, "many") == 50 - asked
    ids = [headers["x-pointsman-decision-id"] for _, headers, _ in answers]
    assert len(set(ids)) == 50
    outcomes = [await service.outcome(decision_id) for decision_id in ids]
    assert Counter((outcome["status"], outcome["attempt"]) for outcome in outcomes) == {("ok", 0): 50}
    assert sum(outcome["input_tokens"] for outcome in outcomes) == 200
    assert sum(outcome["cost_usd"] for outcome in outcomes) == pytest.approx(asked * 0.01 + 200e-6)


async def test_a_bad_member_fails_nobody_else(service, server, embed):
    texts = ["one", "two", REFUSED, "four"]
    answers = await asyncio.gather(*(embed("bad", text) for text in texts))
    assert [told for told, _, _ in answers] == [200, 200, 400, 200]
    assert answers[2][2]["error"]["message"] == "one of the inputs is bad"
    assert [answers[i][2]["data"][0]["embedding"] for i in (0, 1, 3)] == [vector(texts[i]) for i in (0, 1, 3)]
    assert server.calls("bad") == 5
    outcomes = [await service.outcome(headers["x-pointsman-decision-id"]) for _, headers, _ in answers]
    assert [outcome["error"] for outcome in outcomes] == [None, None, "upstream_refused", None]


async def test_a_deadline_is_its_callers_alone(server, embed):
    server.waits["slow"] = 0.8
    hurried = ADA | {"x-pointsman-timeout-s": "0.3"}
    began = time.monotonic()
    answers = await asyncio.gather(embed("slow", "first", hurried), embed("slow", "second"), embed("slow", "third"))
    assert time.monotonic() - began >= 0.8
    assert [told for told, _, _ in answers] == [504, 200, 200]
    assert answers[0][2]["error"]["code"] == "deadline_exceeded"
    assert server.calls("slow") == 1


async def test_a_caller_who_leaves_takes_nobody_along(server, embed, wait_until):
    server.waits["slow"], before = 0.5, server.calls("slow")
    leaving, staying = (asyncio.create_task(embed("slow", text)) for text in ("leaves", "stays"))
    await wait_until(lambda: server.calls("slow") > before)
    leaving.cancel()
    told, _, answer = await staying
    assert (told, answer["data"][0]["embedding"]) == (200, vector("stays"))
    assert server.calls("slow") == before + 1


@pytest.mark.parametrize(("model", "mixed"), [("apart", False), ("shared", True)])
async def test_tenants_are_apart_unless_told_otherwise(server, embed, model, mixed):
    texts = [(name, f"{name} {i}") for i in range(8) for name in TENANTS]
    answers = await asyncio.gather(*(embed(model, text, TENANTS[name]) for name, text in texts))
    assert [answer["data"][0]["embedding"] for _, _, answer in answers] == [vector(text) for _, text in texts]
    together = [{text.split()[0] for text in body["input"]} for body in server.bodies[model]]
    assert any(len(names) == 2 for names in together) == mixed
    assert len(together) <= 8


async def test_a_failed_batch_counts_once_for_the_breaker(service, server, embed):
    """Ten callers of one failed call have an error each, and the endpoint one failure: three of them open it."""
    server.failing["failing"] = 500
    for batch in range(3):
        answers = await asyncio.gather(*(embed("failing", f"{batch} {i}") for i in range(10)))
        assert {(told, answer["error"]["code"]) for told, _, answer in answers} == {(502, "upstream_error")}
        assert len({headers["x-pointsman-decision-id"] for _, headers, _ in answers}) == 10
        assert server.calls("failing") == batch + 1
    told, _, answer = await embed("failing", "last")
    assert (told, answer["error"]["code"]) == (503, "no_model_available")


async def test_no_more_calls_are_under_way_than_the_endpoint_takes(server, embed):
    """Ten calls at once, four in a batch, and one batch at a time."""
    server.waits["narrow"] = 0.05
    answers = await asyncio.gather(*(embed("narrow", f"text {i}") for i in range(10)))
    assert {told for told, _, _ in answers} <= {200, 503}
    assert [len(body["input"]) for body in server.bodies["narrow"]][:2] == [4, 4]


async def test_tensors_are_joined_and_cut(service, server, post):
    def body(i):
        rows = [[i, 1.0], [i, 2.0]][: 1 + i % 2]
        return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}]}

    answers = await asyncio.gather(*(post("infer/p-rows", body(i)) for i in range(10)))
    for i, (told, headers, answer) in enumerate(answers):
        (output,) = answer["outputs"]
        rows = [i + 1.0, i + 2.0][: 1 + i % 2]
        assert (told, output["shape"], output["data"]) == (200, [len(rows)], rows)
        assert answer["id"] == headers["x-pointsman-decision-id"]
    asked = server.calls("rows")
    assert asked < 5
    costs = [(await service.outcome(headers["x-pointsman-decision-id"]))["cost_usd"] for _, headers, _ in answers]
    assert sum(costs) == pytest.approx(asked * 0.01)


async def test_instances_are_joined_and_other_bodies_are_not(server, post):
    bodies = [{"instances": ["x" * i]} for i in range(1, 5)] + [{"text": "a"}, {"text": "b"}]
    answers = await asyncio.gather(*(post("infer/listed", body) for body in bodies))
    assert [answer for _, _, answer in answers[:4]] == [{"predictions": [i]} for i in range(1, 5)]
    assert [answer[0]["label"] for _, _, answer in answers[4:]] == ["listed", "listed"]
    assert server.calls("listed") == 3


async def test_without_the_setting_each_goes_alone(server, embed):
    await asyncio.gather(*(embed("plain", f"text {i}") for i in range(5)))
    assert server.calls("plain") == 5
