"""Shadow calls on a running service: sent beside the caller's, graded, logged, paid within a cap, and never noticed."""

from __future__ import annotations

import pytest
from scripted_upstream import Scripted
from steered_service import AUTH, Steered

NAMES = ("main", "copy", "grim", "sleepy", "costly", "learned", "outside")
CALL_USD = 10e-6 + 50e-6  # what the scripted answers' tokens cost at 1 and 10 USD per million
CAP_USD = 0.0022  # at worst a call may cost 0.0005 for 50 tokens of output, and some for its input
WAITING = 3


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def config(scripted):
    def pool(name, shadow, **more):
        many = {"model": shadow, "share": 1, "max_usd_per_day": 9, "max_concurrent": WAITING}
        return {"name": name, "models": ["main"], "shadow": many | more}

    return {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "models": [scripted.model(name, timeout_s=20, breaker={"enabled": False}) for name in NAMES],
        "budgets": [{"scope": "user", "usd": 5, "per": "total"}],
        "pools": [
            pool("copied", "copy") | {"models": ["main", "copy"], "weights": {"main": 1}},
            pool("failing", "grim"),
            pool("hanging", "sleepy"),
            pool("capped", "costly", max_usd_per_day=CAP_USD),
            pool("taught", "learned") | {"models": ["main", "learned"], "weights": {"main": 1}},
            pool("watched", "outside", share=0.3, grade="none"),
        ],
    }


@pytest.fixture(scope="module")
def service(run_service, config, tmp_path_factory):
    with run_service(config, tmp_path_factory.mktemp("shadow")) as service:
        yield service


@pytest.fixture
def at(service, http):
    return Steered(http, service)


@pytest.fixture
def shadow_of(service, wait_until):
    """The decision and the outcome of a call's shadow, once it has ended."""

    async def shadow_of(told):
        shadow_id = told.headers["x-pointsman-shadow-id"]
        await wait_until(lambda: service.events("outcome", shadow_id))
        (decision,), (outcome,) = (service.events(kind, shadow_id) for kind in ("decision", "outcome"))
        return decision["payload"], outcome["payload"]

    return shadow_of


async def test_the_answer_is_thrown_away_graded_and_logged(at, scripted, shadow_of, wait_until):
    told = await at.ask("copied", {"x-pointsman-session": "talk", "x-pointsman-tags": "a=1"})
    assert (told.text, told.model, told.mode) == ("from main", "main", "weighted")
    decision, outcome = await shadow_of(told)
    assert (decision["mode"], decision["origin"], decision["chosen"]) == ("shadow", told.decision_id, "copy")
    assert (decision["propensity"], decision["probabilities"]) == (1.0, [0.0, 1.0])
    assert (decision["user"], decision["tags"], decision["session"]) == ("ada", {"a": "1"}, None)
    assert (outcome["model"], outcome["status"], outcome["cost_usd"]) == ("copy", "ok", pytest.approx(CALL_USD))
    shadow_id = decision["decision_id"]
    await wait_until(lambda: at.service.events("feedback", shadow_id))
    (feedback,) = at.service.events("feedback", shadow_id)
    assert feedback["payload"]["metrics"] == {"agreement": 0.5}  # "from main" and "from copy"
    logged = "SELECT mode, origin, metrics['agreement'] FROM decisions JOIN rewards USING (decision_id)"
    logged += f" WHERE decision_id = '{shadow_id}'"
    await wait_until(lambda: at.rows(logged) == [("shadow", told.decision_id, 0.5)])
    assert not at.service.events("feedback", told.decision_id)
    assert scripted.calls("copy") == 1


async def test_whoever_called_pays_for_the_call_alone(at, shadow_of):
    """The shadow is on nobody's budget; it is in the pool's own account."""
    (before,) = (await at.admin("GET", "/budgets"))["budgets"][0]["counters"]
    spent = (await at.admin("GET", "/pools/copied"))["shadow"]["spent_usd"]
    await shadow_of(await at.ask("copied"))
    (after,) = (await at.admin("GET", "/budgets"))["budgets"][0]["counters"]
    assert after["spent"] - before["spent"] == pytest.approx(CALL_USD)
    assert (await at.admin("GET", "/pools/copied"))["shadow"]["spent_usd"] - spent == pytest.approx(CALL_USD)


async def test_beside_a_stream_it_is_sent_whole_and_not_graded(at, service, wait_until):
    body = {"model": "copied", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50, "stream": True}
    headers = {"Authorization": f"Bearer {AUTH['keys'][0]['key']}"}
    async with at.http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers) as response:
        shadow_id = response.headers["x-pointsman-shadow-id"]
        events = await response.text()
    assert events.rstrip().endswith("data: [DONE]")
    await wait_until(lambda: service.events("outcome", shadow_id))
    (outcome,) = service.events("outcome", shadow_id)
    assert (outcome["payload"]["status"], outcome["payload"]["stream"]) == ("ok", False)
    assert not service.events("feedback", shadow_id)


async def test_one_that_fails_is_logged_and_nobody_else_hears_of_it(at, scripted, shadow_of):
    """It is asked once: nothing is tried again for an answer that nobody waits for."""
    for number, what in enumerate(("500", "reset", "malformed", "bad-request"), start=1):
        scripted.plans["grim"].append(what)
        told = await at.ask("failing")
        assert (told.text, told.headers["x-pointsman-attempts"]) == ("from main", "1")
        _, outcome = await shadow_of(told)
        assert (outcome["model"], outcome["status"]) == ("grim", "error")
        assert scripted.calls("grim") == number
        assert not at.service.events("feedback", told.headers["x-pointsman-shadow-id"])


async def test_one_that_hangs_keeps_nobody_waiting_and_a_bounded_number_under_way(at, scripted, wait_until):
    """The callers have their answers while their shadows have none; those beyond the bound are dropped."""
    scripted.rest["sleepy"] = "hang"
    told = [await at.ask("hanging") for _ in range(10)]
    assert {each.text for each in told} == {"from main"}
    shadows = [each.headers["x-pointsman-shadow-id"] for each in told if "x-pointsman-shadow-id" in each.headers]
    assert len(shadows) == WAITING
    await wait_until(lambda: scripted.calls("sleepy") == WAITING)
    assert not any(at.service.events("outcome", each) for each in shadows)
    scripted.rest["sleepy"] = "ok"


async def test_what_it_may_cost_in_a_day_holds(at, scripted, shadow_of, wait_until):
    """Counting what the next one may cost at worst; and it is said in the pool's account."""
    for _ in range(60):
        told = await at.ask("capped")
        if "x-pointsman-shadow-id" in told.headers:
            await shadow_of(told)
    usd = [e["payload"]["cost_usd"] for e in at.service.events("outcome") if e["payload"]["model"] == "costly"]
    assert len(usd) == scripted.calls("costly") > 20
    assert CAP_USD - 0.0006 < sum(usd) <= CAP_USD
    assert "x-pointsman-shadow-id" not in (await at.ask("capped")).headers
    shadow = (await at.admin("GET", "/pools/capped"))["shadow"]
    assert (shadow["max_usd_per_day"], shadow["spent_usd"]) == (CAP_USD, pytest.approx(sum(usd)))


async def test_a_share_of_calls_gets_one(at, shadow_of):
    """0.3 of 200 in [33, 87] but once in 30,000 times (four standard deviations)."""
    told = [await at.ask("watched") for _ in range(200)]
    shadowed = [each for each in told if "x-pointsman-shadow-id" in each.headers]
    assert 33 <= len(shadowed) <= 87
    decision, _ = await shadow_of(shadowed[-1])
    assert (decision["propensity"], decision["arms"], decision["context_version"]) == (0.3, ["outside"], "none")
    assert not at.service.events("feedback", decision["decision_id"])


async def test_the_pool_learns_from_it_without_sending_it_a_caller(at, shadow_of):
    """Quality is posted for the shadow's own decision; predictions of later decisions follow."""
    first = at.decision((await at.ask("taught")).decision_id)
    for _ in range(30):
        told = await at.ask("taught")
        decision, _ = await shadow_of(told)
        await at.grade(decision["decision_id"], 0.05)
        await at.grade(told.decision_id, 0.95)
    told = await at.ask("taught")
    last = at.decision(told.decision_id)
    assert last["predicted_quality"][0] > 0.8
    assert last["predicted_quality"][1] < 0.2
    assert first["predicted_quality"][0] == pytest.approx(first["predicted_quality"][1])
    await at.admin("PATCH", "/pools/taught", {"weights": None})
    await at.admin("PATCH", "/models/learned", {"disabled": True})
    assert "x-pointsman-shadow-id" not in (await at.ask("taught")).headers


async def test_what_was_spent_today_survives_a_kill(run_service, config, http, tmp_path, wait_until):
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        shadows = [(await at.ask("capped")).headers["x-pointsman-shadow-id"]]
        shadows.append((await at.ask("capped")).headers.get("x-pointsman-shadow-id", shadows[0]))
        await wait_until(lambda: all(service.events("outcome", each) for each in shadows))
        before = (await at.admin("GET", "/pools/capped"))["shadow"]
        assert before["spent_usd"] >= CALL_USD
        service.kill()
    for ending in ("stop", "kill"):
        with run_service(config, tmp_path) as service:
            assert (await Steered(http, service).admin("GET", "/pools/capped"))["shadow"] == before
            getattr(service, ending)()
