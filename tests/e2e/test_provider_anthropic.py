"""The official openai client, unchanged, against an endpoint that speaks Anthropic's Messages API: the real service."""

from __future__ import annotations

import asyncio
import json
import time

import openai
import pytest
from anthropic_upstream import KEY, Trial
from scripted_upstream import Scripted

HELLO = [{"role": "user", "content": "hello"}]
PNG = "data:image/png;base64,iVBORw0KGgo="
TEXT_USD = (42 * 3.0 + 100 * 0.3 + 7 * 15.0) / 1e6  # of the fixture: 42 new tokens, 100 cached, 7 said
ADMIN = "admin-key-of-trial"
OURS = "caller-key-1234"


def tool(name, **properties):
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }


TOOLS = [tool("weather", city={"type": "string"}, days={"type": "integer"}), tool("now")]


@pytest.fixture(scope="module")
def trial(serve_in_thread):
    trial = Trial()
    with serve_in_thread(trial.app) as trial.url:
        yield trial


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def service(run_service, trial, scripted, tmp_path_factory):
    quiet = {"breaker": {"enabled": False}}
    names = ("claude", "first", "twin", "unkeyed", "metered")
    keys = {"unkeyed": {"api_key": "sk-wrong"}}
    models = [trial.model(name, **quiet, **keys.get(name, {})) for name in names]
    models += [scripted.model("gpt", **quiet)]
    failures = {"retries": {"backoff_s": 0.01, "burst": 1000}}
    always_first = {"weights": {"first": 1}, "failures": failures}
    config = {
        "auth": {
            "admin_key": ADMIN,
            "keys": [
                {"key": OURS, "user": "ada"},
                {"key": "metered-key-1234", "user": "meter"},
            ],
        },
        "budgets": [{"scope": "user", "match": "meter", "usd": 1, "per": "total"}],
        "models": models,
        "pools": [
            {"name": "mixed", "models": ["twin", "gpt"], "weights": {"twin": 1, "gpt": 1}, "failures": failures},
            {"name": "guarded", "models": ["first", "gpt"], **always_first},
            {"name": "alone", "models": ["first"], "failures": failures},
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIAL_KEY", KEY)
        with run_service(config, tmp_path_factory.mktemp("anthropic")) as service:
            yield service
    assert KEY not in service.log
    assert trial.refused == []  # all that was sent is what the protocol takes


@pytest.fixture
async def client(service):
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=OURS, max_retries=0) as client:
        yield client


@pytest.fixture
def attempts(service, wait_until):
    async def attempts(decision_id, count):
        await wait_until(lambda: len(service.events("outcome", decision_id)) >= count)
        rows = [event["payload"] for event in service.events("outcome", decision_id)]
        return [(row["model"], row["status"], row["http_status"]) for row in rows]

    return attempts


async def streamed(client, **more):
    stream = await client.chat.completions.create(stream=True, **more)
    return [chunk async for chunk in stream]


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_a_completion_with_its_instructions_tokens_and_cost(client, service, trial):
    messages = [{"role": "system", "content": "You set the points."}, *HELLO]
    raw = await client.chat.completions.with_raw_response.create(model="claude", messages=messages, temperature=0.5)
    completion = raw.parse()
    assert completion.choices[0].message.content == "Points set, line clear."
    assert completion.choices[0].finish_reason == "stop"
    assert (completion.id, completion.model) == (raw.headers["x-pointsman-decision-id"], "claude")
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (142, 7, 100)
    assert float(raw.headers["x-pointsman-cost-usd"]) == pytest.approx(TEXT_USD)
    outcome = await service.outcome(completion.id)
    assert (outcome["cost_usd"], outcome["cached_tokens"]) == (pytest.approx(TEXT_USD), 100)
    assert trial.requests["claude"][-1] == {
        "model": "claude-trial",
        "max_tokens": 4096,
        "temperature": 0.5,
        "system": "You set the points.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    }


async def test_an_image_reaches_it_as_a_source(client, trial):
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PNG}}]
    await client.chat.completions.create(model="claude", messages=[{"role": "user", "content": content}])
    (turn,) = trial.requests["claude"][-1]["messages"]
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    assert turn["content"][1] == {"type": "image", "source": source}


async def test_a_stream_with_its_usage(client, service):
    options = {"include_usage": True}
    chunks = await streamed(client, model="claude", messages=HELLO, stream_options=options)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == "Points set, line clear."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (142, 7, 100)
    assert {chunk.model for chunk in chunks} == {"claude"}
    (id_,) = {chunk.id for chunk in chunks}
    outcome = await service.outcome(id_)
    assert (outcome["stream"], outcome["tokens_estimated"], outcome["cost_usd"]) == (
        True,
        False,
        pytest.approx(TEXT_USD),
    )


async def test_usage_is_counted_but_not_shown_to_who_did_not_ask(client, service):
    chunks = await streamed(client, model="claude", messages=HELLO)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert (await service.outcome(chunks[0].id))["input_tokens"] == 142


async def test_a_round_of_tools(client, trial):
    """Calls, their results, the final answer: with the client's own objects put back as they are."""
    messages = [{"role": "user", "content": "weather and time?"}]
    first = await client.chat.completions.create(model="claude", messages=messages, tools=TOOLS)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in message.tool_calls] == ["weather", "now"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Köln", "days": 2}
    messages += [message, *results(message.tool_calls)]
    final = await client.chat.completions.create(model="claude", messages=messages, tools=TOOLS)
    assert final.choices[0].message.content == "Points set, line clear."
    assert_round(trial.requests["claude"][-1])


async def test_a_round_of_tools_streamed(client, trial):
    """The client's own accumulator puts the calls together."""
    messages = [{"role": "user", "content": "weather and time?"}]
    async with client.chat.completions.stream(model="claude", messages=messages, tools=TOOLS) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Köln", "days": 2}
    assert json.loads(message.tool_calls[1].function.arguments) == {}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
        for call in message.tool_calls
        for arguments in (call.function.arguments,)
    ]
    messages += [
        {"role": "assistant", "content": message.content, "tool_calls": calls},
        *results(message.tool_calls),
    ]
    chunks = await streamed(client, model="claude", messages=messages, tools=TOOLS)
    assert text_of(chunks) == "Points set, line clear."
    assert_round(trial.requests["claude"][-1])


def results(calls):
    return [{"role": "tool", "tool_call_id": call.id, "content": f"of {call.function.name}"} for call in calls]


def assert_round(request):
    _, said, answered = request["messages"]
    assert said["content"] == [
        {"type": "text", "text": "I look both up."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln", "days": 2}},
        {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
    ]
    assert [(block["tool_use_id"], block["content"][0]["text"]) for block in answered["content"]] == [
        ("toolu_1", "of weather"),
        ("toolu_2", "of now"),
    ]


async def test_thoughts_are_beside_the_content_and_may_be_brought_back(client, trial):
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    completion = await client.chat.completions.create(model="claude", messages=HELLO, extra_body=thinking)
    message = completion.choices[0].message
    assert (message.content, message.reasoning_content) == ("391", "Seventeen by twenty-three.")
    messages = [*HELLO, message, {"role": "user", "content": "sure?"}]
    await client.chat.completions.create(model="claude", messages=messages, extra_body=thinking)
    kinds = [block["type"] for block in trial.requests["claude"][-1]["messages"][1]["content"]]
    assert kinds == ["thinking", "redacted_thinking", "text"]


async def test_one_pool_of_both_protocols_answers_one_client(client, trial, scripted):
    """Equal shares: 40 calls, and the chance that one of the two gets none is 2 in 2**40."""

    async def ask(number):
        if number % 2:
            chunks = await streamed(client, model="mixed", messages=HELLO)
            return chunks[0].model, text_of(chunks)
        completion = await client.chat.completions.create(model="mixed", messages=HELLO)
        return completion.model, completion.choices[0].message.content

    answers = set(await asyncio.gather(*(ask(number) for number in range(40))))
    assert answers >= {("twin", "Points set, line clear.")}
    assert {model for model, _ in answers} == {"twin", "gpt"}
    assert trial.requests["twin"]
    assert scripted.calls("gpt")


async def test_what_only_one_of_them_can_say_goes_there_alone(client, service, trial):
    """Not by luck: the other has no part in the decision, and the logged probabilities say so."""
    asked = len(trial.requests["twin"])
    for _ in range(8):
        completion = await client.chat.completions.create(model="mixed", messages=HELLO, n=2)
        (decision,) = service.events("decision", completion.id)
        assert (completion.model, decision["payload"]["propensity"]) == ("gpt", 1.0)
    assert len(trial.requests["twin"]) == asked


@pytest.mark.parametrize(("what", "status"), [("too-long", 400), ("too-large", 413), ("blocked", 400)])
async def test_what_another_model_may_take_goes_there(client, trial, attempts, what, status):
    trial.plans["first"].append(what)
    completion = await client.chat.completions.create(model="guarded", messages=HELLO)
    assert completion.choices[0].message.content == "from gpt"
    assert await attempts(completion.id, 2) == [("first", "error", status), ("gpt", "ok", 200)]


@pytest.mark.parametrize(("what", "status"), [("overloaded", 529), ("broken", 500), ("limited", 429), ("unpaid", 402)])
async def test_its_own_trouble_is_tried_elsewhere(client, trial, attempts, what, status):
    """`limited` asks for a second of rest: until that is over the model takes no part."""
    trial.plans["first"].append(what)
    completion = await client.chat.completions.create(model="guarded", messages=HELLO)
    assert completion.model == "gpt"
    assert await attempts(completion.id, 2) == [("first", "error", status), ("gpt", "ok", 200)]
    answered_by, give_up_at = "gpt", time.monotonic() + 20
    while answered_by != "first":
        assert time.monotonic() < give_up_at, "it never came back"
        await asyncio.sleep(0.05)
        answered_by = (await client.chat.completions.create(model="guarded", messages=HELLO)).model


async def test_overload_is_tried_again_where_there_is_nobody_else(client, trial, attempts):
    trial.plans["first"].append("overloaded")
    completion = await client.chat.completions.create(model="alone", messages=HELLO)
    assert await attempts(completion.id, 2) == [("first", "error", 529), ("first", "ok", 200)]


async def test_the_callers_own_mistake_is_passed_on(client, trial):
    trial.plans["claude"].append("wrong")
    with pytest.raises(openai.BadRequestError) as told:
        await client.chat.completions.create(model="claude", messages=HELLO)
    assert told.value.body["message"].startswith("tools.0.name")
    assert (told.value.body["type"], told.value.body["code"]) == ("invalid_request_error", "upstream_refused")


@pytest.mark.parametrize("events", [0, 1, 2])
async def test_a_stream_that_errs_before_it_said_anything_is_had_elsewhere(client, trial, attempts, events):
    """Headers with status 200 came, even the message's start: nothing of it was passed on."""
    trial.plans["first"].append(f"error-after-{events}")
    chunks = await streamed(client, model="guarded", messages=HELLO)
    assert ({chunk.model for chunk in chunks}, text_of(chunks)) == ({"gpt"}, "onetwo")
    assert await attempts(chunks[0].id, 2) == [("first", "error", 200), ("gpt", "ok", 200)]


async def test_a_stream_that_errs_later_tells_the_caller(client, trial, service):
    trial.plans["first"].append("error-after-4")
    said = []

    async def read():
        async for chunk in await client.chat.completions.create(model="guarded", messages=HELLO, stream=True):
            said.append(chunk)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError) as told:
        await read()
    assert text_of(said) == "Points set, "
    assert told.value.body["code"] == "upstream_malformed"
    assert "Overloaded" not in told.value.body["message"]
    assert (await service.outcome(said[0].id))["status"] == "error"


async def test_what_it_says_of_our_key_stays_here(client):
    with pytest.raises(openai.InternalServerError) as told:
        await client.chat.completions.create(model="unkeyed", messages=HELLO)
    assert told.value.status_code == 502
    assert "x-api-key" not in str(told.value.body)


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("chat/completions", {"messages": HELLO, "n": 2}, "n", "invalid_request"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
            "invalid_request",
        ),
        ("embeddings", {"input": "a"}, "model", "wrong_kind_of_model"),
        ("completions", {"prompt": "a"}, "model", "wrong_kind_of_model"),
    ],
)
async def test_what_it_cannot_say_is_refused_and_not_recorded(  # noqa: PLR0917 - a row's columns
    service, http, path, body, param, code
):
    headers, before = {"Authorization": f"Bearer {OURS}"}, service.events("decision")
    async with http.post(f"{service.url}/v1/{path}", json={"model": "claude", **body}, headers=headers) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (400, param, code)
    assert service.events("decision") == before


async def test_a_hard_budget_sets_aside_what_is_asked_for(service, trial):
    """Nobody says how long the answer may be: what is reserved and sent is 4096 tokens, not what others may say."""
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="metered-key-1234", max_retries=0) as client:
        await client.chat.completions.create(model="metered", messages=HELLO)
    assert trial.requests["metered"][-1]["max_tokens"] == 4096


async def test_a_model_may_join_while_the_service_runs(service, client, http, trial):
    entry = trial.model("joined", api_key="${TRIAL_KEY}")
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with http.post(f"{service.url}/admin/models", json={"model": entry, "pools": []}, headers=headers) as answer:
        assert (answer.status, (await answer.json())["kind"]) == (201, "anthropic")
    completion = await client.chat.completions.create(model="joined", messages=HELLO)
    assert (completion.model, completion.usage.prompt_tokens) == ("joined", 142)
