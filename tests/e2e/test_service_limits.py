"""What one request says of itself: what it may cost and take at most, and features of its caller's own."""

from __future__ import annotations

import duckdb
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
MAX_COST, MAX_LATENCY, CONTEXT = "x-pointsman-max-cost-usd", "x-pointsman-max-latency-s", "x-pointsman-context"
CHAT, TEXT, VECTORS, ROUTE = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/route"
BODIES = {CHAT: {"messages": HELLO}, TEXT: {"prompt": "hello"}, VECTORS: {"input": "hello"}, ROUTE: {}}


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    """A model costs a thousandth of another: without evidence both are thought to answer with e⁵ = 148 tokens."""
    dear = {"input_per_million": 1_000.0, "output_per_million": 10_000.0}
    config = {
        "models": [trial.model("good"), trial.model("fair", price=dear), trial.model("priceless", price=None)],
        "pools": [
            {"name": "auto", "models": ["good", "fair"]},
            {"name": "strict", "models": ["good", "fair", "priceless"], "constraints": {"on_infeasible": "fail"}},
            {"name": "vectors", "models": ["good", "fair"], "features": {"vector": 3, "text": "none"}},
        ],
    }
    with run_service(config, tmp_path_factory.mktemp("limits")) as service:
        yield service


@pytest.fixture
async def client(service):
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def decision_of(service, decision_id):
    (event,) = service.events("decision", decision_id)
    return event["payload"]


async def test_a_model_that_may_cost_too_much_takes_no_part(client, service):
    """148 tokens at 0.01 USD are 1.48 USD; at 10 USD a million, 0.0015 USD."""
    for _ in range(20):
        completion = await client.chat.completions.create(
            model="auto", messages=HELLO, extra_headers={MAX_COST: "0.25"}
        )
        row = decision_of(service, completion.id)
        assert (row["chosen"], row["feasible"], row["infeasible"]) == ("good", [True, False], False)
        assert (row["probabilities"], row["propensity"]) == ([1.0, 0.0], 1.0)


async def test_the_least_violating_model_answers_where_none_keeps_the_limits(client, service):
    answer = await client.chat.completions.with_raw_response.create(
        model="auto", messages=HELLO, extra_headers={MAX_COST: "1e-9"}
    )
    assert answer.headers["x-pointsman-limits"] == "least-violation"
    row = decision_of(service, answer.headers["x-pointsman-decision-id"])
    assert (row["chosen"], row["infeasible"], row["feasible"]) == ("good", True, [True, False])
    stream = await client.chat.completions.with_raw_response.create(
        model="auto", messages=HELLO, stream=True, extra_headers={MAX_LATENCY: "0.000002"}
    )
    assert stream.headers["x-pointsman-limits"] == "least-violation"
    assert [event async for event in stream.parse()]
    await service.outcome(stream.headers["x-pointsman-decision-id"])


async def test_a_pool_that_shall_fail_says_by_how_much_each_model_is_over(service, http):
    before = service.events()
    body = {"model": "strict", "messages": HELLO}
    async with http.post(service.url + CHAT, json=body, headers={MAX_COST: "1e-6"}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["type"]) == (422, "limits_not_met", "invalid_request_error")
    assert service.events() == before
    excess = error["excess"]
    assert set(excess) == {"good", "fair", "priceless"}
    assert excess["priceless"] is None  # what is unknown is never cheap
    assert 0 < excess["good"] < excess["fair"]
    assert "good: " in error["message"]
    assert "priceless: cost unknown" in error["message"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("header", [MAX_COST, MAX_LATENCY])
@pytest.mark.parametrize(
    "value", ["", "0", "-1", "nan", "inf", "1e999", "0.5 USD", "1,5", "1_000", "٣", "1e-300", "1e12"]
)
async def test_a_limit_that_is_no_number_above_zero_is_refused_by_its_name(
    service, expect_refusal, path, header, value
):
    status, error = await expect_refusal(service, "POST", path, {"model": "auto"} | BODIES[path], {header: value})
    assert (status, error["code"], error["param"]) == (400, "invalid_header", header)
    assert header in error["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT, VECTORS])
async def test_limits_choose_among_a_pools_models_and_so_not_for_one_that_is_named(service, expect_refusal, path):
    body = {"model": "good"} | BODIES[path]
    status, error = await expect_refusal(service, "POST", path, body, {MAX_LATENCY: "5"})
    assert (status, error["code"], error["param"]) == (400, "limits_need_pool", "model")


@pytest.mark.parametrize(
    "given", [{"max_cost_usd": 0.25}, {"max_cost_usd": 0.25, "max_latency_s": 60, "context": None}]
)
async def test_a_decision_alone_takes_limits_in_its_body_too(service, http, given):
    async with http.post(service.url + ROUTE, json={"model": "auto"} | given) as response:
        answer = await response.json()
    assert (response.status, answer["model"], answer["limits_met"]) == (200, "good", True)
    async with http.post(service.url + ROUTE, json={"model": "auto"}, headers={MAX_COST: "0.25"}) as response:
        assert (await response.json())["probabilities"] == {"good": 1.0, "fair": 0.0}


@pytest.mark.parametrize(
    ("given", "headers", "param"),
    [
        ({"max_cost_usd": 0}, {}, "max_cost_usd"),
        ({"max_cost_usd": "0.5"}, {}, "max_cost_usd"),
        ({"max_latency_s": True}, {}, "max_latency_s"),
        ({"max_latency_s": [1]}, {}, "max_latency_s"),
        ({"max_latency_s": 1}, {MAX_LATENCY: "1"}, "max_latency_s"),
        ({"context": "1,2,3"}, {}, "context"),
        ({"context": []}, {}, "context"),
        ({"context": [1, None, 3]}, {}, "context"),
        ({"context": [1, 2, 3]}, {CONTEXT: "1,2,3"}, "context"),
    ],
)
async def test_a_wrong_field_of_a_decisions_body_is_named(service, expect_refusal, given, headers, param):
    status, error = await expect_refusal(service, "POST", ROUTE, {"model": "vectors"} | given, headers)
    assert (status, error["code"], error["param"]) == (400, "invalid_request", param)


@pytest.mark.parametrize("value", ["0.5,-2,100", "0.5 , -2 , 1e2", "[0.5, -2, 100]"])
async def test_a_callers_own_features_are_the_contexts_last_columns(client, service, value):
    completion = await client.chat.completions.create(model="vectors", messages=HELLO, extra_headers={CONTEXT: value})
    assert decision_of(service, completion.id)["context"][-3:] == [0.5, -2.0, 100.0]


async def test_a_decision_alone_takes_a_vector_in_its_body_and_none_is_zeros(service, http):
    for body, expected in (({"context": [1, 2.5, -3]}, [1.0, 2.5, -3.0]), ({}, [0.0, 0.0, 0.0])):
        async with http.post(service.url + ROUTE, json={"model": "vectors"} | body) as response:
            decision_id = (await response.json())["decision_id"]
        assert decision_of(service, decision_id)["context"][-3:] == expected


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "value",
    [
        "",
        "1,2,",
        "1,,2",
        "nan,1,2",
        "1,2,inf",
        "a,b,c",
        "[1,2",
        '["1",2,3]',
        "[1,2,NaN]",
        "[[1,2,3]]",
        ",".join("1" * 65),
    ],
)
async def test_a_vector_that_is_none_is_refused_by_its_name(service, expect_refusal, path, value):
    body = {"model": "vectors"} | BODIES[path]
    status, error = await expect_refusal(service, "POST", path, body, {CONTEXT: value})
    assert (status, error["code"], error["param"]) == (400, "invalid_header", CONTEXT)
    assert CONTEXT in error["message"]


@pytest.mark.parametrize(
    ("pool", "value", "said"),
    [
        ("vectors", "1,2", "must be 3 numbers"),
        ("vectors", "1,2,3,4", "must be 3 numbers"),
        ("vectors", "1,2,101", "between -100 and 100"),
        ("auto", "1", "takes no vector"),
    ],
)
async def test_a_vector_that_does_not_fit_its_pool_is_refused(service, expect_refusal, pool, value, said):
    for path, body in BODIES.items():
        status, error = await expect_refusal(service, "POST", path, {"model": pool} | body, {CONTEXT: value})
        assert (status, error["code"], error["param"]) == (400, "invalid_context", "context")
        assert said in error["message"]
        assert CONTEXT in error["message"]


async def test_the_log_says_what_the_decisions_said(service):
    """Each row with the new columns, none rejected; run last, since it ends the service."""
    assert service.stop() == 0
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        rows = log.execute("SELECT decision_id, infeasible, withheld_usd FROM decisions ORDER BY seq").fetchall()
        assert log.execute("SELECT count(*) FROM rejected").fetchone() == (0,)
    logged = [event["payload"] for event in service.events("decision")]
    assert rows == [(row["decision_id"], row["infeasible"], row["withheld_usd"]) for row in logged]
    assert sum(row["infeasible"] for row in logged) == 2
