"""How the process ends: red first, then no new connections, then calls under way, and nothing accepted is lost."""

from __future__ import annotations

import asyncio
import signal

import aiohttp
import pytest

from tests.steady_load import accepted, steady_load

CHAT_PATH = "/v1/chat/completions"
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def config(trial):
    return {
        "models": [
            *(trial.model(name) for name in ("good", "fair", "steady", "slow")),
            trial.model("stuck", upstream_model="stall", timeout_s=60),
        ],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
    }


async def _until_started(trial, http, model, calls):
    async with asyncio.timeout(10):
        while (await trial.seen(http, model))["started"] < calls:  # noqa: ASYNC110 - another process's counter
            await asyncio.sleep(0.01)


async def _refused(url):
    """Whether a new connection is refused."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url + "/healthz"):
            return False
    except aiohttp.ClientConnectorError:
        return True


async def test_it_is_red_while_it_still_takes_calls(run_service, config, http, tmp_path):
    """For `drain_s`; no connection is kept by then, and a second signal ends the wait."""
    with run_service(config | {"server": {"drain_s": 60}}, tmp_path) as service:
        async with http.get(service.url + "/readyz") as response:
            assert response.status == 200
            assert "Connection" not in response.headers
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while True:
                async with http.get(service.url + "/readyz") as response:
                    if response.status == 503:
                        break
        for body in (CHAT, CHAT | {"stream": True}):
            async with http.post(service.url + CHAT_PATH, json=body) as response:
                assert (response.status, response.headers["Connection"]) == (200, "close")
                assert await response.read()
        async with http.get(service.url + "/healthz") as response:
            assert response.status == 200
        service.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.process.wait, 15) == 0
    assert len(service.events("outcome")) == 2


async def test_what_is_cut_is_told_so_and_has_its_outcome(run_service, trial, config, http, tmp_path):
    """A stream gets its error as the last event, a call that has no answer yet 503; a second signal cuts at once."""
    with run_service(config | {"server": {"shutdown_grace_s": 600}}, tmp_path) as service:
        started = (await trial.seen(http, "slow"))["started"]
        whole = asyncio.create_task(http.post(service.url + CHAT_PATH, json=CHAT | {"model": "slow"}))
        await _until_started(trial, http, "slow", started + 1)
        body = CHAT | {"model": "stuck", "stream": True}
        async with http.post(service.url + CHAT_PATH, json=body) as stream:
            assert stream.status == 200
            assert (await stream.content.readline()).startswith(b"data: ")
            service.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                while not await _refused(service.url):  # noqa: ASYNC110 - another process's port
                    await asyncio.sleep(0.02)
            service.process.send_signal(signal.SIGINT)
            rest = await stream.read()
        assert b'"code":"unavailable"' in rest.strip().splitlines()[-1]
        async with await whole as response:
            assert response.status == 503
            assert "Retry-After" in response.headers
        assert await asyncio.to_thread(service.process.wait, 15) == 0
    payloads = [event["payload"] for event in service.events("outcome")]
    assert {(p["model"], p["status"], p["error"]) for p in payloads} == {
        ("slow", "cancelled", "service_stopped"),
        ("stuck", "cancelled", "service_stopped"),
    }
    assert "Traceback" not in service.log


@pytest.mark.parametrize("drain_s", [0, 0.5])
async def test_under_load_no_accepted_call_is_lost(run_service, config, tmp_path, drain_s):
    """200 calls a second, the signal in their midst: each gets all of its answer, or was never accepted."""
    bodies = [CHAT, CHAT, CHAT | {"stream": True}, CHAT | {"model": "steady"}]
    server = {"drain_s": drain_s, "shutdown_grace_s": 60}  # on a machine that is busy elsewhere
    with run_service(config | {"server": server}, tmp_path) as service:
        load = asyncio.create_task(steady_load(service.url, 4, {}, bodies=bodies))
        await asyncio.sleep(2)
        service.process.send_signal(signal.SIGTERM)
        result = await load
        assert await asyncio.to_thread(service.process.wait, 90) == 0
    events = service.events()
    decided = accepted(events)
    done = {
        event["decision_id"] for event in events if event["kind"] == "outcome" and event["payload"]["status"] == "ok"
    }
    assert set(result.statuses) <= {200, 503}
    assert {n for n, status in result.answered.items() if status == 200} == result.whole
    assert set(decided) == result.whole, {
        n: result.lost.get(n) or result.said.get(n) for n in set(decided) ^ result.whole
    }
    assert set(decided.values()) == done
    assert len(result.whole) >= 100
    assert result.lost
    assert "Traceback" not in service.log
