"""Each fault as a client on a real socket sees it, and as the server counts it."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson
import pytest
import uvloop

from evaluation.faults import Fault, parse_faults
from evaluation.synthetic import SyntheticModel, SyntheticSource
from evaluation.upstreams import create_app, serve

SOURCE = SyntheticSource([SyntheticModel("m", 1.0, 0.05, 0.0, 100), SyntheticModel("sound", 1.0, 0.0, 0.0, 5)])


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as session:
        yield session


def chat(model="m", *, stream=False):
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream}


async def read(session, url, body, timeout_s=5.0):
    """Status, headers, and all bytes that came until the end or an error; and that error."""
    got = b""
    try:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with session.post(f"{url}/v1/chat/completions", json=body, timeout=timeout) as response:
            async for data in response.content.iter_any():
                got += data
            return response.status, response.headers, got, None
    except (aiohttp.ClientError, TimeoutError) as error:
        return None, {}, got, error


async def tally(session, url, model="m"):
    async with session.get(f"{url}/control?last=0") as response:
        return (await response.json())["models"][model]


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", "fault"),
        (429, "rate_limit_error", "rate_limit_exceeded"),
        (500, "server_error", "internal_error"),
        (503, "server_error", "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_status_comes_with_openais_error_body(session, status, kind, code, stream):
    async with serve(create_app(SOURCE, faults=parse_faults([f"m=status-{status}"]))) as url:
        got, headers, body, _ = await read(session, url, chat(stream=stream))
        error = orjson.loads(body)["error"]
        assert (got, error["type"], error["code"]) == (status, kind, code)
        assert headers.get("Retry-After") == ("1" if status == 429 else None)
        assert await tally(session, url) == {"started": 1, "finished": 0, "failed": 1, "cancelled": 0}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_timeout_never_answers(session, stream):
    async with serve(create_app(SOURCE, faults={"m": Fault("timeout")})) as url:
        _, _, body, error = await read(session, url, chat(stream=stream), timeout_s=0.3)
        assert isinstance(error, TimeoutError)
        assert body == b""


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stall_sends_a_part_and_no_more(session, stream):
    async with serve(create_app(SOURCE, faults={"m": Fault("stall")})) as url:
        _, _, body, error = await read(session, url, chat(stream=stream), timeout_s=0.5)
        assert isinstance(error, TimeoutError)
        assert body
        assert b"[DONE]" not in body
        async with asyncio.timeout(5):
            while True:
                if (await tally(session, url))["cancelled"] == 1:
                    break
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "code"), [("context_window", "context_length_exceeded"), ("content_policy", "content_filter")]
)
async def test_a_refusal_of_the_request_is_a_400_with_openais_code(session, kind, code):
    async with serve(create_app(SOURCE, faults=parse_faults([f"m={kind}"]))) as url:
        status, _, got, error = await read(session, url, chat(stream=True))
    assert (status, error, orjson.loads(got)["error"]["code"]) == (400, None, code)


async def test_malformed_is_a_sound_status_with_broken_json(session):
    async with serve(create_app(SOURCE, faults={"m": Fault("malformed")})) as url:
        status, headers, body, _ = await read(session, url, chat())
        assert (status, headers["Content-Type"]) == (200, "application/json")
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(body)
        assert await tally(session, url) == {"started": 1, "finished": 0, "failed": 1, "cancelled": 0}


async def test_malformed_breaks_a_stream_after_sound_events(session):
    async with serve(create_app(SOURCE, faults={"m": Fault("malformed")})) as url:
        status, _, body, error = await read(session, url, chat(stream=True))
        assert (status, error) == (200, None)
        *sound, broken, rest = body.decode().split("\n\n")
        assert len(sound) >= 2
        assert rest == ""
        for event in sound:
            orjson.loads(event.removeprefix("data: "))
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(broken.removeprefix("data: "))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reset_breaks_the_connection(session, stream):
    """A stream breaks in its middle, a whole answer before it begins; it counts as failed, not as cancelled."""
    async with serve(create_app(SOURCE, faults={"m": Fault("reset")})) as url:
        _, _, body, error = await read(session, url, chat(stream=stream))
        assert isinstance(error, aiohttp.ClientError)
        assert bool(body) == stream
        assert await tally(session, url) == {"started": 1, "finished": 0, "failed": 1, "cancelled": 0}


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_reset_is_one_to_the_socket_on_either_event_loop(loop_factory):
    """The client's socket sees a reset, not an orderly end, also under the loop that the program uses."""

    async def read_all():
        async with serve(create_app(SOURCE, faults={"m": Fault("reset")})) as url, asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            body = orjson.dumps(chat())
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.transport.abort()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(read_all())


@pytest.mark.parametrize("stream", [True, False])
async def test_slow_comes_late_but_whole(session, stream):
    async with serve(create_app(SOURCE, faults=parse_faults(["m=slow-0.2"]))) as url:
        start = asyncio.get_running_loop().time()
        status, _, body, error = await read(session, url, chat(stream=stream))
        assert (status, error) == (200, None)
        assert b"quality 1.0" in body or stream
        assert asyncio.get_running_loop().time() - start >= 0.25
        assert (await tally(session, url))["finished"] == 1


async def test_faults_spare_other_models_and_end_by_control(session):
    async with serve(create_app(SOURCE, faults={"m": Fault("status")})) as url:
        assert (await read(session, url, chat("sound")))[0] == 200
        assert (await read(session, url, chat()))[0] == 500
        async with session.post(f"{url}/control", json={"faults": {"m": None}}) as response:
            assert (await response.json())["faults"] == {}
        assert (await read(session, url, chat()))[0] == 200
        async with session.post(f"{url}/control", json={"faults": {"*": {"kind": "status-503"}}}) as response:
            assert (await response.json())["faults"] == {"*": {"kind": "status-503", "share": 1.0}}
        assert (await read(session, url, chat("sound")))[0] == 503


async def test_a_share_of_calls_fails_and_no_answer_changes_by_it(session):
    """With a share of a half some calls of 40 fail; those that do not are as they would have been."""
    source = SyntheticSource([SyntheticModel("m", 0.5, 0.0, 0.0, 100)])

    async def bodies(faults):
        async with serve(create_app(source, faults=faults, seed=3)) as url:
            return [await read(session, url, chat()) for _ in range(40)]

    sound, faulty = await bodies({}), await bodies({"m": Fault("status", 0.5)})
    ended_well = [status == 200 for status, *_ in faulty]
    # The chance of fewer than 6 or more than 34 of 40 at a half is below 2e-6; the seed is fixed besides.
    assert 6 <= sum(ended_well) <= 34
    for (_, _, expected, _), (_, _, got, _), well in zip(sound, faulty, ended_well, strict=True):
        if well:
            assert orjson.loads(got)["usage"] == orjson.loads(expected)["usage"]
            assert orjson.loads(got)["choices"] == orjson.loads(expected)["choices"]
