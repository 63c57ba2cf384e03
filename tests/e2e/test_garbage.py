"""What a call held goes when it ends: nothing of it waits for the collector of cycles, which stops all calls.

The real service runs with that collector off, and is asked what it would have found.
"""

from __future__ import annotations

import os
import signal
from ast import literal_eval
from collections import Counter

import aiohttp
import pytest

MESSAGES = [{"role": "user", "content": "hello"}]
CALLS = 30
TIMEOUT = aiohttp.ClientTimeout(total=0.05)  # of a caller who does not wait for "steady"
RETRIES = {"retries": {"backoff_s": 0.01, "burst": 1_000}}
# In the service's own process, before it begins: at SIGUSR1 it writes down of which classes objects are that only the
# collector would free.
COLLECTOR = """
import collections, gc, os, signal

gc.disable()

def look(*_):
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    counts = collections.Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage)
    gc.garbage.clear()
    gc.collect()
    path = os.environ["GARBAGE"]
    with open(path + ".new", "w") as file:
        file.write(repr(dict(counts)))
    os.rename(path + ".new", path)

signal.signal(signal.SIGUSR1, look)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return tmp_path_factory.mktemp("garbage") / "found.txt"


@pytest.fixture(scope="module")
def service(run_service, trial, found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    (folder / "sitecustomize.py").write_text(COLLECTOR)
    names = ("good", "fair", "steady", "f500", "f429", "f400", "reset", "malformed")
    quiet = {"breaker": {"enabled": False}}
    config = {
        "models": [trial.model(name, **quiet) for name in names],
        "failures": {"retries": {"max_attempts": 1}},
        "pools": [
            {"name": "auto", "models": ["good", "fair"]},
            {"name": "cached", "models": ["good"], "cache": {"only_deterministic": False}},
            {"name": "failing", "models": ["f500", "good"], "weights": {"f500": 1}, "failures": RETRIES},
            {"name": "lost", "models": ["f500"], "failures": RETRIES},
        ],
        "budgets": [{"scope": "all", "usd": 1000, "per": "day"}],
        "limits": [{"scope": "all", "requests_per_minute": 1_000_000}],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("GARBAGE", str(found))
        with run_service(config, folder) as service:
            yield service


@pytest.fixture
def garbage(service, found, http, wait_until):
    async def garbage() -> Counter[str]:
        found.unlink(missing_ok=True)
        os.kill(service.process.pid, signal.SIGUSR1)
        async with http.get(f"{service.url}/healthz") as response:  # it looks once it has something to do
            await response.read()
        await wait_until(found.exists)
        return Counter(literal_eval(found.read_text()))

    return garbage


async def call(service, http, path, body, headers=None):
    async with http.post(service.url + path, json=body, headers=headers) as response:
        text = await response.read()
        return response.status, response.headers, text


WAYS = {
    "a call": ("/v1/chat/completions", {"model": "auto"}, 200),
    "a pinned call": ("/v1/chat/completions", {"model": "good"}, 200),
    "a stream": ("/v1/chat/completions", {"model": "auto", "stream": True}, 200),
    "an answer from the cache": ("/v1/chat/completions", {"model": "cached"}, 200),
    "a stream from the cache": ("/v1/chat/completions", {"model": "cached", "stream": True}, 200),
    "a stream that failed": ("/v1/chat/completions", {"model": "f500", "stream": True}, 502),
    "embeddings": ("/v1/embeddings", {"model": "good", "input": "hello"}, 200),
    "a fallback": ("/v1/chat/completions", {"model": "failing"}, 200),
    "a call that failed": ("/v1/chat/completions", {"model": "lost"}, 503),
    "a connection that broke": ("/v1/chat/completions", {"model": "reset"}, 502),
    "a malformed answer": ("/v1/chat/completions", {"model": "malformed"}, 502),
    "a refusal upstream": ("/v1/chat/completions", {"model": "f400"}, 400),
    "a busy upstream": ("/v1/chat/completions", {"model": "f429"}, 429),
    "a decision alone": ("/v1/route", {"model": "auto"}, 200),
    "an unknown model": ("/v1/chat/completions", {"model": "nobody"}, 404),
}


async def repeated(once, garbage):
    """Do it often, and expect fewer objects of any class than calls: nothing that each of them left."""
    for _ in range(5):
        await once()
    await garbage()
    for _ in range(CALLS):
        await once()
    assert {name: count for name, count in (await garbage()).items() if count >= CALLS // 2} == {}


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_of_a_call_waits_for_the_collector(service, http, garbage, way):
    path, body, expected = WAYS[way]

    async def once():
        status, _, text = await call(service, http, path, body | {"messages": MESSAGES})
        assert status == expected, text

    await repeated(once, garbage)


async def test_nothing_of_feedback_waits_for_the_collector(service, http, garbage):
    async def graded():
        _, headers, _ = await call(service, http, "/v1/chat/completions", {"model": "auto", "messages": MESSAGES})
        feedback = {"decision_id": headers["x-pointsman-decision-id"], "quality": 0.5}
        assert (await call(service, http, "/reward", feedback))[0] == 200

    await repeated(graded, garbage)


async def test_nothing_of_a_call_whose_caller_left_waits_for_the_collector(service, http, garbage, wait_until):
    gone = "caller_went_away"

    async def left():
        body = {"model": "steady", "messages": MESSAGES}
        before = sum(event["payload"]["error"] == gone for event in service.events("outcome"))
        with pytest.raises(TimeoutError):
            async with http.post(f"{service.url}/v1/chat/completions", json=body, timeout=TIMEOUT):
                pass
        await wait_until(lambda: sum(event["payload"]["error"] == gone for event in service.events("outcome")) > before)

    await repeated(left, garbage)
