"""Several workers on one port are one service: whichever is called, all have learned the same, and show the same."""

from __future__ import annotations

import asyncio
import random
import time

import duckdb
import pytest
import yaml
from crew import crew_of, polled
from scripted_upstream import Scripted
from steered_service import ADMIN_KEY, AUTH, KEY

from bandit.snapshot import dumps, loads
from serving.access.keys import KeyRing
from serving.access.ledger import Ledger
from serving.generation import generators, mind_of
from serving.learner import Learner
from serving.metrics import Metrics
from serving.operator_desk import OperatorDesk
from serving.settings import Settings

NAMES = ("one", "two", "three")
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def config(scripted):
    return {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "models": [scripted.model(name, breaker={"enabled": False}) for name in NAMES],
        "pools": [
            {
                "name": "auto",
                "models": list(NAMES),
                "constraints": {"max_error_rate": 0.3, "min_accuracy": 0.3, "accuracy_evidence": "feedback"},
                "policy": {"seed": 3, "exploration_floor": 0.1, "half_life_requests": 200},
            }
        ],
    }


@pytest.fixture(scope="module")
def crew(config, valkey_server, tmp_path_factory):
    with crew_of(config, tmp_path_factory.mktemp("workers"), valkey_server) as crew:
        yield crew


async def learned_at(worker):
    """What this worker says that was learned: of each pool its state, as bytes."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with worker.http.get(f"{worker.at.service.url}/admin/snapshot", headers=headers) as response:
        assert response.status == 200
        return states(await response.read())


def states(snapshot):
    return {name: dumps({"state": pool["state"]}) for name, pool in loads(snapshot)["pools"].items()}


async def learned_by_one(crew):
    """What one process that does nothing else learns from the store alone."""
    path = crew.service.data_dir.parent / "pointsman.yaml"
    settings = Settings.parse(yaml.safe_load(path.read_text()) | {"server": {"data_dir": str(crew.service.data_dir)}})
    mind = mind_of(settings)
    ledger = Ledger(settings.budgets, max_counters=1_000)
    async with crew.store() as store:
        learner = Learner(
            mind.pools,
            generators(settings, None),
            store,
            Metrics(),
            cache_decisions=10_000,
            snapshot_every_events=10**9,
            roster=mind.roster,
            folds=(KeyRing(settings.auth.keys), mind.traffic, ledger),
        )
        assert learner.recover() == store.position
    return states(OperatorDesk(lambda: settings, learner, mind.traffic, ledger).snapshot(time.time()))


async def test_calls_and_feedback_over_any_connection_make_one_posterior(crew, scripted, http):
    """Each call and its feedback over connections of their own: both workers serve, and one state is learned."""
    chance, headers = random.Random(4), {"Authorization": f"Bearer {KEY}", "Connection": "close"}
    scripted.rest["three"] = "500"

    async def caller():
        for i in range(25):
            body = {"model": "auto", "messages": HELLO, "max_tokens": 5}
            async with http.post(f"{crew.url}/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200, await response.text()
                decision_id = response.headers["x-pointsman-decision-id"]
            item = {"decision_id": decision_id, "quality": chance.random()}
            if i % 5:
                async with http.post(f"{crew.url}/reward", json=item, headers=headers) as response:
                    assert response.status == 200, await response.text()
                    assert (await response.json())["status"] == "recorded"

    await asyncio.gather(*(caller() for _ in range(8)))
    kinds = [event["kind"] for event in await crew.events()]
    assert (kinds.count("decision"), kinds.count("feedback")) == (200, 160)
    async with crew.workers() as both:
        async with http.get(f"{crew.url}/metrics") as response:
            shown = await response.text()
        for index in (0, 1):
            lines = [line for line in shown.splitlines() if line.startswith("pointsman_requests_total")]
            assert sum(float(line.split()[-1]) for line in lines if f'worker="{index}"' in line) > 20, shown

        async def one_state():
            first, second = [await learned_at(worker) for worker in both]
            return first == second == await learned_by_one(crew)

        await polled(one_state)


async def test_every_worker_answers_for_all_of_the_service(crew, http):
    """What operators ask for is the same at each: usage, history, matrix, why one call went where, the log itself."""
    async with crew.workers() as both:
        told = await both[0].at.ask("auto")
        await both[1].at.grade(told.decision_id, 0.7)
        decisions = len(await crew.events("decision"))

        async def settled(worker):
            usage = await worker.at.admin("GET", "/usage?by=user,model")
            return usage["total"]["calls"] == decisions

        for worker in both:
            await polled(lambda worker=worker: settled(worker))
        for path in ("/usage?by=user,model", "/events?limit=100", "/matrix?pool=auto", "/models", "/budgets", "/keys"):
            first, second = [await worker.at.admin("GET", path) for worker in both]
            now = {"since", "until"} if "matrix" in path else set()
            assert all(first[name] == second[name] for name in first.keys() - now), path
        for worker in both:
            why = await worker.at.admin("GET", f"/decisions/{told.decision_id}")
            assert why["decision_id"] == told.decision_id
            headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
            async with worker.http.get(f"{crew.url}/admin/log.parquet?table=decisions", headers=headers) as response:
                assert response.status == 200
                path = crew.service.data_dir / f"got-{worker.index}.parquet"
                path.write_bytes(await response.read())
            assert duckdb.read_parquet(str(path)).count("*").fetchall() == [(decisions,)]
            async with worker.http.get(f"{crew.url}/admin/live?pool=auto", headers=headers) as response:
                assert response.status == 200
                assert b"snapshot" in await response.content.readuntil(b"\n\n")


async def test_tables_asked_of_all_workers_at_once_are_those_that_were_asked_for(crew):
    """Each writes its own into the data folder before it gives it away."""
    tables, headers = ("decisions", "outcomes"), {"Authorization": f"Bearer {ADMIN_KEY}"}

    async def columns(worker, table):
        url = f"{crew.url}/admin/log.parquet?table={table}"
        async with worker.http.get(url, headers=headers) as response:
            body = await response.read()
            assert response.status == 200, body
        path = crew.service.data_dir / f"given-{worker.index}.parquet"
        path.write_bytes(body)
        return set(duckdb.read_parquet(str(path)).columns)

    async with crew.workers() as both:
        for worker in both:
            await worker.at.ask("auto")
            await polled(lambda worker=worker: worker.at.admin("GET", "/matrix?pool=auto"))
        for _ in range(20):
            decisions, outcomes = await asyncio.gather(*map(columns, both, tables))
            assert ("probabilities" in decisions, "probabilities" in outcomes) == (True, False)
