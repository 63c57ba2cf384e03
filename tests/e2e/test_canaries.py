"""Canaries on a running service: promoted, rolled back, held or aborted, by what their calls really yielded."""

from __future__ import annotations

from itertools import pairwise

import pytest
from scripted_upstream import Scripted
from steered_service import AUTH, Steered

NAMES = ("base", "spare", "fresh", "worse", "silent", "dying", "unwanted", "kept")
GUARDRAILS = {"max_quality_loss": 0.3, "max_error_increase": 0.3}
EVIDENCE = {"min_calls": 50, "min_graded": 50, "guardrails": GUARDRAILS}
QUALITY = {"base": 0.8, "spare": 0.8, "fresh": 0.8, "worse": 0.2, "kept": 0.8}
MOST_CALLS = 900
SEED = {"seed": 5, "exploration_floor": 0.2}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


def config_of(scripted, pools):
    return {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "models": [scripted.model(name, breaker={"enabled": False}) for name in NAMES],
        "failures": {"retries": {"burst": 1000}},
        "pools": pools,
    }


@pytest.fixture(scope="module")
def service(run_service, scripted, tmp_path_factory):
    rising = {"model": "fresh", "steps": [0.4, 0.6], **EVIDENCE}
    pools = [
        {"name": "by-config", "models": ["base", "spare", "fresh"], "policy": SEED, "canary": rising},
        {"name": "by-request", "models": ["base", "worse"], "policy": SEED},
        {"name": "ungraded", "models": ["base", "silent"], "policy": SEED},
        {"name": "failing", "models": ["base", "dying"], "policy": SEED},
        {"name": "aborted", "models": ["base", "unwanted"], "policy": SEED},
        {"name": "weighted", "models": ["base", "spare", "fresh"], "weights": {"base": 70, "spare": 30}},
    ]
    with run_service(config_of(scripted, pools), tmp_path_factory.mktemp("canaries")) as service:
        yield service


@pytest.fixture
def at(service, http):
    return Steered(http, service)


async def graded_until(at, pool, phase, most=MOST_CALLS):
    """Call and grade until the canary is in `phase`; what was told of each call."""
    told = []
    while (status := (await at.admin("GET", f"/pools/{pool}/canary"))["canary"])["phase"] != phase:
        assert len(told) < most, status
        for _ in range(10):
            told.append(await at.ask(pool))
            await at.grade(told[-1].decision_id, QUALITY[told[-1].model])
    return told


async def test_one_as_good_as_the_rest_goes_up_step_by_step_and_is_promoted(at, wait_until):
    """The configuration starts it; its log rows have the exact mixture, and the change log every step with its why."""
    told = await graded_until(at, "by-config", "promoted")
    history = (await at.admin("GET", "/pools/by-config/canary"))["canary"]["history"]
    assert [row["what"] for row in history] == ["canary_started", "canary_step", "canary_promoted"]
    assert [row["after"]["share"] for row in history] == [0.4, 0.6, 0.0]
    assert history[0]["reason"] == "the configuration asks for it"
    for row in history[1:]:
        assert "quality falls by less than 0.3: changed by" in row["reason"]
        assert "error rate rises by less than 0.3: changed by" in row["reason"]
    assert all(earlier["ts"] <= later["ts"] for earlier, later in pairwise(history))

    rows = [at.decision(each.decision_id) for each in told]
    canary = [row for row in rows if row["mode"] == "canary"]
    assert {row["mode"] for row in rows} <= {"canary", "bandit"}  # bandit: behind the promotion
    assert len(canary) >= len(rows) - 10
    for row in canary:
        p = dict(zip(row["arms"], row["probabilities"], strict=True))
        share = 0.4 if row["ts"] < history[1]["ts"] else 0.6
        assert p["fresh"] == pytest.approx(share)
        assert sum(p.values()) == pytest.approx(1.0)
        assert row["propensity"] == pytest.approx(p[row["chosen"]])
        assert min(p["base"], p["spare"]) >= (1 - share) * SEED["exploration_floor"] / 3 - 1e-9  # the policy's own part
    ask = "SELECT what, model, reason, \"by\" FROM changes WHERE pool = 'by-config' ORDER BY seq"
    logged = await wait_until(lambda: len(rows := at.rows(ask)) == 3 and rows)
    assert logged == [(row["what"], "fresh", row["reason"], None) for row in history]
    later = [await at.ask("by-config") for _ in range(10)]
    assert {each.mode for each in later} == {"bandit"}


async def test_one_that_is_worse_is_rolled_back_and_kept_out(at):
    started = await at.admin(
        "POST", "/pools/by-request/canary", {"model": "worse", "steps": [0.5], **EVIDENCE}, status=201
    )
    assert (started["canary"]["phase"], started["canary"]["share"]) == ("running", 0.5)
    assert started["canary"]["needs"][0] == "needs 50 more calls of worse"
    await graded_until(at, "by-request", "rolled_back")
    status = (await at.admin("GET", "/pools/by-request/canary"))["canary"]
    assert status["kept_out"]
    assert [row["by"] for row in status["history"]] == ["admin", None]
    assert status["evidence"]["quality"]["estimate"] == pytest.approx(-0.6)
    assert "quality falls by less than 0.3: changed by -0." in status["history"][-1]["reason"]
    later = [await at.ask("by-request") for _ in range(20)]
    assert {each.model for each in later} == {"base"}
    for each in later:
        assert at.decision(each.decision_id)["propensity"] == 1.0


async def test_without_grades_it_is_held_and_says_what_it_lacks(at, wait_until):
    plan = {"model": "silent", "steps": [0.5], "hold_after_s": 0.2, **EVIDENCE}
    await at.admin("POST", "/pools/ungraded/canary", plan, status=201)
    for _ in range(140):
        await at.ask("ungraded")
    await wait_until(lambda: [row for row in at.changes("canary_held") if row["pool"] == "ungraded"])
    status = (await at.admin("GET", "/pools/ungraded/canary"))["canary"]
    assert (status["phase"], status["step"], status["share"]) == ("running", 0, 0.5)
    lacking = ["needs 50 more graded calls of silent", "needs 50 more graded calls of the control"]
    assert [text for text in status["needs"] if text.startswith("needs")] == lacking
    assert status["held"].startswith("no step for 0.2 s: ")
    assert all(text in status["held"] for text in lacking)
    assert (await at.admin("GET", "/pools/ungraded"))["canary"]["held"] == status["held"]
    assert (await at.ask("ungraded")).mode == "canary"  # it goes on


async def test_one_that_fails_is_rolled_back_at_once_and_no_caller_notices(at, scripted):
    scripted.rest["dying"] = "500"
    plan = {"model": "dying", "steps": [0.5], "guardrails": {"max_error_rate": 0.1}}
    await at.admin("POST", "/pools/failing/canary", plan, status=201)
    for _ in range(60):
        assert (await at.ask("failing")).text == "from base"
    status = (await at.admin("GET", "/pools/failing/canary"))["canary"]
    assert (status["phase"], status["kept_out"]) == ("rolled_back", True)
    assert status["history"][-1]["reason"].startswith("error rate at most 10.00%: 100.00% of ")
    assert scripted.calls("dying") <= 10
    assert status["evidence"]["max_error_rate"]["calls"] <= 10


async def test_an_operator_aborts_it_and_lets_the_model_in_again(at):
    plan = {"model": "unwanted", "steps": [0.5]}
    await at.admin("POST", "/pools/aborted/canary", plan, status=201)
    again = await at.admin("POST", "/pools/aborted/canary", plan, status=409)
    assert again["error"]["code"] == "canary_running"
    talks = [{"x-pointsman-session": f"talk-{i}"} for i in range(20)]
    first = [(await at.ask("aborted", talk)).model for talk in talks]
    assert set(first) == {"base", "unwanted"}
    assert [(await at.ask("aborted", talk)).model for talk in talks] == first
    status = (await at.admin("DELETE", "/pools/aborted/canary"))["canary"]
    assert (status["phase"], status["kept_out"]) == ("aborted", True)
    assert status["history"][-1]["by"] == "admin"
    assert status["history"][-1]["reason"] == "aborted by an operator"
    assert {(await at.ask("aborted", talk)).model for talk in talks} == {"base"}  # its conversations, too
    assert {(await at.ask("aborted")).model for _ in range(20)} == {"base"}
    status = (await at.admin("DELETE", "/pools/aborted/canary"))["canary"]
    assert (status["phase"], status["kept_out"]) == ("released", False)
    told = [await at.ask("aborted") for _ in range(60)]
    assert {each.model for each in told} == {"base", "unwanted"}
    assert {each.mode for each in told} == {"bandit"}
    assert (await at.admin("DELETE", "/pools/aborted/canary", status=409))["error"]["code"] == "no_canary"


async def test_above_weights_it_is_mixed_in_and_takes_them_over(at):
    plan = {"model": "fresh", "steps": [0.4], "compare_to": "base", **EVIDENCE}
    await at.admin("POST", "/pools/weighted/canary", plan, status=201)
    first = at.decision((await at.ask("weighted")).decision_id)
    assert first["mode"] == "canary"
    p = dict(zip(first["arms"], first["probabilities"], strict=True))  # 0.2 are left for 70 : 30
    assert p == pytest.approx({"base": 0.4 + 0.2 * 0.7, "spare": 0.2 * 0.3, "fresh": 0.4})
    await graded_until(at, "weighted", "promoted")
    assert (await at.admin("GET", "/pools/weighted"))["weights"] == {"spare": 30.0, "fresh": 70.0}
    told = await at.ask("weighted")
    row = at.decision(told.decision_id)
    assert (row["mode"], row["probabilities"]) == ("weighted", pytest.approx([0.0, 0.3, 0.7]))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "fresh", "steps": [0.5, 0.4]}, "steps[1]"),
        ({"model": "fresh", "compare_to": "fresh"}, "compare_to"),
        ({"model": "silent"}, "model"),
        ({"model": "worse", "compare_to": "silent"}, "compare_to"),
        ({"model": "fresh", "guardrails": {"max_error_rate": 2}}, "guardrails.max_error_rate"),
        ({"model": "fresh", "guard": {}}, "guard"),
    ],
)
async def test_a_plan_that_cannot_be_is_refused_with_its_field(at, body, param):
    before = at.service.events("change")
    answer = await at.admin("POST", "/pools/by-request/canary", body, status=422)
    assert answer["error"]["code"] == "invalid_field"
    assert answer["error"]["param"] == param
    assert at.service.events("change") == before


async def test_it_survives_a_kill_with_all_its_evidence(run_service, scripted, http, tmp_path, wait_until):
    """Also an end: a canary of the configuration that is over is not started by the next start."""
    asked = {"model": "fresh", "steps": [0.5], **EVIDENCE}
    pools = [
        {"name": "running", "models": ["base", "kept"], "policy": SEED},
        {"name": "over", "models": ["base", "fresh"], "policy": SEED, "canary": asked},
    ]
    config = config_of(scripted, pools)
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        plan = {"model": "kept", "steps": [0.4, 0.6], **EVIDENCE}
        await at.admin("POST", "/pools/running/canary", plan, status=201)
        while (await at.admin("GET", "/pools/running/canary"))["canary"]["step"] == 0:
            told = await at.ask("running")
            await at.grade(told.decision_id, QUALITY[told.model])
        for _ in range(15):
            last = await at.ask("running")
        await at.admin("DELETE", "/pools/over/canary")
        before = [await at.admin("GET", f"/pools/{pool}/canary") for pool in ("running", "over")]
        await wait_until(lambda: service.events("outcome", last.decision_id))
        service.kill()
    for ending in ("kill", "stop", "kill"):  # from the log, then from a snapshot
        with run_service(config, tmp_path) as service:
            at = Steered(http, service)
            assert [await at.admin("GET", f"/pools/{pool}/canary") for pool in ("running", "over")] == before
            getattr(service, ending)()
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        row = at.decision((await at.ask("running")).decision_id)
        assert (row["mode"], row["probabilities"]) == ("canary", pytest.approx([0.4, 0.6]))
        assert (await at.ask("over")).model == "base"
        await graded_until(at, "running", "promoted")
