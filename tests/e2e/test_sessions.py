"""Conversations on a running service: they stay on their model until it cannot serve, or another is clearly better."""

from __future__ import annotations

import pytest
from scripted_upstream import Scripted
from steered_service import ADMIN_KEY, KEY, TOOL_LOOP, Steered

BO = "key-of-another-tenant"
PAIR = ["left", "right"]
LIVELY = {"seed": 11, "exploration_floor": 0.5}
TALK = {"x-pointsman-session": "talk"}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def config(scripted):
    quiet = {"breaker": {"enabled": False}}
    names = (*PAIR, "steady", "breaks")
    dear = {"price": {"input_per_million": 1000.0, "output_per_million": 10000.0}}
    return {
        "auth": {
            "admin_key": ADMIN_KEY,
            "keys": [{"key": KEY, "user": "ada", "team": "search"}, {"key": BO, "user": "bo", "team": "ads"}],
        },
        "models": [scripted.model(name, **quiet) for name in names] + [scripted.model("dear", **quiet) | dear],
        "pools": [
            {"name": "auto", "models": PAIR, "policy": LIVELY},
            {"name": "apart", "models": PAIR, "weights": {"left": 1}},
            {"name": "switched", "models": PAIR, "policy": LIVELY, "sessions": {"switch_margin": 0.2}},
            {
                "name": "limited",
                "models": ["steady", "breaks"],
                "policy": LIVELY,
                "constraints": {"max_error_rate": 0.1},
            },
            {"name": "priced", "models": ["left", "dear"], "policy": LIVELY, "sessions": {"switch_margin": 1}},
            {"name": "brief", "models": PAIR, "policy": LIVELY, "sessions": {"ttl_s": 0.001}},
        ],
    }


@pytest.fixture(scope="module")
def service(run_service, config, tmp_path_factory):
    with run_service(config, tmp_path_factory.mktemp("sessions")) as service:
        yield service


@pytest.fixture
def at(service, http):
    return Steered(http, service)


async def begun_on(at, pool, model, name):
    """A session of this name and a number, that a call has put on `model`."""
    for i in range(60):
        session = {"x-pointsman-session": f"{name}-{i}"}
        if (await at.ask(pool, session)).model == model:
            return session
    raise AssertionError(f"no session began on {model}")


async def test_a_conversation_stays_where_calls_without_one_do_not(at):
    first = await at.ask("auto", TALK)
    assert first.mode == "bandit"
    for _ in range(12):
        told = await at.ask("auto", TALK)
        assert (told.model, told.mode) == (first.model, "sticky")
        row = at.decision(told.decision_id)
        assert row["propensity"] == 1.0
        assert row["probabilities"] == [float(name == first.model) for name in row["arms"]]
    rows = [at.decision(first.decision_id), row]
    assert rows[0]["session"] == rows[1]["session"] != "talk"
    assert {(await at.ask("auto")).model for _ in range(30)} == set(PAIR)
    assert (await at.admin("GET", "/pools/auto"))["sessions"] == 1


async def test_sessions_of_two_tenants_with_one_name_are_two(at):
    """Each on its own model, under its own hash; the operator's weights have moved between their first calls."""
    first = await at.ask("apart", TALK)
    await at.admin("PATCH", "/pools/apart", {"weights": {"right": 1}})
    second = await at.ask("apart", TALK, key=BO)
    for _ in range(5):
        mine, theirs = await at.ask("apart", TALK), await at.ask("apart", TALK, key=BO)
        assert (mine.model, mine.mode, theirs.model, theirs.mode) == ("left", "sticky", "right", "sticky")
    assert at.decision(first.decision_id)["session"] != at.decision(second.decision_id)["session"]


async def test_it_moves_when_its_model_is_disabled_and_stays_there(at):
    talk = await begun_on(at, "auto", "left", "disabled")
    await at.admin("PATCH", "/pools/auto", {"disabled": ["left"]})
    assert (await at.ask("auto", talk)).model == "right"
    await at.admin("PATCH", "/pools/auto", {"disabled": []})
    for _ in range(5):
        told = await at.ask("auto", talk)
        assert (told.model, told.mode) == ("right", "sticky")
    await at.admin("PATCH", "/models/right", {"disabled": True})
    assert (await at.ask("auto", talk)).model == "left"
    await at.admin("PATCH", "/models/right", {"disabled": False})


async def test_it_moves_when_its_model_is_proved_to_break_a_limit(at, scripted):
    talk = await begun_on(at, "limited", "breaks", "limit")
    scripted.rest["breaks"] = "500"
    for _ in range(60):
        assert (await at.ask("limited")).text == "from steady"
        states = {m["name"]: m["state"] for m in (await at.admin("GET", "/pools/limited"))["models"]}
        if states["breaks"] == "filtered":
            break
    assert states["breaks"] == "filtered"
    seen = scripted.calls("breaks")
    told = [await at.ask("limited", talk) for _ in range(10)]
    assert {(each.model, each.headers["x-pointsman-attempts"]) for each in told} == {("steady", "1")}
    assert scripted.calls("breaks") == seen
    scripted.rest["breaks"] = "ok"


async def test_it_follows_its_answers_where_its_model_fails(at, scripted):
    """What another model has said it has said: the next call goes there, and the provider's cache is there, too."""
    await at.admin("PATCH", "/pools/apart", {"weights": {"right": 1}})
    talk = await begun_on(at, "apart", "right", "fallback")
    scripted.plans["right"].append("500")
    told = await at.ask("apart", talk)
    assert (told.model, told.mode, told.headers["x-pointsman-attempts"]) == ("left", "sticky", "2")
    for _ in range(3):
        told = await at.ask("apart", talk)
        assert (told.model, told.mode, told.headers["x-pointsman-attempts"]) == ("left", "sticky", "1")


async def test_a_request_that_its_model_is_too_dear_for_goes_elsewhere(at):
    for _ in range(10):
        await at.ask("priced")
    talk = await begun_on(at, "priced", "dear", "price")
    assert (await at.ask("priced", talk)).model == "dear"
    told = await at.ask("priced", talk | {"x-pointsman-max-cost-usd": "0.001"})
    assert (told.model, "x-pointsman-limits" in told.headers) == ("left", False)


async def test_it_moves_when_another_model_is_better_by_more_than_the_margin(at):
    talk = await begun_on(at, "switched", "left", "margin")
    for _ in range(80):
        told = await at.ask("switched")
        await at.grade(told.decision_id, {"left": 0.5, "right": 0.6}[told.model])
    assert (await at.ask("switched", talk)).model == "left"  # 0.1 is less than the margin
    for _ in range(150):
        told = await at.ask("switched")
        await at.grade(told.decision_id, {"left": 0.1, "right": 0.9}[told.model])
    told = await at.ask("switched", talk)
    assert (told.model, told.mode, at.decision(told.decision_id)["propensity"]) == ("right", "sticky", 1.0)
    assert (await at.ask("switched", talk)).model == "right"


async def test_inside_a_tool_call_loop_nothing_is_explored(at):
    """Without a session the best model by what is known, and always it; with one, the session's."""
    told = [await at.ask("auto", messages=TOOL_LOOP) for _ in range(12)]
    assert {each.mode for each in told} == {"sticky"}
    assert len({each.model for each in told}) == 1
    assert {at.decision(each.decision_id)["propensity"] for each in told} == {1.0}
    other = next(name for name in PAIR if name != told[0].model)
    talk = await begun_on(at, "auto", other, "tools")
    for _ in range(5):
        each = await at.ask("auto", talk, messages=TOOL_LOOP)
        assert (each.model, each.mode) == (other, "sticky")


async def test_one_that_was_idle_too_long_begins_anew(at):
    told = [await at.ask("brief", TALK) for _ in range(20)]
    assert {each.mode for each in told} == {"bandit"}
    assert {each.model for each in told} == set(PAIR)


async def test_it_survives_a_kill(run_service, config, http, tmp_path):
    """Under the same hash: the installation's key is kept, and the tenants stay apart."""
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        first = await at.ask("apart", TALK)
        await at.admin("PATCH", "/pools/apart", {"weights": {"right": 1}})
        await at.ask("apart", TALK, key=BO)
        talk = await begun_on(at, "auto", "left", "kept")
        service.kill()
    for ending in ("stop", "kill", "kill"):
        with run_service(config, tmp_path) as service:
            at = Steered(http, service)
            mine, theirs = await at.ask("apart", TALK), await at.ask("apart", TALK, key=BO)
            assert (mine.model, mine.mode, theirs.model, theirs.mode) == ("left", "sticky", "right", "sticky")
            assert at.decision(mine.decision_id)["session"] == at.decision(first.decision_id)["session"]
            told = await at.ask("auto", talk)
            assert (told.model, told.mode) == ("left", "sticky")
            getattr(service, ending)()
