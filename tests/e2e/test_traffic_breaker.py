"""An endpoint that dies is left alone, probed by one call at a time, and used once it lives again."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from scripted_upstream import Scripted

MESSAGES = [{"role": "user", "content": "hello"}]
BREAKER = {"min_calls": 3, "failure_share": 0.5, "window_s": 30.0, "open_s": 0.4, "max_open_s": 0.4}
NAMES = ("dies", "misused", "probed", "one-by-one")


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def service(run_service, scripted, tmp_path_factory):
    models = [scripted.model(name, timeout_s=10.0, breaker=BREAKER) for name in NAMES]
    models += [scripted.model("spare")]
    once = {"retries": {"per_model": 1, "max_attempts": 2, "burst": 1000}}
    pools = [{"name": f"p-{name}", "models": [name], "failures": once} for name in NAMES]
    pools += [{"name": "pair", "models": ["dies", "spare"], "weights": {"dies": 1}, "failures": once}]
    with run_service({"models": models, "pools": pools}, tmp_path_factory.mktemp("breaker")) as service:
        yield service


@pytest.fixture
def ask(service, http):
    async def ask(pool, headers=None):
        body = {"model": pool, "messages": MESSAGES}
        async with http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers or {}) as response:
            return response.status, response.headers, await response.json()

    return ask


async def opened(ask, scripted, name):
    """Let an endpoint fail until its breaker has opened."""
    scripted.rest[name] = "500"
    for _ in range(BREAKER["min_calls"]):
        assert (await ask(f"p-{name}"))[0] >= 500
    seen = scripted.calls(name)
    told, headers, body = await ask(f"p-{name}")
    assert (told, body["error"]["code"]) == (503, "no_model_available")
    assert int(headers["Retry-After"]) >= 1
    assert scripted.calls(name) == seen


async def test_an_endpoint_that_dies_is_left_alone_and_comes_back(ask, scripted):
    """Meanwhile another model takes its calls without an attempt on it."""
    await opened(ask, scripted, "dies")
    seen = scripted.calls("dies")
    told, headers, body = await ask("pair")
    assert (told, body["model"], headers["x-pointsman-attempts"]) == (200, "spare", "1")
    assert scripted.calls("dies") == seen
    await asyncio.sleep(0.5)
    assert (await ask("p-dies"))[0] >= 500  # a probe, and it failed
    assert scripted.calls("dies") == seen + 1
    assert (await ask("p-dies"))[0] == 503
    assert scripted.calls("dies") == seen + 1
    scripted.rest["dies"] = "ok"
    await asyncio.sleep(0.5)
    for _ in range(3):
        assert (await ask("p-dies"))[0] == 200


async def test_only_one_call_at_a_time_probes(ask, scripted):
    await opened(ask, scripted, "one-by-one")
    seen = scripted.calls("one-by-one")
    scripted.rest["one-by-one"] = "slow-0.3"
    await asyncio.sleep(0.5)
    answers = await asyncio.gather(*(ask("p-one-by-one") for _ in range(5)))
    assert sorted(told for told, _, _ in answers) == [200, 503, 503, 503, 503]
    assert scripted.calls("one-by-one") == seen + 1


async def test_a_probe_its_caller_gave_up_leaves_the_next_call_to_probe(ask, service, scripted, wait_until):
    await opened(ask, scripted, "probed")
    seen = scripted.calls("probed")
    scripted.rest["probed"] = "hang"
    await asyncio.sleep(0.5)
    async with aiohttp.ClientSession() as session:
        body = {"model": "p-probed", "messages": MESSAGES}
        call = asyncio.create_task(session.post(f"{service.url}/v1/chat/completions", json=body))
        await wait_until(lambda: scripted.calls("probed") == seen + 1)
        call.cancel()
    await wait_until(lambda: scripted.gone["probed"])
    scripted.rest["probed"] = "ok"
    await asyncio.sleep(0.1)
    assert (await ask("p-probed"))[0] == 200
    assert (await ask("p-probed"))[0] == 200


@pytest.mark.parametrize(
    ("what", "headers"), [("bad-request", {}), ("too-long", {}), ("hang", {"x-pointsman-timeout-s": "0.1"})]
)
async def test_bad_requests_and_short_timeouts_open_nothing(ask, scripted, what, headers):
    scripted.plans["misused"].extend([what] * 5)
    for _ in range(5):
        assert (await ask("p-misused", headers))[0] in {400, 504}
    assert (await ask("p-misused"))[0] == 200
