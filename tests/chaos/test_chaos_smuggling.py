"""Requests framed so that two readers may disagree on where one ends, over raw sockets, and none of them twice.

The hidden request names a model of its own, which counts how often it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib

import orjson
import pytest
from scripted_upstream import Scripted

pytestmark = pytest.mark.quick
PATH = "/v1/chat/completions"
QUIET_S = 0.3  # without a byte more, after which nothing else is coming


def body(model):
    return orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})


def plain(model):
    text = body(model)
    return b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (PATH.encode(), len(text), text)


HIDDEN, SEEN = plain("hidden"), body("seen")
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SEEN), SEEN)


def head(*lines, eol=b"\r\n", start=b"POST /v1/chat/completions HTTP/1.1"):
    return eol.join([start, b"Host: 127.0.0.1", *lines, b"", b""])


LENGTH = b"Content-Length: %d" % len(SEEN)
WHOLE = b"Content-Length: %d" % (len(SEEN) + len(HIDDEN))
TE = b"Transfer-Encoding: chunked"
BOTH = SEEN + HIDDEN  # what WHOLE covers: the hidden one is part of the first's body, which then is no JSON
FORMS = {  # each: the bytes sent
    "content-length then chunked": head(b"Content-Length: %d" % (len(CHUNKED) + len(HIDDEN)), TE) + CHUNKED + HIDDEN,
    "chunked then content-length": head(TE, b"Content-Length: %d" % (len(CHUNKED) + len(HIDDEN))) + CHUNKED + HIDDEN,
    "short content-length with chunked": head(b"Content-Length: 4", TE) + b"0\r\n\r\n" + HIDDEN,
    "te twice, one unknown": head(TE, b"Transfer-Encoding: x") + b"0\r\n\r\n" + HIDDEN,
    "te unknown, then chunked": head(b"Transfer-Encoding: x, chunked", LENGTH) + SEEN + HIDDEN,
    "te chunked not last": head(b"Transfer-Encoding: chunked, identity", LENGTH) + SEEN + HIDDEN,
    "te xchunked": head(b"Transfer-Encoding: xchunked", WHOLE) + BOTH,
    "te chunked in quotes": head(b'Transfer-Encoding: "chunked"', WHOLE) + BOTH,
    "te with a tab": head(b"Transfer-Encoding:\tchunked", LENGTH) + SEEN + HIDDEN,
    "te with a vertical tab": head(b"Transfer-Encoding: \x0bchunked", WHOLE) + BOTH,
    "te chunked twice": head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n" + HIDDEN,
    "te space before the colon": head(b"Transfer-Encoding : chunked", WHOLE) + b"0\r\n\r\n" + HIDDEN,
    "te folded": head(b"Transfer-Encoding:\r\n chunked", WHOLE) + b"0\r\n\r\n" + HIDDEN,
    "te in http/1.0": head(TE, WHOLE, start=b"POST /v1/chat/completions HTTP/1.0") + b"0\r\n\r\n" + HIDDEN,
    "content-length twice, different": head(LENGTH, WHOLE) + BOTH,
    "content-length twice, alike": head(LENGTH, LENGTH) + SEEN,
    "content-length list": head(LENGTH + b", %d" % len(SEEN)) + SEEN,
    "content-length with a plus": head(b"Content-Length: +%d" % len(SEEN)) + SEEN,
    "content-length negative": head(b"Content-Length: -1") + HIDDEN,
    "content-length hexadecimal": head(b"Content-Length: 0x%x" % len(SEEN)) + SEEN + HIDDEN,
    "content-length with an underscore": head(b"Content-Length: 1_0") + SEEN + HIDDEN,
    "content-length beyond 64 bits": head(b"Content-Length: 18446744073709551617") + HIDDEN,
    "content-length empty": head(b"Content-Length: ") + HIDDEN,
    "content-length space before the colon": head(b"Content-Length : 0", LENGTH) + SEEN + HIDDEN,
    "content-length folded": head(b"Content-Length: 0\r\n %d" % len(SEEN)) + SEEN,
    "header folded": head(b"x-a: b\r\n\tTransfer-Encoding: chunked", LENGTH) + SEEN,
    "header without a colon": head(b"Transfer-Encoding chunked", LENGTH) + SEEN,
    "header with a null": head(b"x-a: b\x00c", LENGTH) + SEEN,
    "header with a bare carriage return": head(b"x-a: b\rTransfer-Encoding: chunked", LENGTH) + SEEN,
    "header with a bare line feed": head(b"x-a: b\nTransfer-Encoding: chunked", LENGTH) + SEEN,
    "header name with a space": head(b"x a: b", LENGTH) + SEEN,
    "header name empty": head(b": b", LENGTH) + SEEN,
    "line feeds alone": head(LENGTH, eol=b"\n") + SEEN,
    "space before the first header": b"POST %s HTTP/1.1\r\n Host: 127.0.0.1\r\n%s\r\n\r\n" % (PATH.encode(), LENGTH)
    + SEEN,
    "chunk size with a sign": head(TE) + b"+" + CHUNKED + HIDDEN,
    "chunk size with 0x": head(TE) + b"0x" + CHUNKED + HIDDEN,
    "chunk size beyond 64 bits": head(TE) + b"ffffffffffffffff1\r\n" + HIDDEN,
    "chunk size with a space": head(TE) + b"%x \r\n%s\r\n0\r\n\r\n" % (len(SEEN), SEEN),
    "chunk extension with a bare line feed": head(TE) + b"%x;a\n%s\r\n0\r\n\r\n" % (len(SEEN), SEEN) + HIDDEN,
    "chunk longer than it says": head(TE) + b"2\r\n" + SEEN + b"\r\n0\r\n\r\n" + HIDDEN,
    "chunk ends in a bare line feed": head(TE) + b"%x\r\n%s\n0\r\n\r\n" % (len(SEEN), SEEN) + HIDDEN,
    "trailer that sets a length": head(TE) + CHUNKED[:-2] + b"Content-Length: 7\r\n\r\n",
    "a second request line": head(b"POST /reward HTTP/1.1", LENGTH) + SEEN,
    "host twice": head(b"Host: y", LENGTH) + SEEN,
    "absolute target": head(LENGTH, start=b"POST http://other/v1/chat/completions HTTP/1.1") + SEEN,
    "connect with a body": head(b"Content-Length: %d" % len(HIDDEN), start=b"CONNECT 127.0.0.1:1 HTTP/1.1") + HIDDEN,
    "connect with chunks": head(TE, start=b"CONNECT 127.0.0.1:1 HTTP/1.1")
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN),
    "get with a body": head(b"Content-Length: %d" % len(HIDDEN), start=b"GET /healthz HTTP/1.1") + HIDDEN,
    "head with a body": head(b"Content-Length: %d" % len(HIDDEN), start=b"HEAD /healthz HTTP/1.1") + HIDDEN,
    "refused path with a body": head(b"Content-Length: %d" % len(HIDDEN), start=b"POST /nothing HTTP/1.1") + HIDDEN,
    "websocket with a body": head(
        b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: %d" % len(HIDDEN), start=b"GET / HTTP/1.1"
    )
    + HIDDEN,
    "upgrade": head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", LENGTH) + SEEN,
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "version 1.2": head(LENGTH, start=b"POST /v1/chat/completions HTTP/1.2") + SEEN,
    "version 0.9": b"POST /v1/chat/completions\r\n\r\n" + HIDDEN,
}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as url:
        scripted.url = url
        yield scripted


@pytest.fixture(scope="module")
def service(run_service, scripted, tmp_path_factory):
    config = {
        "server": {"body_timeout_s": 0.5},
        "models": [scripted.model("seen"), scripted.model("hidden")],
        "pools": [{"name": "auto", "models": ["seen", "hidden"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("smuggling")) as service:
        yield service


async def exchange(url, payload):
    """The statuses of all that comes back, until the connection is closed or nothing more comes."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    came = b""
    try:
        writer.write(payload)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := await asyncio.wait_for(reader.read(65_536), 3 if not came else QUIET_S):
                came += part
    finally:
        writer.close()
    return [int(part[:3]) for part in came.replace(b"HTTP/1.0 ", b"HTTP/1.1 ").split(b"HTTP/1.1 ")[1:]]


async def test_a_pipelined_request_is_served(service, scripted):
    """The measure itself: two sound requests on one connection are two, so a hidden one that got out would be seen."""
    assert await exchange(service.url, plain("seen") + HIDDEN) == [200, 200]
    assert (scripted.calls("seen"), scripted.calls("hidden")) == (1, 1)


async def test_request_smuggling_forms(service, scripted, case):
    """Each form is refused, or read as one request, once; the request hidden in it never reaches an upstream."""
    served, refused, silent = [], [], []
    for name, payload in FORMS.items():
        before = scripted.calls("seen"), scripted.calls("hidden")
        statuses = await exchange(service.url, payload)
        case.made += 1
        case.answered += bool(statuses)
        (served if 200 in statuses else refused if statuses else silent).append(name)
        if scripted.calls("hidden") != before[1] or scripted.calls("seen") - before[0] > 1 or statuses.count(200) > 1:
            case.happened += f"{name}: {statuses}; "
            case.lost += 1
    case.happened += f"{len(refused)} refused, {len(silent)} closed without a word ({', '.join(silent) or 'none'}), "
    case.happened += f"{len(served)} read once: {', '.join(served)}"
    async with asyncio.timeout(10):
        assert await exchange(service.url, plain("seen")) == [200]
    assert "Traceback" not in service.log
    assert case.lost == 0
