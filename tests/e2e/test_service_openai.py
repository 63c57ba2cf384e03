"""The official openai client against the service, unchanged: asynchronous and not, streaming and not."""

from __future__ import annotations

import asyncio
import hashlib

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
ASK_TOOL = [{"role": "user", "content": "use it [tool]"}]
OUR_KEY, UPSTREAM_KEY = "caller-key-1234", "upstream-key-5678"


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "auth": {"keys": [{"key": OUR_KEY, "user": "ada", "team": "search", "tier": "paid"}]},
        "models": [trial.model(name, api_key=UPSTREAM_KEY) for name in ("good", "fair", "steady")]
        + [trial.model("renamed", upstream_model="good", price=None)],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("openai")) as service:
        yield service


@pytest.fixture
async def client(service):
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=OUR_KEY, max_retries=0) as client:
        yield client


async def test_a_completion_is_the_upstreams_with_the_decision_id_and_the_model_that_served(client, service, trial):
    completion = await client.chat.completions.create(model="auto", messages=HELLO)
    assert "quality 1.0" in completion.choices[0].message.content
    assert completion.model in ("good", "fair")
    (decision,) = service.events("decision", completion.id)
    assert (decision["payload"]["pool"], decision["payload"]["chosen"]) == ("auto", completion.model)
    assert [decision["payload"][name] for name in ("user", "team", "tier")] == ["ada", "search", "paid"]
    outcome = await service.outcome(completion.id)
    assert (outcome["status"], outcome["model"], outcome["stream"]) == ("ok", completion.model, False)
    tokens = (completion.usage.prompt_tokens, completion.usage.completion_tokens)
    assert (outcome["input_tokens"], outcome["output_tokens"]) == tokens
    assert outcome["cost_usd"] == pytest.approx((tokens[0] * 1.0 + tokens[1] * 10.0) / 1e6)


async def test_the_completions_id_is_what_a_reward_is_posted_for(client, service, http):
    completion = await client.chat.completions.create(model="auto", messages=HELLO)
    reward = {"decision_id": completion.id, "quality": 0.75}
    async with http.post(
        f"{service.url}/reward", json=reward, headers={"Authorization": f"Bearer {OUR_KEY}"}
    ) as response:
        assert (response.status, await response.json()) == (200, {"decision_id": completion.id, "status": "recorded"})
    (feedback,) = service.events("feedback", completion.id)
    assert feedback["payload"]["quality"] == 0.75


async def test_headers_say_what_was_decided_and_what_it_cost(client):
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
    completion, headers = raw.parse(), raw.headers
    assert headers["x-pointsman-decision-id"] == completion.id
    assert headers["x-pointsman-model"] == completion.model
    assert (headers["x-pointsman-mode"], headers["x-pointsman-attempts"]) == ("bandit", "1")
    usage = completion.usage
    cost_usd = (usage.prompt_tokens + 10 * usage.completion_tokens) / 1e6
    assert float(headers["x-pointsman-cost-usd"]) == pytest.approx(cost_usd)
    assert float(headers["x-pointsman-overhead-ms"]) > 0
    assert "x-pointsman-limits" not in headers


async def test_an_unknown_price_is_an_unknown_cost_and_not_zero(client, service):
    raw = await client.chat.completions.with_raw_response.create(model="renamed", messages=HELLO)
    assert "x-pointsman-cost-usd" not in raw.headers
    assert (await service.outcome(raw.headers["x-pointsman-decision-id"]))["cost_usd"] is None
    assert raw.parse().model == "renamed"  # our name for it, not the endpoint's


async def test_every_field_of_a_request_reaches_the_upstream_untouched(client, trial, http):
    """Known or unknown, nested or null: only `model` is replaced."""
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "user", "content": parts, "name": "ada"},
    ]
    known = {"temperature": 0.25, "max_tokens": 7, "tools": TOOLS, "response_format": {"type": "json_object"}}
    unknown = {"top_k": 5, "frobnicate": {"deep": [1, -2.5, None, True, "ü\u0000"]}, "metadata": None}
    await client.chat.completions.create(model="auto", messages=messages, **known, extra_body=unknown)
    received = (await trial.last_request(http))["body"]
    assert received.pop("model") in ("good", "fair")
    assert received == {"messages": messages, **known, **unknown}


async def test_the_upstream_gets_its_own_key_and_nothing_of_the_callers_headers(client, trial, http):
    more = {"x-pointsman-tags": "experiment=b", "x-pointsman-category": "math", "cookie": "a=b", "x-own": "1"}
    await client.chat.completions.create(model="good", messages=HELLO, extra_headers=more)
    headers = (await trial.last_request(http))["headers"]
    assert hashlib.sha256(UPSTREAM_KEY.encode()).hexdigest()[:12] in headers["authorization"]
    assert not set(headers) & set(more)
    assert not any(name.startswith("x-stainless") for name in headers)


async def test_category_and_tags_are_logged_with_the_decision(client, service):
    headers = {"x-pointsman-tags": "experiment = b, ring=2", "x-pointsman-category": "math"}
    completion = await client.chat.completions.create(model="auto", messages=HELLO, extra_headers=headers)
    (decision,) = service.events("decision", completion.id)
    assert decision["payload"]["tags"] == {"experiment": "b", "ring": "2"}
    assert decision["payload"]["category"] == "math"


async def test_tool_calls_come_back(client):
    completion = await client.chat.completions.create(model="auto", messages=ASK_TOOL, tools=TOOLS)
    (call,) = completion.choices[0].message.tool_calls
    assert (completion.choices[0].finish_reason, call.function.name) == ("tool_calls", "look_up")


async def test_tool_calls_come_back_in_a_stream(client):
    name, arguments, finish = None, "", None
    async for chunk in await client.chat.completions.create(model="auto", messages=ASK_TOOL, tools=TOOLS, stream=True):
        finish = chunk.choices[0].finish_reason or finish
        for call in chunk.choices[0].delta.tool_calls or []:
            name = call.function.name or name
            arguments += call.function.arguments
    assert (name, finish) == ("look_up", "tool_calls")
    assert "quality 1.0" in arguments


async def test_a_streams_chunks_carry_the_decision_id_and_no_usage_unless_asked_for(client, service, trial, http):
    """The upstream is asked for usage all the same, and the outcome has it."""
    stream = await client.chat.completions.create(model="auto", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    received = (await trial.last_request(http))["body"]
    assert received["stream_options"] == {"include_usage": True}
    (decision_id,) = {chunk.id for chunk in chunks}
    (model,) = {chunk.model for chunk in chunks}
    assert stream.response.headers["x-pointsman-decision-id"] == decision_id
    assert stream.response.headers["x-pointsman-model"] == model
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "quality 1.0" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    outcome = await service.outcome(decision_id)
    assert (outcome["status"], outcome["stream"], outcome["tokens_estimated"]) == ("ok", True, False)
    assert outcome["output_tokens"] > 0
    assert 0 < outcome["time_to_first_token_s"] <= outcome["latency_s"]


async def test_usage_is_shown_to_a_caller_who_asked_for_it(client, service, trial, http):
    options = {"include_usage": True, "include_obfuscation": False}
    stream = await client.chat.completions.create(model="auto", messages=HELLO, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    assert (await trial.last_request(http))["body"]["stream_options"] == options
    assert (chunks[-1].choices, chunks[-1].id) == ([], chunks[0].id)
    outcome = await service.outcome(chunks[0].id)
    assert chunks[-1].usage.completion_tokens == outcome["output_tokens"]


async def test_a_caller_who_declines_usage_does_not_see_it_and_it_is_learned_nevertheless(client, service, trial, http):
    options = {"include_usage": False}
    stream = await client.chat.completions.create(model="auto", messages=HELLO, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert (await service.outcome(chunks[0].id))["output_tokens"] > 0


async def test_the_first_chunk_is_passed_on_before_the_upstream_has_sent_its_last(client, trial, http):
    before = await trial.seen(http, "steady")
    stream = aiter(await client.chat.completions.create(model="steady", messages=HELLO, stream=True))
    await anext(stream)
    under_way = await trial.seen(http, "steady")
    assert (under_way["started"], under_way["finished"]) == (before["started"] + 1, before["finished"])
    assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"
    assert (await trial.seen(http, "steady"))["finished"] == before["finished"] + 1


async def test_text_completions(client, service):
    completion = await client.completions.create(model="auto", prompt="hello")
    assert "quality 1.0" in completion.choices[0].text
    assert (await service.outcome(completion.id))["status"] == "ok"
    stream = await client.completions.create(model="auto", prompt=["hello", "there"], stream=True)
    chunks = [chunk async for chunk in stream]
    assert "quality 1.0" in "".join(chunk.choices[0].text for chunk in chunks)
    assert (await service.outcome(chunks[0].id))["output_tokens"] > 0


async def test_embeddings(client, service):
    """An embedding has no id of its own; the decision's is in the header."""
    raw = await client.embeddings.with_raw_response.create(model="auto", input=["hello", "there"])
    answer = raw.parse()
    assert len(answer.data) == 2
    assert answer.model == raw.headers["x-pointsman-model"]
    outcome = await service.outcome(raw.headers["x-pointsman-decision-id"])
    assert (outcome["input_tokens"], outcome["output_tokens"]) == (answer.usage.prompt_tokens, 0)
    assert (await client.embeddings.create(model="auto", input=[1, 2, 3])).data[0].embedding


async def test_models_are_the_pools_and_then_the_models(client):
    listed = [(model.id, model.owned_by) async for model in client.models.list()]
    own = [(name, "pointsman") for name in ("good", "fair", "steady", "renamed")]
    assert listed == [("auto", "pointsman-pool"), *own]


async def test_the_client_that_does_not_wait_gets_the_same(service):
    def ask():
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=OUR_KEY, max_retries=0) as client:
            whole = client.chat.completions.create(model="auto", messages=HELLO)
            with client.chat.completions.stream(model="auto", messages=HELLO) as stream:
                streamed = stream.get_final_completion()
            text = client.completions.create(model="auto", prompt="hello")
            vectors = client.embeddings.create(model="auto", input="hello")
            return whole, streamed, text, vectors, [model.id for model in client.models.list()]

    whole, streamed, text, vectors, models = await asyncio.to_thread(ask)
    contents = [whole.choices[0].message.content, streamed.choices[0].message.content, text.choices[0].text]
    assert all("quality 1.0" in content for content in contents)
    assert {whole.model, streamed.model, text.model, vectors.model} <= {"good", "fair"}
    assert len({whole.id, streamed.id, text.id}) == 3
    assert models[0] == "auto"


async def test_errors_become_the_clients_own(client, service):
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="autp", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "did you mean 'auto'" in missing.value.message
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="another-key").chat.completions.create(model="auto", messages=HELLO)
