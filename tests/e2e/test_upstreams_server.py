"""The upstream server on a real socket: what it answers, counts, shows, and does while conditions change."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import duckdb
import orjson
import pytest

from bandit.errors import InvalidInput
from evaluation import RecordedSet, grade
from evaluation.faults import LatencyShift
from evaluation.recorded import RecordedSource
from evaluation.synthetic import SyntheticModel, SyntheticSource
from evaluation.upstreams import CATEGORY_HEADER, create_app, serve

QUICK = SyntheticModel("quick", 0.5, 0.01, 0.1, 40, 1.0, 2.0, {"math": 1.0, "chat": 0.0})
SLOW = SyntheticModel("slow", 1.0, 30.0, 0.0, 40)
SOURCE = SyntheticSource([QUICK, SLOW])


def chat(text="hello", model="quick", **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def post(session, base_url, body, path="/v1/chat/completions", headers=None):
    async with session.post(base_url + path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def control(session, base_url, query=""):
    async with session.get(f"{base_url}/control{query}") as response:
        assert response.status == 200
        return await response.json()


async def tally_when(session, base_url, model, condition):
    """The tally of a model as soon as it meets the condition: to see a closed socket takes the server a moment."""
    async with asyncio.timeout(5):
        while True:
            tally = (await control(session, base_url, "?last=0"))["models"][model]
            if condition(tally):
                return tally
            await asyncio.sleep(0.01)


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
async def base_url():
    async with serve(create_app(SOURCE)) as url:
        yield url


@pytest.fixture
def recorded(tmp_path):
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE p AS SELECT 'p1' prompt_id, 'Hi.' prompt, 'chat' category, 'test' split")
        connection.execute(
            "CREATE TABLE o AS SELECT 'p1' prompt_id, 'a' model, unnest(['r1', 'r2']) run, unnest([0.3, 0.6]) quality,"
            " NULL::DOUBLE cost_usd, 0.01 latency_s, 11 input_tokens, unnest([21, 22]) output_tokens"
        )
        connection.table("p").write_parquet(str(tmp_path / "prompts.parquet"))
        connection.table("o").write_parquet(str(tmp_path / "outcomes.parquet"))
    return RecordedSet.load(tmp_path)


async def test_a_chat_completion_has_openais_shape(session, base_url):
    status, body = await post(session, base_url, chat("[math] 1 + 1?"))
    assert status == 200
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "quick")
    (choice,) = body["choices"]
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
    assert grade(choice["message"]["content"]) == 1.0
    usage = body["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_the_category_header_comes_before_the_texts_tag(session, base_url):
    _, body = await post(session, base_url, chat("[math] 1 + 1?"), headers={CATEGORY_HEADER: "chat"})
    assert grade(body["choices"][0]["message"]["content"]) == 0.0


async def test_text_completions_and_embeddings(session, base_url):
    _, body = await post(session, base_url, {"model": "quick", "prompt": "[math] 1?"}, "/v1/completions")
    assert (body["object"], grade(body["choices"][0]["text"])) == ("text_completion", 1.0)
    request = {"model": "quick", "input": ["one", "two"], "dimensions": 8}
    _, body = await post(session, base_url, request, "/v1/embeddings")
    assert [len(entry["embedding"]) for entry in body["data"]] == [8, 8]


async def test_models_and_health(session, base_url):
    async with session.get(f"{base_url}/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["quick", "slow"]
    async with session.get(f"{base_url}/healthz") as response:
        assert await response.json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "body", "invalid_value")),
        (b'{"model": "quick"}', (400, "messages", "invalid_value")),
        (orjson.dumps(chat(model="nobody")), (404, "model", "model_not_found")),
    ],
)
async def test_bad_requests_get_openais_error_body_and_count_nowhere(session, base_url, body, expected):
    async with session.post(f"{base_url}/v1/chat/completions", data=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == expected
    assert error["type"] == "invalid_request_error"
    tallies = (await control(session, base_url))["models"]
    assert all(tally["started"] == 0 for tally in tallies.values())


async def test_a_stream_arrives_in_pieces_and_in_time(session):
    """With a latency of 0.3 s, the first bytes come well before the end, and the end not before 0.3 s."""
    model = SyntheticModel("m", 1.0, 0.3, 0.0, 200)
    loop, times, text = asyncio.get_running_loop(), [], b""
    async with serve(create_app(SyntheticSource([model]))) as url:
        start = loop.time()
        request = chat(model="m", stream=True, stream_options={"include_usage": True})
        async with session.post(f"{url}/v1/chat/completions", json=request) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for data in response.content.iter_any():
                times.append(loop.time() - start)
                text += data
    assert 0.09 <= times[0] < 0.3 <= times[-1]
    assert len(times) > 4
    events = text.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert grade(content) == 1.0
    assert chunks[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_is_counted_as_cancelled(session, base_url, stream):
    request = asyncio.create_task(post(session, base_url, chat(model="slow", stream=stream)))
    await tally_when(session, base_url, "slow", lambda tally: tally["started"] == 1)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    tally = await tally_when(session, base_url, "slow", lambda tally: tally["cancelled"] == 1)
    assert tally == {"started": 1, "finished": 0, "failed": 0, "cancelled": 1}


async def test_two_hundred_calls_at_once_each_get_their_own_answer(session, base_url):
    """Streams and whole answers side by side: all end well, every id is unlike the others, nothing is left over."""

    async def one(i):
        body = chat(f"[{'math' if i % 2 else 'chat'}] {i}", stream=i % 3 == 0)
        async with session.post(f"{base_url}/v1/chat/completions", json=body) as response:
            text = (await response.read()).decode()
        quality = "quality 1.0" if i % 2 else "quality 0.0"
        joined = text
        if i % 3 == 0:
            chunks = [orjson.loads(e.removeprefix("data: ")) for e in text.split("\n\n") if e.startswith("data: {")]
            joined = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
            return quality in joined, chunks[0]["id"]
        return quality in joined, orjson.loads(text)["id"]

    results = await asyncio.gather(*(one(i) for i in range(200)))
    assert all(right for right, _ in results)
    assert len({reply_id for _, reply_id in results}) == 200
    tally = (await control(session, base_url))["models"]["quick"]
    assert tally == {"started": 200, "finished": 200, "failed": 0, "cancelled": 0}


async def test_the_same_seed_gives_a_model_the_same_answers_whatever_others_get(session):
    """What `quick` yields does not depend on how many calls the other model had in between."""
    other = SyntheticModel("other", 0.5, 0.0, 0.0, 40)

    async def qualities(calls_between, seed):
        got = []
        async with serve(create_app(SyntheticSource([QUICK, other]), seed=seed)) as url:
            for _ in range(12):
                _, body = await post(session, url, chat())
                got.append((grade(body["choices"][0]["message"]["content"]), body["usage"]["completion_tokens"]))
                for _ in range(calls_between):
                    await post(session, url, chat(model="other"))
        return got

    first = await qualities(0, seed=1)
    assert first == await qualities(2, seed=1)
    assert first != await qualities(0, seed=2)


async def test_control_shows_what_came_in_with_keys_redacted(session, base_url):
    """A key is gone but its digest tells it from others; bodies and further headers are as they came."""
    headers = {"Authorization": "Bearer sk-secret-1", "api-key": "sk-secret-2", "x-own": "kept"}
    request = chat(logit_bias={"5": 1}, vendor={"deep": [1, None]})
    await post(session, base_url, request, headers=headers)
    async with session.post(f"{base_url}/v1/completions", data=b"{broken") as response:
        assert response.status == 400
    shown = await control(session, base_url)
    first, second = shown["requests"]
    assert (first["path"], first["body"]) == ("/v1/chat/completions", request)
    assert first["headers"]["x-own"] == "kept"
    # printf %s sk-secret-1 | sha256sum
    assert first["headers"]["authorization"] == "Bearer [redacted sha256:07fd32658335]"
    assert "secret" not in orjson.dumps(shown).decode()
    assert second["body"] == "{broken"
    assert len((await control(session, base_url, "?last=1"))["requests"]) == 1


async def test_control_keeps_a_bounded_number_of_requests(session, base_url):
    for i in range(103):
        await post(session, base_url, {"model": "nobody", "messages": [{"role": "user", "content": str(i)}]})
    requests = (await control(session, base_url))["requests"]
    assert [r["body"]["messages"][0]["content"] for r in requests] == [str(i) for i in range(3, 103)]


@pytest.mark.parametrize("query", ["?last=101", "?last=-1", "?last=x"])
async def test_control_refuses_other_numbers_of_requests(session, base_url, query):
    async with session.get(f"{base_url}/control{query}") as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "last")


async def test_a_wrong_control_call_says_what_is_wrong(session, base_url):
    status, body = await post(session, base_url, {"faults": {"quick": {"kind": "explode"}}}, "/control")
    assert (status, body["error"]["param"]) == (400, "faults.quick")
    assert "stall" in body["error"]["message"]


async def test_latency_can_be_multiplied_while_running(session, base_url):
    """A thousandth of 30 s lets the slow model answer; its factor is shown."""
    status, shown = await post(session, base_url, {"latency_multiplier": {"slow": 0.001}}, "/control")
    assert (status, shown["latency_multiplier"]) == (200, {"quick": 1.0, "slow": 0.001})
    async with asyncio.timeout(5):
        assert (await post(session, base_url, chat(model="slow")))[0] == 200


async def test_shifts_follow_the_clock(session):
    """A hundredfold latency from second 10 to 20 by the given clock, and none before or after."""
    now = [1000.0]
    app = create_app(SOURCE, shifts=[LatencyShift("quick", 100.0, 10.0, 20.0)], clock=lambda: now[0])
    async with serve(app) as url:
        factors = []
        for at in (9.0, 10.0, 20.0):
            now[0] = 1000.0 + at
            factors.append((await control(session, url))["latency_multiplier"]["quick"])
    assert factors == [1.0, 100.0, 1.0]


async def test_a_recorded_prompt_is_answered_as_recorded_until_the_run_changes(session, recorded):
    """Second 5 brings the second run; a control call brings the first one back."""
    now = [0.0]
    source = RecordedSource(recorded, run="r1", then_run="r2", after_s=5.0)

    async def ask(url):
        _, body = await post(session, url, chat("Hi.", model="a"))
        return grade(body["choices"][0]["message"]["content"]), body["usage"]["completion_tokens"]

    async with serve(create_app(source, time_scale=0.1, clock=lambda: now[0])) as url:
        assert await ask(url) == (0.3, 21)
        now[0] = 5.0
        assert await ask(url) == (0.6, 22)
        assert (await post(session, url, {"run": "r1"}, "/control"))[1]["run"] == "r1"
        assert await ask(url) == (0.3, 21)
        status, body = await post(session, url, {"run": "r9"}, "/control")
        assert (status, body["error"]["param"]) == (400, "run")


async def test_a_server_ends_at_once_though_calls_hang(session):
    """Leaving the context cancels what is under way instead of waiting for it."""
    async with asyncio.timeout(5):
        async with serve(create_app(SOURCE)) as url:
            calls = [asyncio.create_task(post(session, url, chat(model="slow"))) for _ in range(3)]
            await tally_when(session, url, "slow", lambda tally: tally["started"] == 3)
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert Counter(isinstance(r, aiohttp.ClientError) for r in results) == {True: 3}


@pytest.mark.parametrize("time_scale", [-1.0, float("nan"), float("inf")])
def test_an_unsound_time_scale_is_refused(time_scale):
    with pytest.raises(InvalidInput):
        create_app(SOURCE, time_scale=time_scale)
