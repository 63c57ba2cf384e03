"""Upstreams that die and return, under a steady load."""

from __future__ import annotations

import asyncio
from collections import Counter

from steady_load import accepted, steady_load

BODIES = [{"model": "auto", "messages": [{"role": "user", "content": "hello"}]}]
PER_SECOND, RETURN_S = 60, 6.0
BREAKER = {"min_calls": 5, "open_s": 0.5, "max_open_s": 1.0, "window_s": 5}
RETRIES = {"max_attempts": 4, "per_model": 2, "budget": 2.0, "burst": 200}


def config(mortals):
    return {
        "models": [mortal.model(timeout_s=5, breaker=BREAKER) for mortal in mortals],
        "pools": [{"name": "auto", "models": [m.name for m in mortals], "policy": {"exploration_floor": 0.2}}],
        "failures": {"retries": RETRIES, "deadline_s": 10},
    }


def outcomes_of(service):
    """By decision: the status of each attempt."""
    found = {}
    for event in service.events("outcome"):
        found.setdefault(event["decision_id"], []).append(event["payload"]["status"])
    return found


def assert_all_recorded(service, load):
    """Every call that was answered has a decision, and every decision its outcomes, the last of which it was told."""
    decided, outcomes = accepted(service.events()), outcomes_of(service)
    assert set(decided.values()) == set(outcomes)
    for n, status in load.answered.items():
        if status == 200:
            assert outcomes[decided[n]][-1] == "ok"


async def test_upstreams_die_and_return_one_by_one(run_service, mortals, case, tmp_path):
    """While one model of a pool lives, every call is answered by it: calls under way at the killed one, too."""
    one, two, three = mortals("one", "two", "three")
    for mortal in (one, two, three):
        await mortal.start()
    with run_service(config((one, two, three)), tmp_path) as service:
        load = asyncio.create_task(steady_load(service.url, 12, {}, per_second=PER_SECOND, bodies=BODIES))
        for mortal in (one, two, three):
            await asyncio.sleep(1.0)
            mortal.kill()
            await asyncio.sleep(2.0)
            await mortal.start()
            await asyncio.sleep(1.5)  # longer than the breaker waits: it is probed, and back
        load = await load
        case.saw(load)
        assert service.stop() == 0
    case.lost = case.made - load.statuses[200]
    failed = sum(status != "ok" for statuses in outcomes_of(service).values() for status in statuses)
    case.happened = f"all {load.statuses[200]:,} calls 200; {failed} attempts failed on the way"
    assert (load.lost, case.lost) == ({}, 0)
    assert_all_recorded(service, load)


async def test_all_upstreams_die_and_return_at_once(run_service, mortals, case, patient, tmp_path):
    """While none lives each call fails in its deadline, in one shape, and is recorded; soon after, all are answered."""
    made = mortals("one", "two")
    for mortal in made:
        await mortal.start()
    with run_service(config(made), tmp_path) as service:
        load = asyncio.create_task(steady_load(service.url, 6, {}, per_second=PER_SECOND, bodies=BODIES))
        await asyncio.sleep(2.0)
        for mortal in made:
            mortal.kill()
        load = await load
        case.saw(load)
        for mortal in made:
            await mortal.start()
        async with asyncio.timeout(RETURN_S):
            while await _status(patient, service) != 200:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        after = await steady_load(service.url, 2, {}, per_second=PER_SECOND, bodies=BODIES)
        case.saw(after)
        async with patient.get(f"{service.url}/readyz") as response:
            assert response.status == 200
        assert service.stop() == 0
    assert load.lost == after.lost == {}
    assert set(load.statuses) == {200, 502, 503}
    assert set(after.statuses) == {200}
    case.happened = f"statuses {dict(load.statuses)}, the failures while none lived; then {dict(after.statuses)}"
    assert all(text.endswith("}}") for text in load.said.values())  # the error's body, whole
    assert set(outcomes_of(service)) == {e["decision_id"] for e in service.events("decision")}


GAME_DAY = (
    {"kind": "error", "model": "one", "share": 0.2, "status": 500, "for_s": 4},
    {"kind": "latency", "model": "one", "share": 0.2, "latency_s": 0.2, "for_s": 4},
    {"kind": "disconnect", "share": 0.1, "for_s": 4},
    {"kind": "stall", "model": "two", "share": 0.05, "for_s": 4},
)


async def test_a_game_day_that_is_forgotten(run_service, mortals, case, patient, tmp_path):
    """Faults by /admin/faults: every call is answered by another attempt, each fault is in the log, and they end."""
    made = mortals("one", "two", "three")
    for mortal in made:
        await mortal.start()
    settings = config(made) | {"faults": {"enabled": True, "seed": 3}}
    settings["models"] = [model | {"timeout_s": 1} for model in settings["models"]]
    with run_service(settings, tmp_path) as service:
        for fault in GAME_DAY:
            async with patient.post(f"{service.url}/admin/faults", json=fault) as response:
                assert response.status == 201
        load = await steady_load(service.url, 7, {}, per_second=PER_SECOND, bodies=BODIES)
        case.saw(load)
        async with patient.get(f"{service.url}/admin/faults") as response:
            assert await response.json() == {"faults": []}
        async with patient.get(f"{service.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        assert service.stop() == 0
    counted = sum(float(line.split()[-1]) for line in lines if line.startswith("pointsman_faults_injected_total{"))
    told = [str(event["payload"]["error"]) for event in service.events("outcome")]
    injected = Counter(code for code in told if code.startswith("injected_"))
    case.lost = case.made - load.statuses[200]
    case.happened = f"{dict(injected)}, all calls 200, none stands after 4 s"
    assert set(injected) == {f"injected_{fault['kind']}" for fault in GAME_DAY}
    assert sum(injected.values()) == counted
    assert case.lost == 0
    assert_all_recorded(service, load)


async def _status(session, service):
    async with session.post(f"{service.url}/v1/chat/completions", json=BODIES[0]) as response:
        return response.status
