"""Requests that are too large, too deep or no text, beside a steady load that must not notice."""

from __future__ import annotations

import asyncio
import gzip

import orjson
import pytest
from steady_load import steady_load

pytestmark = pytest.mark.quick
PATH = "/v1/chat/completions"
GOOD = {"model": "good", "messages": [{"role": "user", "content": "hello"}]}
MB = 1 << 20
GROWS_MB = 60  # at most: 100 MB bodies are not kept, nor a bomb's contents


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "server": {"max_body_bytes": MB, "body_timeout_s": 5},
        "models": [trial.model("good")],
        "pools": [{"name": "auto", "models": ["good"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("input")) as service:
        yield service


async def raw(url, *pieces, wait_s=10):
    """The first bytes that come back for pieces of bytes, which the other side may stop reading."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def send():
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(wait_s):
            return await reader.read(65_536)
    except (ConnectionError, TimeoutError):
        return b""
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def post(body, *headers, length=None):
    lines = [b"POST /v1/chat/completions HTTP/1.1", b"Host: 127.0.0.1", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % (length or len(body)), b"", body])


def chunked(piece, times):
    """A body in chunks, without a length."""
    yield b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(times):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


DEEP = b'{"model":"good","messages":%s%s}' % (b"[" * 200_000, b"]" * 200_000)
TEXT = orjson.dumps(GOOD)
REFUSED = {  # what is sent, and the status it gets
    "a header of 1 MB": ([post(TEXT, b"x-long: " + b"a" * MB)], 400),
    "1 MB of headers": ([post(TEXT, *(b"x-%d: %s" % (i, b"a" * 1_000) for i in range(1_000)))], 400),
    "a path of 1 MB": ([b"GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % (b"a" * MB)], 400),
    "a body of 100 MB": ([post(b"", length=100 * MB), *[b" " * MB] * 100], 413),
    "100 MB in chunks": (list(chunked(b" " * MB, 100)), 413),
    "JSON 200,000 deep": ([post(DEEP)], 400),
    "a zip bomb, gzip": ([post(gzip.compress(b" " * (100 * MB)), b"Content-Encoding: gzip")], 400),
    "a zip bomb, deflate": ([post(b"x\x9c", b"Content-Encoding: deflate")], 400),
    "a zip bomb, twice": ([post(b"x", b"Content-Encoding: gzip, gzip")], 400),
    "a chunked zip bomb": ([post(b"x", b"Transfer-Encoding: gzip, chunked")], 400),
    "invalid UTF-8": ([post(TEXT.replace(b"hello", b"\xff\xfe"))], 400),
    "a lone surrogate": ([post(TEXT.replace(b"hello", b"\\ud800"))], 400),
    "UTF-16": ([post(TEXT.decode().encode("utf-16"))], 400),
    "a null byte": ([post(TEXT + b"\0")], 400),
    "two values": ([post(TEXT + TEXT)], 400),
    "NaN": ([post(TEXT[:-1] + b',"temperature":NaN}')], 400),
    "a number of 100,000 digits": ([post(TEXT[:-1] + b',"seed":%s}' % (b"9" * 100_000))], 400),
    "nothing": ([post(b"")], 400),
}


async def test_hostile_requests(service, case, memory, patient):
    """Each is refused with its 4xx, memory grows by no more than a body may have, and the load beside sees nothing."""
    await steady_load(service.url, 1, {}, per_second=30, bodies=[GOOD])
    before = memory(service)
    load = asyncio.create_task(steady_load(service.url, 8, {}, per_second=30, bodies=[GOOD]))
    got, most = {}, before
    for name, (pieces, status) in REFUSED.items():
        came = await raw(service.url, *pieces)
        got[name] = int(came[9:12]) if came.startswith(b"HTTP/1.") else None
        most = max(most, memory(service))
        case.made += 1
        case.answered += got[name] is not None
        case.lost += got[name] != status
    wrong = {name: (got[name], status) for name, (_, status) in REFUSED.items() if got[name] != status}
    load = await load
    case.saw(load)
    case.happened = f"{len(REFUSED)} refused; wrong: {wrong or 'none'}; at most {most - before:+.0f} MB"
    async with patient.get(f"{service.url}/readyz") as response:
        assert response.status == 200
    assert (load.lost, set(load.statuses)) == ({}, {200})
    assert wrong == {}
    assert most - before < GROWS_MB
    assert "Traceback" not in service.log


async def test_keys_given_twice(service, case):
    """The last of two equal keys counts, for us and for the endpoint: one reading, never two."""
    body = b'{"model":"nobody","model":"good","messages":[{"role":"user","content":"x"}],"n":1,"n":1}'
    case.made = case.answered = 1
    assert (await raw(service.url, post(body))).startswith(b"HTTP/1.1 200")
    body = b'{"model":"good","model":"nobody","messages":[{"role":"user","content":"x"}]}'
    assert (await raw(service.url, post(body))).startswith(b"HTTP/1.1 404")
    case.happened = "the last counts"
