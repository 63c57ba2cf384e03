"""A pool none of whose models can serve: its stated chain answers, and the log says that nothing was drawn."""

from __future__ import annotations

import pytest
from scripted_upstream import Scripted
from steered_service import AUTH, Steered

BREAKER = {"min_calls": 3, "open_s": 60.0, "max_open_s": 60.0}
ONCE = {"retries": {"per_model": 1, "burst": 1000}}
TALK = {"x-pointsman-session": "talk"}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def service(run_service, scripted, tmp_path_factory):
    names = ("frail", "weak", "spare", "last")
    chain = ONCE | {"fallbacks": ["spare", "last"]}
    config = {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "models": [scripted.model(name, breaker=BREAKER) for name in names],
        "pools": [
            {"name": "chained", "models": ["frail"], "failures": chain},
            {"name": "a/canary", "models": ["weak"], "failures": chain},
            {"name": "default", "models": ["weak"], "failures": ONCE},
            {"name": "strict", "models": ["weak"], "failures": ONCE | {"fallbacks": []}},
            {"name": "a", "models": ["weak"], "failures": ONCE},
        ],
    }
    with run_service(config, tmp_path_factory.mktemp("out")) as service:
        yield service


@pytest.fixture
def at(service, http):
    return Steered(http, service)


async def test_its_stated_chain_answers_while_it_is_down(at, scripted, wait_until):
    scripted.rest["frail"] = "500"
    told = [await at.ask("chained", TALK) for _ in range(3)]
    assert {(each.model, each.headers["x-pointsman-attempts"]) for each in told} == {("spare", "2")}
    told = await at.ask("chained", TALK)  # its breaker is open: it is not even asked
    assert (told.text, told.mode, told.headers["x-pointsman-attempts"]) == ("from spare", "weighted", "1")
    assert scripted.calls("frail") == 3
    row = at.decision(told.decision_id)
    assert (row["pool"], row["arms"], row["chosen"], row["propensity"]) == ("chained", ["spare"], "spare", 1.0)
    assert (row["policy_version"], row["context_version"], row["session"]) == ("fallback", "none", None)
    query = "SELECT decision_id, mode, context_version FROM decisions ORDER BY seq DESC LIMIT 1"
    await wait_until(lambda: at.rows(query) == [(told.decision_id, "weighted", "none")])
    await at.grade(told.decision_id, 1.0)
    scripted.plans["spare"].append("500")
    told = await at.ask("chained")
    assert (told.text, told.headers["x-pointsman-attempts"]) == ("from last", "2")
    await at.admin("PATCH", "/models/spare", {"disabled": True})
    assert (await at.ask("chained")).text == "from last"
    await at.admin("PATCH", "/models/last", {"disabled": True})
    assert (await at.ask("chained", status=503)).body["error"]["code"] == "no_model_available"
    for name in ("spare", "last"):
        await at.admin("PATCH", f"/models/{name}", {"disabled": False})


async def test_where_no_chain_is_stated_or_an_empty_one_it_is_said_that_nothing_can_serve(at):
    """By default a call goes on within its pool: what other models are for is the operator's to say."""
    await at.admin("PATCH", "/models/weak", {"disabled": True})
    for pool in ("default", "strict"):
        told = await at.ask(pool, status=503)
        assert told.body["error"]["code"] == "no_model_available"
        assert int(told.headers["Retry-After"]) >= 1
    assert (await at.ask("a/canary")).text == "from spare"
    await at.admin("PATCH", "/models/weak", {"disabled": False})
    assert (await at.ask("a/canary")).text == "from weak"


async def test_the_chain_is_what_a_caller_is_told_who_calls_by_itself(at, service):
    headers = {"Authorization": f"Bearer {AUTH['keys'][0]['key']}"}
    body = {"model": "a/canary", "messages": [{"role": "user", "content": "hello"}]}
    await at.admin("PATCH", "/pools/a%2Fcanary", {"disabled": ["weak"]})
    async with at.http.post(f"{service.url}/v1/route", json=body, headers=headers) as response:
        told = await response.json()
    assert (told["model"], told["mode"], told["probabilities"]) == ("spare", "weighted", {"spare": 1.0})
    await at.admin("PATCH", "/pools/a%2Fcanary", {"disabled": []})


async def test_a_pool_may_be_called_as_a_route_ends(at):
    """A slash in its name is written %2F, as in any address; else the last part is taken for the route's."""
    assert (await at.admin("GET", "/pools/a/canary")) == {"canary": None}
    assert (await at.admin("GET", "/pools/a%2Fcanary"))["name"] == "a/canary"
    started = await at.admin("POST", "/pools/a%2Fcanary/canary", {"model": "weak"}, status=422)
    assert started["error"]["message"].endswith("is the pool's only one: nothing to compare with")
