"""What an operator says to one worker is in force at all of them, and what breaks at one is known to all."""

from __future__ import annotations

import asyncio
import signal

import aiohttp
import pytest
import yaml
from crew import crew_of, polled
from scripted_upstream import Scripted
from steered_service import AUTH, KEY

HELLO = [{"role": "user", "content": "hello"}]
BREAKER = {"min_calls": 3, "failure_share": 0.5, "window_s": 30.0, "open_s": 60.0, "max_open_s": 60.0}
OTHER_KEY = "another-caller-of-the-tests"


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def config(scripted):
    quiet = {"timeout_s": 20, "breaker": {"enabled": False}}
    return {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "faults": {"enabled": True},
        "failures": {"retries": {"max_attempts": 1}},
        "budgets": [{"name": "all", "scope": "team", "match": "search", "usd": 100.0, "per": "total"}],
        "models": [
            *(scripted.model(name, **quiet) for name in ("one", "two", "three")),
            scripted.model("fragile", breaker=BREAKER),
        ],
        "pools": [
            {"name": "auto", "models": ["one", "two"], "weights": {"one": 1, "two": 1}},
            {"name": "tried", "models": ["one", "two"]},
            {"name": "frail", "models": ["fragile"]},
            {"name": "kept", "models": ["one"], "cache": {}},
        ],
    }


@pytest.fixture(scope="module")
def crew(config, valkey_server, tmp_path_factory):
    with crew_of(config, tmp_path_factory.mktemp("told"), valkey_server) as crew:
        yield crew


@pytest.fixture
async def both(crew):
    async with crew.workers() as both:
        yield both


async def status_at(worker, model, key=KEY):
    """How a call at this worker ends: its status, and which model answered."""
    body, headers = {"model": model, "messages": HELLO, "max_tokens": 5}, {"Authorization": f"Bearer {key}"}
    url = f"{worker.at.service.url}/v1/chat/completions"
    async with worker.http.post(url, json=body, headers=headers) as response:
        await response.read()
        return response.status, response.headers.get("x-pointsman-model")


async def everywhere(workers, condition):
    """Return once it is so at each of them; it must be so at once where it was said."""
    for worker in workers:
        await polled(lambda worker=worker: condition(worker))


async def test_a_key_that_one_makes_opens_all_and_revoked_opens_none(both):
    for first, _ in (both, both[::-1]):
        made = await first.at.admin("POST", "/keys", {"user": "cy"}, status=201)

        async def opens(worker, made=made):
            return (await status_at(worker, "one", made["secret"]))[0] == 200

        async def refused(worker, made=made):
            return (await status_at(worker, "one", made["secret"]))[0] == 401

        assert await opens(first)
        await everywhere(both, opens)
        await first.at.admin("DELETE", f"/keys/{made['id']}")
        assert await refused(first)
        await everywhere(both, refused)


async def test_answers_that_one_is_asked_to_drop_are_dropped_by_all(both):
    """Each keeps its own, and whoever wants an answer gone does not know which has it."""
    for first, second in (both, both[::-1]):

        async def mode(worker):
            return (await worker.at.ask("kept", temperature=0)).mode

        assert [await mode(worker) for worker in (first, first, second, second)][1::2] == ["cached", "cached"]
        assert await first.at.admin("DELETE", "/pools/kept/cache") == {"dropped": 1}
        assert await mode(first) != "cached"

        async def dropped(worker):
            body = {"model": "kept", "messages": HELLO, "max_tokens": 50, "temperature": 0}
            headers = {"Authorization": f"Bearer {KEY}", "Cache-Control": "only-if-cached"}
            url = f"{worker.at.service.url}/v1/chat/completions"
            async with worker.http.post(url, json=body, headers=headers) as response:
                return response.status == 504

        await polled(lambda second=second: dropped(second))


async def test_when_a_key_was_last_used_is_known_to_all(both):
    first, second = both
    made = await first.at.admin("POST", "/keys", {"user": "cy"}, status=201)
    await polled(lambda: opens(second, made["secret"]))

    async def seen(worker):
        (key,) = [key for key in (await worker.at.admin("GET", "/keys"))["keys"] if key["id"] == made["id"]]
        return key["last_used_at"] is not None

    await everywhere(both, seen)


async def opens(worker, key):
    return (await status_at(worker, "one", key))[0] == 200


async def test_a_model_that_joins_at_one_serves_at_all_until_it_leaves(both, scripted):
    for name, (first, _) in (("late", both), ("later", both[::-1])):
        model = scripted.model(name)
        await first.at.admin("POST", "/models", {"model": model, "pools": ["auto"]}, status=201)

        async def serves(worker, name=name):
            return await status_at(worker, name) == (200, name)

        async def gone(worker, name=name):
            return (await status_at(worker, name))[0] == 404

        assert await serves(first)
        await everywhere(both, serves)
        shown = [await worker.at.admin("GET", "/models") for worker in both]
        assert shown[0] == shown[1]
        await first.at.admin("DELETE", f"/models/{name}")
        await everywhere(both, gone)


async def test_weights_a_model_out_of_service_and_a_limit_are_those_of_all(both):
    for only, (first, _) in (("one", both), ("two", both[::-1])):
        await first.at.admin("PATCH", "/pools/auto", {"weights": {only: 1}})

        async def weighted(worker, only=only):
            return (await worker.at.admin("GET", "/pools/auto"))["weights"] == {only: 1.0}

        await everywhere(both, weighted)
        for worker in both:
            assert {(await status_at(worker, "auto")) for _ in range(5)} == {(200, only)}

        await first.at.admin("PATCH", f"/models/{only}", {"disabled": True})

        async def killed(worker, only=only):
            return (await status_at(worker, "auto"))[1] != only

        await everywhere(both, killed)
        await first.at.admin("PATCH", f"/models/{only}", {"disabled": False})

        async def serves(worker, only=only):
            return await status_at(worker, "auto") == (200, only)

        await everywhere(both, serves)
        for limit, status in ((0.0001, 402), (100.0, 200)):
            await first.at.admin("PATCH", "/budgets/all", {"usd": limit})

            async def limited(worker, limit=limit):
                (budget,) = (await worker.at.admin("GET", "/budgets"))["budgets"]
                return budget["limit"] == limit

            await everywhere(both, limited)
            assert [(await status_at(worker, "auto"))[0] for worker in both] == [status, status]


async def test_a_canary_that_one_starts_is_on_trial_at_all(both):
    first, second = both
    await second.at.admin("POST", "/pools/tried/canary", {"model": "two", "steps": [0.5]}, status=201)

    async def on_trial(worker):
        return (await worker.at.admin("GET", "/pools/tried/canary"))["canary"] is not None

    await everywhere(both, on_trial)
    stands = [(await worker.at.admin("GET", "/canaries"))["canaries"] for worker in both]
    assert stands[0] == stands[1]
    assert [(await worker.at.ask("tried")).mode for worker in both] == ["canary", "canary"]
    await first.at.admin("DELETE", "/pools/tried/canary")

    async def over(worker):
        canary = (await worker.at.admin("GET", "/pools/tried/canary"))["canary"]
        return canary is None or canary["phase"] == "aborted"

    await everywhere(both, over)


async def test_a_fault_and_a_drain_of_one_are_those_of_all_until_they_end(both):
    for first, second in (both, both[::-1]):
        made = await first.at.admin("POST", "/faults", {"kind": "error", "model": "three"}, status=201)

        async def broken(worker):
            return (await status_at(worker, "three"))[0] == 502

        async def whole(worker):
            return (await status_at(worker, "three"))[0] == 200

        await everywhere(both, broken)
        await second.at.admin("DELETE", f"/faults?id={made['id']}")
        await everywhere(both, whole)
        await first.at.admin("POST", "/drain")

        async def refused(worker):
            return (await status_at(worker, "one"))[0] == 503

        async def ready(worker, status=200):
            async with worker.http.get(f"{worker.at.service.url}/readyz") as response:
                return response.status == status

        await everywhere(both, refused)
        await everywhere(both, lambda worker: ready(worker, 503))
        await second.at.admin("DELETE", "/drain")
        await everywhere(both, ready)
        await everywhere(both, whole)


async def test_a_breaker_that_opens_at_one_is_open_at_the_other(crew, both, scripted):
    first, second = both
    scripted.rest["fragile"] = "500"
    for _ in range(BREAKER["min_calls"]):
        assert (await status_at(first, "frail"))[0] == 502
    asked = scripted.calls("fragile")

    async def open_at(worker):
        async with worker.http.get(f"{crew.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        shown = [line for line in lines if line.startswith("pointsman_breaker_state{") and 'model="fragile"' in line]
        return {f'worker="{index}"' for index in (0, 1)} <= {
            mark for line in shown if 'state="open"' in line and line.endswith(" 1.0") for mark in marks(line)
        }

    await everywhere(both, open_at)
    assert (await status_at(second, "frail"))[0] == 503
    assert scripted.calls("fragile") == asked


def marks(line):
    return line.partition("{")[2].partition("}")[0].split(",")


async def test_a_reload_by_request_or_signal_is_made_by_all(crew, config, both, scripted):
    """Logged once; what is refused is refused by all, and changes nothing."""
    first, second = both
    path = crew.service.data_dir.parent / "pointsman.yaml"
    running = yaml.safe_load(path.read_text())

    async def opens(worker, key=OTHER_KEY):
        return (await status_at(worker, "one", key))[0] == 200

    async def refused(worker):
        return (await status_at(worker, "one", OTHER_KEY))[0] == 401

    keys = [*AUTH["keys"], {"key": OTHER_KEY, "user": "bob", "team": "search"}]
    await everywhere(both, refused)
    path.write_text(yaml.safe_dump(running | {"auth": AUTH | {"keys": keys}}))
    said = await second.at.admin("POST", "/reload")
    assert (said["status"], said["changed"]) == ("applied", ["auth.keys"])
    await everywhere(both, opens)
    path.write_text(yaml.safe_dump(running))
    crew.service.process.send_signal(signal.SIGHUP)
    await everywhere(both, refused)
    rows = await crew.changes("reloaded")
    assert [row["reason"] for row in rows] == ["POST /admin/reload", "SIGHUP"]
    path.write_text("pools: none")
    await first.at.admin("POST", "/reload", status=422)
    assert [await status_at(worker, "one") for worker in both] == [(200, "one")] * 2
    path.write_text(yaml.safe_dump(running))
    assert await asyncio.to_thread(crew.service.stop) == 0
    assert "Traceback" not in crew.service.log
    with pytest.raises(aiohttp.ClientError):
        await status_at(first, "one")
