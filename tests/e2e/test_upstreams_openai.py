"""The official client against the upstream server, unchanged."""

from __future__ import annotations

import asyncio

import openai
import orjson
import pytest

from evaluation import grade
from evaluation.faults import Fault
from evaluation.synthetic import SyntheticModel, SyntheticSource
from evaluation.upstreams import create_app, serve

SOURCE = SyntheticSource([SyntheticModel("m", 1.0, 0.02, 0.0, 80), SyntheticModel("ill", 1.0, 0.02, 0.0, 80)])
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
HELLO = [{"role": "user", "content": "hello"}]
ASK_TOOL = [{"role": "user", "content": "use it [tool]"}]


@pytest.fixture
async def base_url():
    async with serve(create_app(SOURCE, faults={"ill": Fault("status", status=429)})) as url:
        yield url


@pytest.fixture
async def client(base_url):
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="k", max_retries=0) as client:
        yield client


async def test_chat(client):
    completion = await client.chat.completions.create(model="m", messages=HELLO)
    assert grade(completion.choices[0].message.content) == 1.0
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


async def test_chat_stream(client):
    options = {"include_usage": True}
    text, usage = "", None
    async for chunk in await client.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options=options
    ):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    assert grade(text) == 1.0
    assert usage.completion_tokens > 0


async def test_the_client_that_does_not_wait(base_url):
    """The synchronous client gets the same, streaming and not."""

    def ask():
        with openai.OpenAI(base_url=f"{base_url}/v1", api_key="k", max_retries=0) as client:
            whole = client.chat.completions.create(model="m", messages=HELLO).choices[0].message.content
            stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
            return whole, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert [grade(text) for text in await asyncio.to_thread(ask)] == [1.0, 1.0]


async def test_tool_calls(client):
    completion = await client.chat.completions.create(model="m", messages=ASK_TOOL, tools=TOOLS)
    (call,) = completion.choices[0].message.tool_calls
    assert (completion.choices[0].finish_reason, call.function.name) == ("tool_calls", "look_up")
    assert grade(orjson.loads(call.function.arguments)["note"]) == 1.0


async def test_tool_calls_in_a_stream(client):
    """The first piece names the function, the others join to its arguments."""
    name, arguments, finish = None, "", None
    async for chunk in await client.chat.completions.create(model="m", messages=ASK_TOOL, tools=TOOLS, stream=True):
        finish = chunk.choices[0].finish_reason or finish
        for call in chunk.choices[0].delta.tool_calls or []:
            name = call.function.name or name
            arguments += call.function.arguments
    assert (name, finish) == ("look_up", "tool_calls")
    assert grade(orjson.loads(arguments)["note"]) == 1.0


async def test_text_completions(client):
    completion = await client.completions.create(model="m", prompt="hello")
    assert grade(completion.choices[0].text) == 1.0
    stream = await client.completions.create(model="m", prompt="hello", stream=True)
    assert grade("".join([chunk.choices[0].text async for chunk in stream])) == 1.0


async def test_embeddings_in_both_encodings(client):
    """The client asks for base64 unless told otherwise; both are the same vector."""
    packed = await client.embeddings.create(model="m", input=["hello"])
    plain = await client.embeddings.create(model="m", input=["hello"], encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding)


async def test_models(client):
    assert [model.id async for model in client.models.list()] == ["m", "ill"]


async def test_errors_become_the_clients_own(client):
    with pytest.raises(openai.RateLimitError) as limited:
        await client.chat.completions.create(model="ill", messages=HELLO)
    assert limited.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nobody", messages=HELLO)
    assert missing.value.code == "model_not_found"
