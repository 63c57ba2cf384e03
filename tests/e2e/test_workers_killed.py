"""Workers and their parent that die or are stopped: who leads goes on, calls under way end, and nobody is left over."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp
import pytest
from crew import crew_of, polled
from scripted_upstream import Scripted
from steered_service import AUTH, KEY

from tests.conftest import eventually

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture
def config(scripted):
    canary = {"model": "fresh", "steps": [0.5], "min_calls": 50, "min_graded": 50}
    return {
        "auth": AUTH,
        "server": {"shutdown_grace_s": 10},
        "store": {"snapshot_every_events": 40},
        "log": {"flush_interval_s": 0.1},
        "failures": {"retries": {"burst": 1000}},
        "models": [
            scripted.model(name, breaker={"enabled": False}, timeout_s=20)
            for name in ("base", "fresh", "dying", "slow")
        ],
        "pools": [
            {
                "name": "tried",
                "models": ["base", "fresh"],
                "canary": canary | {"guardrails": {"max_quality_loss": 0.3, "max_error_increase": 0.3}},
                "policy": {"seed": 5, "exploration_floor": 0.2},
            },
            {
                "name": "bounded",
                "models": ["base", "dying"],
                "constraints": {"max_error_rate": 0.2},
                "policy": {"seed": 6, "exploration_floor": 0.3},
            },
        ],
    }


async def snapshot_at(crew):
    async with crew.store() as store:
        found = store.latest_snapshot()
        return 0 if found is None else found[0]


async def graded(worker, pool, count):
    for _ in range(count):
        told = await worker.at.ask(pool)
        await worker.at.grade(told.decision_id, 0.8)


async def test_a_leader_that_is_killed_leads_again_and_nothing_is_decided_twice(
    config, valkey_server, tmp_path, scripted
):
    """Snapshots and changes of standing go on; the canary has begun once, and is promoted once."""
    with crew_of(config, tmp_path, valkey_server) as crew:
        async with crew.worker(1) as other:
            await graded(other, "tried", 20)
            before = await polled(lambda: snapshot_at(crew))
            await crew.kill(0)
            scripted.rest["dying"] = "500"

            async def goes_on():
                await graded(other, "tried", 10)
                await other.at.ask("bounded")
                return await snapshot_at(crew) > before and await crew.changes("canary_promoted")

            await polled(goes_on, 30)

            async def filtered():
                await other.at.ask("bounded")
                return [e for e in await crew.events("filter_event") if e["payload"]["model"] == "dying"]

            await polled(filtered, 30)
            await graded(other, "tried", 20)
        happened = [row["what"] for row in await crew.changes() if row["subject"] == "traffic"]
        assert (happened.count("canary_started"), happened.count("canary_promoted")) == (1, 1), happened
        assert crew.service.log.count("it starts again") == 1
        assert await asyncio.to_thread(crew.service.stop) == 0


async def test_what_is_due_while_nobody_leads_is_logged_by_who_leads_next(config, valkey_server, tmp_path, scripted):
    """A model is proved to fail before the killed leader is there again: the log has its change of standing."""
    scripted.rest["dying"] = "500"
    with crew_of(config, tmp_path, valkey_server) as crew:
        async with crew.worker(1) as other:
            await crew.kill(0, wait=False)
            for _ in range(30):
                await other.at.ask("bounded")
            assert await crew.events("filter_event") == []
            await crew.all_up()

            async def filtered():
                await other.at.ask("bounded")
                return [e for e in await crew.events("filter_event") if e["payload"]["model"] == "dying"]

            await polled(filtered)


async def test_calls_under_way_at_all_workers_end_when_the_parent_is_asked_to(
    config, valkey_server, tmp_path, scripted
):
    scripted.rest["slow"] = "slow-1.5"
    asked = scripted.calls("slow")
    with crew_of(config, tmp_path, valkey_server) as crew:
        async with crew.workers() as both:
            calls = [asyncio.create_task(worker.at.ask("slow")) for worker in both]
            await eventually(lambda: scripted.calls("slow") == asked + 2)
            pids = crew.pids()
            assert await asyncio.to_thread(crew.service.stop) == 0
            told = await asyncio.gather(*calls)
            assert [each.text for each in told] == ["from slow"] * 2
        ended = {event["decision_id"] for event in await crew.events("outcome")}
        assert {each.decision_id for each in told} <= ended
        assert not any(running(pid) for pid in pids.values())
        assert "Traceback" not in crew.service.log


async def test_workers_of_a_parent_that_is_killed_end_in_order(config, valkey_server, tmp_path):
    """And free the port: the same command can be started again at once after."""
    with crew_of(config, tmp_path, valkey_server) as crew:
        async with crew.worker(1) as other:
            told = await other.at.ask("tried")
            pids = crew.pids()
            assert set(pids) == {0, 1}
            await asyncio.to_thread(crew.service.kill)
            await eventually(lambda: not any(running(pid) for pid in pids.values()), 20)
            with pytest.raises(aiohttp.ClientError):
                async with aiohttp.ClientSession() as http, http.get(f"{crew.url}/healthz"):
                    pass
        assert told.decision_id in {event["decision_id"] for event in await crew.events("outcome")}
    with crew_of(config, tmp_path, valkey_server) as crew:
        async with crew.worker(0) as first:
            body, headers = {"decision_id": told.decision_id, "quality": 1.0}, {"Authorization": f"Bearer {KEY}"}
            async with first.http.post(f"{crew.url}/reward", json=body, headers=headers) as response:
                assert (response.status, (await response.json())["status"]) == (200, "recorded")


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
