"""What a connection may take: how many there are, how long one may be silent, how large what it sends may be."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

import pytest

HEAD = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"
MOST, IDLE_S = 5, 1.0


@pytest.fixture(scope="module")
def config(trial):
    return {"models": [trial.model("good")], "pools": [{"name": "auto", "models": ["good"]}]}


@pytest.fixture(scope="module")
def service(run_service, config, tmp_path_factory):
    bounds = {"max_connections": 100, "idle_timeout_s": IDLE_S}
    with run_service(config | {"server": bounds}, tmp_path_factory.mktemp("bounds")) as service:
        yield service


@contextlib.asynccontextmanager
async def connected(service):
    reader, writer = await asyncio.open_connection(*urlsplit(service.url).netloc.split(":"))
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader):
    """The status of the next answer, its head read whole and its body by its length; None: the connection ended."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    await reader.readexactly(int(lengths[0].partition(b":")[2]))
    return int(head.split()[1])


async def asked(service):
    """The status of a request on a connection of its own; None: the connection ended before one came."""
    async with connected(service) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(HEAD + b"\r\n")
            await writer.drain()
        return await answer(reader)


async def until_closed(reader, writer, dripping):
    """Send a byte of a header now and then until the service has had enough of it."""
    try:
        async with asyncio.timeout(20 * IDLE_S):
            while not reader.at_eof():
                if dripping:
                    writer.write(b"x")
                    await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), IDLE_S / 10)
    except ConnectionError:
        pass


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("dripping", [False, True])
async def test_a_connection_that_sends_no_whole_request_is_closed(service, answered, dripping):
    """Silent, or a byte at a time (slowloris): as its first request, or after one."""
    async with connected(service) as (reader, writer):
        if answered:
            writer.write(HEAD + b"\r\n")
            assert await answer(reader) == 200
        if dripping:
            writer.write(HEAD + b"x-slow: ")
        await until_closed(reader, writer, dripping)


async def test_more_connections_than_may_be_are_closed_and_the_others_served(run_service, config, tmp_path):
    with run_service(config | {"server": {"max_connections": MOST}}, tmp_path) as service:
        async with contextlib.AsyncExitStack() as stack:
            kept = [await stack.enter_async_context(connected(service)) for _ in range(MOST)]
            for reader, writer in kept:
                writer.write(HEAD + b"\r\n")
                assert await answer(reader) == 200
            for _ in range(3):
                assert await asked(service) is None
            for reader, writer in kept:
                writer.write(HEAD + b"\r\n")
                assert await answer(reader) == 200
        assert service.log.count("connections are turned away") == 1
        for _ in range(400):  # until it has seen that the others are gone
            if await asked(service) == 200:
                return
            await asyncio.sleep(0.05)
        pytest.fail("nobody is served any more")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"x-long: " + b"x" * 9_000 + b"\r\n\r\n", 400),
        (HEAD + b"".join(b"x-%d: 1\r\n" % number for number in range(200)) + b"\r\n", 400),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
        (b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 404),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
        (b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret-of-mine\r\n\r\n", 404),
    ],
    ids=["a long header", "many headers", "a long line", "websocket", "h2c", "CONNECT", "TRACE"],
)
async def test_what_is_too_much_or_no_matter_of_ours_is_refused_and_upsets_nothing(service, http, sent, status):
    """An upgrade is not made: the request is answered as any."""
    async with connected(service) as (reader, writer):
        writer.write(sent)
        assert await answer(reader) == status
    assert "secret-of-mine" not in service.log
    async with http.get(f"{service.url}/v1/models") as response:
        assert response.status == 200
