"""Connections that do nothing, read nothing, or are more than the process may have."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket

import orjson
from aiohttp import web
from steady_load import steady_load

GOOD = {"model": "good", "messages": [{"role": "user", "content": "hello"}]}
IDLE = 10_000
FILES, BEYOND = 400, 600  # what a service may have open; what is asked of it
SLOW, WAIT_S = 20, 1.5
FLOOD = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"x" * 60_000)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"


async def idle(url, count):
    """So many connections, each of which has sent half a request's head or nothing."""
    host, _, port = url.removeprefix("http://").partition(":")
    writers = []
    for start in range(0, count, 200):
        group = (asyncio.open_connection(host, int(port)) for _ in range(min(200, count - start)))
        for _, writer in await asyncio.gather(*group):
            if len(writers) % 2:
                writer.write(HEAD)
            writers.append(writer)
    return writers


async def test_10000_idle_connections(run_service, trial, case, memory, tmp_path):
    """With 10,000 idle connections open, half of them in mid-request, every call is answered as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the service inherits it
    assert hard > IDLE + 500, "ulimit -n is too low for this test"
    config = {"models": [trial.model("good")], "pools": [{"name": "auto", "models": ["good"]}]}
    try:
        with run_service(config, tmp_path) as service:
            await steady_load(service.url, 1, {}, per_second=20, bodies=[GOOD])
            before = memory(service)
            writers = await idle(service.url, IDLE)
            during = memory(service)
            load = await steady_load(service.url, 4, {}, per_second=40, bodies=[GOOD])
            for writer in writers:
                writer.transport.abort()
            after = await steady_load(service.url, 1, {}, per_second=40, bodies=[GOOD])
            case.saw(load)
            case.saw(after)
            assert service.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    case.lost = case.made - load.statuses[200] - after.statuses[200]
    case.happened = f"{IDLE:,} connections cost {during - before:.0f} MB; all calls 200"
    assert case.lost == 0


async def test_more_connections_than_files(run_service, trial, case, patient, tmp_path):
    """Those beyond the limit wait; a connection that is open is served meanwhile; when they have gone, all are."""
    config = {"models": [trial.model("good")], "pools": [{"name": "auto", "models": ["good"]}]}
    with run_service(config, tmp_path) as service:
        assert await _status(patient, service) == 200  # its own connection, and the upstream's
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        writers = await idle(service.url, BEYOND)
        case.made = 1 + 20
        meanwhile = [await _status(patient, service) for _ in range(20)]
        for writer in writers:
            writer.transport.abort()
        async with asyncio.timeout(20):
            after = await steady_load(service.url, 2, {}, per_second=40, bodies=[GOOD])
        case.saw(after)
        case.answered += 1 + len(meanwhile)
        assert service.stop() == 0
        log = service.log
    case.happened = f"{FILES} files: open ones {set(meanwhile)} meanwhile, then {dict(after.statuses)}"
    assert set(meanwhile) == {200}
    assert set(after.statuses) == {200}
    assert len(log) < 200_000, "it floods its log"


async def _status(session, service):
    async with session.post(f"{service.url}/v1/chat/completions", json=GOOD) as response:
        await response.read()
        return response.status


async def flood(request):
    """A stream of more than any buffer holds."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for _ in range(5_000):
            await response.write(FLOOD)
    return response


async def test_callers_who_read_slowly(  # noqa: PLR0917 - fixtures
    run_service, trial, serve_in_thread, case, memory, tmp_path
):
    """Twenty callers who stop reading are cut off after body_timeout_s; others notice nothing; at most 10 MB each."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", flood)
    with serve_in_thread(app) as url:
        config = {
            "server": {"body_timeout_s": WAIT_S},
            "models": [trial.model("good"), {"name": "flood", "endpoint": f"{url}/v1"}],
            "pools": [{"name": "auto", "models": ["good"]}],
        }
        with run_service(config, tmp_path) as service:
            await steady_load(service.url, 1, {}, per_second=20, bodies=[GOOD])
            before = memory(service)
            stuck = [await _ask_for_a_flood(service.url) for _ in range(SLOW)]
            load = asyncio.create_task(steady_load(service.url, 5, {}, per_second=30, bodies=[GOOD]))
            most = before
            while not load.done():
                most = max(most, memory(service))
                await asyncio.sleep(0.1)
            load = await load
            case.saw(load)
            case.made += SLOW
            gone = [e["payload"] for e in service.events("outcome") if e["payload"]["model"] == "flood"]
            for connection in stuck:
                connection.close()
            assert service.stop() == 0
    case.answered += len(gone)
    case.lost = case.made - case.answered
    case.happened = f"{len(gone)} of {SLOW} cut off and recorded, {most - before:+.0f} MB meanwhile, all others 200"
    assert {(row["status"], row["error"]) for row in gone} == {("cancelled", "caller_went_away")}
    assert (load.lost, set(load.statuses)) == ({}, {200})
    assert case.lost == 0
    assert most - before < SLOW * 10


async def _ask_for_a_flood(url):
    """A connection that has asked for a stream, and will not read it."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (host, int(port)))
    body = orjson.dumps(GOOD | {"model": "flood", "stream": True})
    await loop.sock_sendall(connection, HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    return connection
