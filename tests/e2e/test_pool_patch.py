"""What an operator changes about a pool while it serves: at once, only what is named, logged with who, and for good."""

from __future__ import annotations

import asyncio
import json

import pytest
from scripted_upstream import Scripted
from steered_service import AUTH, Steered

TRIO = ["one", "two", "three"]
SEED = {"seed": 2, "exploration_floor": 0.3}
FIRST = {"one": 70.0, "two": 30.0}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def config(scripted):
    def pool(name, **more):
        return {"name": name, "models": TRIO, "policy": SEED} | more

    quiet = {"timeout_s": 20, "breaker": {"enabled": False}}
    return {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "failures": {"retries": {"burst": 1000}},
        "models": [scripted.model(name, **quiet) for name in (*TRIO, "sole")],
        "pools": [
            *(pool(name, weights=FIRST) for name in ("moved", "bad", "kept")),
            *(pool(name) for name in ("watching", "bypassed", "closed")),
            {"name": "alone", "models": ["sole"]},
        ],
    }


@pytest.fixture(scope="module")
def service(run_service, config, tmp_path_factory):
    with run_service(config, tmp_path_factory.mktemp("patch")) as service:
        yield service


@pytest.fixture
def at(service, http):
    return Steered(http, service)


def set_of(pool):
    return {name: pool[name] for name in ("weights", "learning", "disabled")}


async def test_weights_move_the_next_call_and_nothing_else(at):
    first = at.decision((await at.ask("moved")).decision_id)
    assert (first["mode"], first["probabilities"]) == ("weighted", pytest.approx([0.7, 0.3, 0.0]))
    told = await at.admin("PATCH", "/pools/moved", {"weights": {"three": 2}})
    assert set_of(told) == {"weights": {"three": 2.0}, "learning": "apply", "disabled": []}
    assert {(await at.ask("moved")).model for _ in range(10)} == {"three"}
    told = await at.admin("PATCH", "/pools/moved", {"disabled": ["three"]})
    assert set_of(told) == {"weights": {"three": 2.0}, "learning": "apply", "disabled": ["three"]}
    row = at.decision((await at.ask("moved")).decision_id)  # no model that can take a call has a weight: evenly
    assert row["probabilities"] == pytest.approx([0.5, 0.5, 0.0])
    told = await at.admin("PATCH", "/pools/moved", {"learning": "observe", "disabled": []})
    assert set_of(told) == {"weights": {"three": 2.0}, "learning": "observe", "disabled": []}
    told = await at.admin("PATCH", "/pools/moved", {"learning": "apply", "weights": None})
    assert set_of(told) == {"weights": None, "learning": "apply", "disabled": []}
    assert (await at.ask("moved")).mode == "bandit"
    told = await at.admin("PATCH", "/pools/moved", {})
    assert set_of(told) == {"weights": None, "learning": "apply", "disabled": []}


async def test_each_change_is_logged_with_who_when_before_and_after(at, wait_until):
    before = await at.admin("GET", "/pools/bad")
    await at.admin("PATCH", "/pools/bad", {"weights": {"two": 1}, "learning": "observe"})
    await at.admin("PATCH", "/pools/bad", {"weights": {"two": 1}})  # which it is: no change
    await at.admin("PATCH", "/models/sole", {"disabled": True})
    await at.admin("PATCH", "/models/sole", {"disabled": False})
    await at.admin("PATCH", "/pools/bad", set_of(before))
    query = 'SELECT what, pool, model, "before", "after", "by", ts FROM changes'
    query += " WHERE subject = 'traffic' AND (pool = 'bad' OR model = 'sole') ORDER BY seq"
    rows = await wait_until(lambda: len(rows := at.rows(query)) == 6 and rows)
    named = [(what, pool, model, was, now) for what, pool, model, was, now, *_ in rows[:4]]
    weights = next(entry for entry in named[:2] if entry[0] == "weights")
    assert (weights[1:3], *map(json.loads, weights[3:])) == (("bad", None), FIRST, {"two": 1.0})
    assert ("learning", "bad", None, "apply", "observe") in named[:2]
    assert named[2:] == [
        ("model_disabled", None, "sole", "false", "true"),
        ("model_disabled", None, "sole", "true", "false"),
    ]
    assert {by for *_, by, _ in rows} == {"admin"}
    times = [ts for *_, ts in rows]
    assert times == sorted(times)
    assert at.decision((await at.ask("bad")).decision_id)["ts"] >= times[-1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"learning": "observe", "weights": {"one": -1}}, "weights.one"),
        ({"learning": "observe", "weights": {"one": 0}}, "weights"),
        ({"learning": "observe", "weights": {"four": 1}}, "weights.four"),
        ({"learning": "observe", "weights": {}}, "weights"),
        ({"weights": {"one": 1}, "learning": "maybe"}, "learning"),
        ({"weights": {"one": 1}, "learning": None}, "learning"),
        ({"learning": "observe", "disabled": ["one", "four"]}, "disabled[1]"),
        ({"learning": "observe", "disabled": "one"}, "disabled"),
        ({"learning": "observe", "wieghts": {"one": 1}}, "wieghts"),
    ],
)
async def test_a_bad_change_names_its_field_and_changes_nothing(at, body, param):
    before, events = await at.admin("GET", "/pools/bad"), at.service.events("change")
    answer = await at.admin("PATCH", "/pools/bad", body, status=422)
    assert (answer["error"]["code"], answer["error"]["param"]) == ("invalid_field", param)
    assert set_of(await at.admin("GET", "/pools/bad")) == set_of(before)
    assert at.service.events("change") == events


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/pools/none", {"learning": "observe"}, 404, "model_not_found"),
        ("/models/none", {"disabled": True}, 404, "model_not_found"),
        ("/models/one", {}, 422, "invalid_field"),
        ("/models/one", {"disabled": "maybe"}, 422, "invalid_field"),
        ("/pools/bad", [], 400, "invalid_json"),
    ],
)
async def test_what_is_not_there_or_not_said_is_refused(at, path, body, status, code):
    answer = await at.admin("PATCH", path, body, status=status)
    assert answer["error"]["code"] == code


async def test_a_pool_that_observes_learns_and_is_not_led_by_it(at):
    """Its first model, always; what the answers were worth is known once it is to be applied again."""
    await at.admin("PATCH", "/pools/watching", {"learning": "observe"})
    for _ in range(30):
        told = await at.ask("watching")
        assert (told.mode, told.model) == ("weighted", "one")
        await at.grade(told.decision_id, 0.05)
    row = at.decision(told.decision_id)
    assert row["probabilities"] == [1.0, 0.0, 0.0]
    await at.admin("PATCH", "/pools/watching", {"learning": "apply"})
    told = [await at.ask("watching") for _ in range(40)]
    row = at.decision(told[-1].decision_id)
    assert row["mode"] == "bandit"
    assert row["predicted_quality"][0] < 0.2 < min(row["predicted_quality"][1:])
    assert [each.model for each in told].count(
        "one"
    ) <= 12  # the floor's third of 0.3 of the calls, and four standard deviations


async def test_a_pool_whose_learning_is_bypassed_neither_learns_nor_looks(at):
    await at.admin("PATCH", "/pools/bypassed", {"learning": "bypass"})
    for _ in range(20):
        told = await at.ask("bypassed")
        assert (told.mode, told.model) == ("weighted", "one")
        await at.grade(told.decision_id, 0.05)
    row = at.decision(told.decision_id)
    assert (row["context_version"], row["policy_version"], row["context"]) == ("none", "bypass", [])
    await at.admin("PATCH", "/pools/bypassed", {"weights": {"two": 1, "three": 3}})
    row = at.decision((await at.ask("bypassed")).decision_id)
    assert row["probabilities"] == pytest.approx([0.0, 0.25, 0.75])
    await at.admin("PATCH", "/pools/bypassed", {"learning": "apply", "weights": None})
    row = at.decision((await at.ask("bypassed")).decision_id)
    assert row["mode"] == "bandit"
    assert len(set(row["predicted_quality"])) == 1  # nothing has been learned of any


async def test_a_model_is_disabled_for_the_next_call_and_those_under_way_finish(at, scripted, wait_until):
    scripted.plans["sole"].append("slow-0.5")
    under_way = asyncio.create_task(at.ask("alone"))
    await wait_until(lambda: scripted.calls("sole"))
    await at.admin("PATCH", "/models/sole", {"disabled": True})
    refused = await at.ask("alone", status=503)
    assert (refused.body["error"]["code"], int(refused.headers["Retry-After"]) >= 1) == ("no_model_available", True)
    pinned = await at.ask("sole", status=403)
    assert pinned.body["error"]["code"] == "model_not_allowed"
    assert (await under_way).text == "from sole"
    assert scripted.calls("sole") == 1
    shown = (await at.admin("GET", "/pools/alone"))["models"][0]
    assert shown["disabled"]
    await at.admin("PATCH", "/models/sole", {"disabled": False})
    assert (await at.ask("alone")).text == "from sole"


async def test_a_model_may_be_disabled_in_one_pool_alone(at, scripted):
    await at.admin("PATCH", "/pools/closed", {"disabled": ["one", "two", "three"]})
    assert (await at.ask("closed", status=503)).body["error"]["code"] == "no_model_available"
    assert (await at.ask("one")).text == "from one"
    await at.admin("PATCH", "/pools/closed", {"disabled": ["two", "three"]})
    scripted.plans["one"].append("500")
    told = await at.ask("closed")  # no fallback to what is disabled
    assert (told.model, told.headers["x-pointsman-attempts"]) == ("one", "2")


async def test_all_of_it_survives_a_kill_until_the_configuration_says_otherwise(run_service, config, http, tmp_path):
    patch = {"weights": {"three": 1.0}, "learning": "observe", "disabled": ["two"]}
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        await at.admin("PATCH", "/pools/kept", patch)
        await at.admin("PATCH", "/models/sole", {"disabled": True})
        service.kill()
    for ending in ("stop", "kill"):  # from the log, then from a snapshot
        with run_service(config, tmp_path) as service:
            at = Steered(http, service)
            assert set_of(await at.admin("GET", "/pools/kept")) == patch
            assert (await at.ask("kept")).model == "three"
            assert (await at.ask("alone", status=503)).body["error"]["code"] == "no_model_available"
            getattr(service, ending)()
    kept = next(pool for pool in config["pools"] if pool["name"] == "kept")
    newer = config | {"pools": [p for p in config["pools"] if p != kept] + [kept | {"weights": {"two": 1, "one": 1}}]}
    with run_service(newer, tmp_path) as service:
        at = Steered(http, service)
        assert set_of(await at.admin("GET", "/pools/kept")) == patch | {"weights": {"two": 1.0, "one": 1.0}}
        assert (await at.ask("kept")).model == "one"
