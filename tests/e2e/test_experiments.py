"""Experiments on a running service: who sees what stays so, is logged, is compared as calls come in, and ends."""

from __future__ import annotations

import asyncio

import pytest
from scripted_upstream import Scripted
from steered_service import ADMIN_KEY, KEY, Steered

USERS = [f"user-{i}" for i in range(16)]
KEYS = {name: f"key-of-the-tests-{name}" for name in USERS}
HALVES = [{"name": "control", "share": 0.5, "model": "plain"}, {"name": "treated", "share": 0.5, "model": "fancy"}]
BY_USER = {"name": "voice", "variants": HALVES}
QUALITY = {"plain": 0.2, "fancy": 0.9}


@pytest.fixture(scope="module")
def config(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        keys = [{"key": KEY, "user": "ada"}, *({"key": key, "user": name} for name, key in KEYS.items())]
        pair = ["plain", "fancy"]
        yield {
            "auth": {"admin_key": ADMIN_KEY, "keys": keys},
            "log": {"flush_interval_s": 0.1},
            "models": [scripted.model(name) for name in pair],
            "pools": [
                {"name": "by-user", "models": pair, "experiments": [BY_USER], "policy": {"seed": 3}},
                {"name": "by-session", "models": pair, "policy": {"seed": 3}},
                {"name": "partly", "models": pair, "policy": {"seed": 3}},
            ],
        }


@pytest.fixture(scope="module")
def service(run_service, config, tmp_path_factory):
    with run_service(config, tmp_path_factory.mktemp("experiments")) as service:
        yield service


@pytest.fixture
def at(service, http):
    return Steered(http, service)


async def seen_by_users(at, users=USERS):
    return {name: (await at.ask("by-user", key=KEYS[name])).model for name in users}


async def test_a_user_keeps_its_variant_and_each_exposure_is_logged(at, wait_until):
    """The propensity is the mixture over variants: what any user might have got."""
    first = await seen_by_users(at)
    assert set(first.values()) == {"plain", "fancy"}  # 16 users of whom none sees the other: 2 in 65,536
    for _ in range(3):
        assert await seen_by_users(at) == first
    rows = [event["payload"] for event in at.service.events("decision")]
    rows = [row for row in rows if row["pool"] == "by-user" and row["user"] in KEYS]
    for row in rows:
        variant = "voice/control" if first[row["user"]] == "plain" else "voice/treated"
        assert (row["experiment"], row["mode"], row["chosen"]) == (variant, "weighted", first[row["user"]])
        assert (row["probabilities"], row["propensity"]) == (pytest.approx([0.5, 0.5]), pytest.approx(0.5))
    count = "SELECT count(*) FROM decisions WHERE pool = 'by-user' AND experiment IS NOT NULL"
    await wait_until(lambda: at.rows(count) == [(len(rows),)])
    status = await at.admin("GET", "/pools/by-user/experiments/voice")
    assert {each["name"]: each["calls"] for each in status["variants"]} == {
        "control": 4 * list(first.values()).count("plain"),
        "treated": 4 * list(first.values()).count("fancy"),
    }
    assert status["comparisons"][0]["verdict"] == "open"


async def test_sessions_are_compared_until_one_is_proved_better(at):
    """The answer may be looked at after any call; the first grade of each session counts, and no other."""
    begun = {"name": "by-talk", "unit": "session", "variants": HALVES, "resolution": 0.5}
    status = await at.admin("POST", "/pools/by-session/experiments", begun, status=201)
    assert (status["units"], status["started"] > 0) == (0, True)
    plain = await at.ask("by-session")
    assert at.decision(plain.decision_id)["experiment"] is None  # it says no session: it stays outside
    for i in range(0, 300, 10):
        await asyncio.gather(*(one_session(at, f"talk-{j}") for j in range(i, i + 10)))
        status = await at.admin("GET", "/pools/by-session/experiments/by-talk")
        (compared,) = status["comparisons"]
        if compared["verdict"] != "open":
            break
    assert (compared["variant"], compared["against"], compared["verdict"]) == ("treated", "control", "better")
    assert compared["low"] > 0
    assert (compared["treated"]["mean"], compared["control"]["mean"]) == pytest.approx((0.9, 0.2))
    assert status["units"] == i + 10
    assert sum(each["calls"] for each in status["variants"]) == 2 * status["units"]


async def one_session(at, name):
    """Two calls of a conversation; the second's grade says nothing."""
    session = {"x-pointsman-session": name}
    first = await at.ask("by-session", session)
    await at.grade(first.decision_id, QUALITY[first.model])
    second = await at.ask("by-session", session)
    assert (second.model, second.mode) == (first.model, "sticky")
    await at.grade(second.decision_id, 0.5)
    labels = [at.decision(each.decision_id)["experiment"] for each in (first, second)]
    assert labels[0] == labels[1] == ("by-talk/treated" if first.model == "fancy" else "by-talk/control")


async def test_who_is_in_no_variant_is_left_to_the_policy(at):
    tenth = [variant | {"share": 0.05} for variant in HALVES]
    await at.admin("POST", "/pools/partly/experiments", {"name": "few", "variants": tenth}, status=201)
    told = [await at.ask("partly", key=key) for key in KEYS.values()]
    rows = [at.decision(each.decision_id) for each in told]
    assert {row["mode"] for row in rows if row["experiment"] is None} == {"bandit"}
    assert sum(row["experiment"] is None for row in rows) >= 10
    for body, param in (
        ({"name": "few", "variants": HALVES[:1]}, "variants"),
        ({"name": "more", "variants": [HALVES[0], HALVES[1] | {"model": "else"}]}, "variants[1].model"),
        ({"name": "more", "variants": [variant | {"share": 0.7} for variant in HALVES]}, "variants"),
    ):
        answer = await at.admin("POST", "/pools/partly/experiments", body, status=422)
        assert answer["error"]["param"] == param
    again = await at.admin("POST", "/pools/partly/experiments", {"name": "few", "variants": HALVES}, status=409)
    assert again["error"]["code"] == "experiment_exists"


async def test_it_survives_a_kill_and_ends_when_it_is_told_to(run_service, config, http, tmp_path, wait_until):
    begun = {"name": "by-talk", "unit": "session", "variants": HALVES}
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        await at.admin("POST", "/pools/by-session/experiments", begun, status=201)
        first = await seen_by_users(at, USERS[:6])
        told = [await at.ask("by-session", {"x-pointsman-session": f"talk-{i}"}) for i in range(6)]
        for each in told:
            await at.grade(each.decision_id, QUALITY[each.model])
        await wait_until(lambda: len(service.events("outcome")) == 12)
        before = [await at.admin("GET", f"/pools/{pool}") for pool in ("by-user", "by-session")]
        service.kill()
    assert [pool["experiments"][0]["units"] for pool in before] == [0, 6]
    for ending in ("stop", "kill"):
        with run_service(config, tmp_path) as service:
            at = Steered(http, service)
            after = [await at.admin("GET", f"/pools/{pool}") for pool in ("by-user", "by-session")]
            assert [pool["experiments"] for pool in after] == [pool["experiments"] for pool in before]
            getattr(service, ending)()
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        assert await seen_by_users(at, USERS[:6]) == first
        ended = await at.admin("DELETE", "/pools/by-session/experiments/by-talk")
        assert (ended["units"], ended["ended"] > 0) == (6, True)
        await at.admin("GET", "/pools/by-session/experiments/by-talk", status=404)
        told = await at.ask("by-session", {"x-pointsman-session": "another talk"})
        row = at.decision(told.decision_id)
        assert (row["experiment"], row["mode"]) == (None, "bandit")
        ends = [(row["by"], row["reason"]) for row in at.changes("experiments")]
        assert ends == [("admin", "by-talk begins"), ("admin", "by-talk ends")]
