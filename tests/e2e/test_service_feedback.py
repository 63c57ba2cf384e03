"""What comes after a decision: rewards and outcomes, alone and in batches, early, late, twice and in contradiction."""

from __future__ import annotations

import asyncio
import time

import pytest

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    objective = {"quality": 2.0, "cost": 1.0, "latency": 1.0, "cost_reference_usd": 0.001, "latency_reference_s": 2.0}
    config = {
        "models": [trial.model("good"), trial.model("fair"), trial.model("renamed", upstream_model="good", price=None)],
        "pools": [
            {"name": "auto", "models": ["good", "fair"], "objective": objective},
            {"name": "graded", "models": ["good", "fair"], "quality_metrics": {"correct": 3.0, "helpful": 1.0}},
            {"name": "costless", "models": ["renamed", "good"], "policy": {"kind": "fixed", "model": "renamed"}},
        ],
    }
    with run_service(config, tmp_path_factory.mktemp("feedback")) as service:
        yield service


@pytest.fixture
def post(service, http):
    """Post a JSON body: (status, answer)."""

    async def post(path, body):
        async with http.post(service.url + path, json=body) as response:
            return response.status, await response.json()

    return post


@pytest.fixture
def decide(post):
    async def decide(pool="auto"):
        status, answer = await post("/v1/route", CHAT | {"model": pool})
        assert status == 200
        return answer["decision_id"]

    return decide


async def test_a_route_says_everything_a_caller_needs_to_make_the_call_itself(service, http, post):
    async with http.post(service.url + "/v1/route", json=CHAT | {"model": "costless"}) as response:
        answer, headers = await response.json(), response.headers
    assert (answer["model"], answer["upstream_model"], answer["mode"]) == ("renamed", "good", "bandit")
    assert (answer["propensity"], answer["probabilities"]) == (1.0, {"renamed": 1.0, "good": 0.0})
    assert answer["limits_met"] is True
    assert answer["expires_at"] == pytest.approx(time.time() + 7 * 86_400, abs=60)
    assert headers["x-pointsman-decision-id"] == answer["decision_id"]
    assert headers["x-pointsman-model"] == "renamed"
    (decision,) = service.events("decision", answer["decision_id"])
    assert decision["payload"]["propensity"] == 1.0


@pytest.mark.parametrize("fields", [{"prompt": "x"}, {"input": ["x"]}, {}, {"messages": CHAT["messages"]}])
async def test_a_route_may_be_asked_for_any_kind_of_call(post, fields):
    """Or for none that is known: any endpoint can be routed to."""
    status, answer = await post("/v1/route", {"model": "auto"} | fields)
    assert (status, sum(answer["probabilities"].values())) == (200, pytest.approx(1.0))


async def test_a_call_the_caller_made_itself_is_learned_from_like_any_other(service, post, decide):
    decision_id = await decide()
    outcome = {"latency_s": 0.5, "time_to_first_token_s": 0.1, "input_tokens": 100, "output_tokens": 40}
    assert await post("/outcome", {"decision_id": decision_id} | outcome) == (
        200,
        {"decision_id": decision_id, "status": "recorded"},
    )
    (recorded,) = service.events("outcome", decision_id)
    cost_usd = (100 * 1.0 + 40 * 10.0) / 1e6
    expected = outcome | {"status": "ok", "cost_usd": pytest.approx(cost_usd), "tokens_estimated": False}
    assert {name: recorded["payload"][name] for name in expected} == expected
    assert (await post("/reward", {"decision_id": decision_id, "quality": 0.5}))[1]["status"] == "recorded"
    (feedback,) = service.events("feedback", decision_id)
    # weights 2 : 1 : 1, so r = (2 q + (1 - c/c_ref) + (1 - l/l_ref)) / 4
    expected_reward = (2 * 0.5 + (1 - cost_usd / 0.001) + (1 - 0.5 / 2.0)) / 4
    assert feedback["payload"]["reward"] == pytest.approx(expected_reward)


async def test_a_callers_own_figure_of_cost_counts_and_an_unknown_one_stays_unknown(service, post, decide):
    given, unknown = await decide(), await decide("costless")
    await post("/outcome", {"decision_id": given, "input_tokens": 1, "output_tokens": 1, "cost_usd": 0.25})
    await post("/outcome", {"decision_id": unknown, "input_tokens": 1, "output_tokens": 1})
    assert [service.events("outcome", i)[0]["payload"]["cost_usd"] for i in (given, unknown)] == [0.25, None]


async def test_recorded_then_duplicate_then_revised(service, post, decide):
    decision_id = await decide()
    item = {"decision_id": decision_id, "quality": 0.25}
    said = [(await post("/reward", body))[1]["status"] for body in (item, item, item | {"revise": True})]
    assert said == ["recorded", "duplicate", "duplicate"]
    said = (await post("/reward", {"decision_id": decision_id, "quality": 1, "revise": True}))[1]["status"]
    assert said == "revised"
    first, second = (event["payload"] for event in service.events("feedback", decision_id))
    assert (first["quality"], first["revision"], first["revises"]) == (0.25, 0, None)
    assert (second["quality"], second["revision"], second["revises"]) == (1.0, 1, 0.25)
    assert (await post("/reward", item))[0] == 409  # the revised value is the one in force


async def test_zero_and_one_are_qualities(post, decide):
    for quality in (0, 1, 0.0, 1.0, -0.0):
        assert (await post("/reward", {"decision_id": await decide(), "quality": quality}))[0] == 200


async def test_metrics_no_formula_reads_are_only_logged(service, post, decide):
    """And may come one after the other."""
    decision_id = await decide()
    for metrics in ({"stars": 4.0}, {"clicks": 2}, {"stars": 4.0}):
        assert (await post("/reward", {"decision_id": decision_id, "metrics": metrics}))[0] == 200
    logged = [event["payload"] for event in service.events("feedback", decision_id)]
    assert [entry["quality"] for entry in logged] == [None, None]
    assert logged[-1]["metrics"] == {"stars": 4.0, "clicks": 2.0}


async def test_a_quality_may_join_metrics_and_metrics_a_quality(service, post, decide):
    decision_id = await decide()
    said = [
        (await post("/reward", {"decision_id": decision_id} | more))[1]["status"]
        for more in ({"metrics": {"stars": 4.0}}, {"quality": 0.75}, {"metrics": {"clicks": 1.0}})
    ]
    assert said == ["recorded", "recorded", "recorded"]
    last = service.events("feedback", decision_id)[-1]["payload"]
    assert (last["quality"], last["metrics"]) == (0.75, {"stars": 4.0, "clicks": 1.0})


async def test_metrics_become_a_quality_once_all_are_there(service, post, decide):
    """The weighted mean: (3 · 1 + 1 · 0.5) / 4; others are logged beside."""
    decision_id = await decide("graded")
    for metrics in ({"correct": 1.0, "stars": 5.0}, {"helpful": 0.5}):
        await post("/reward", {"decision_id": decision_id, "metrics": metrics})
    assert [e["payload"]["quality"] for e in service.events("feedback", decision_id)] == [None, 0.875]


async def test_a_metric_that_is_revised_changes_the_quality_made_of_it(service, post, decide):
    decision_id = await decide("graded")
    item = {"decision_id": decision_id, "metrics": {"correct": 1.0, "helpful": 1.0}}
    await post("/reward", item)
    changed = item | {"metrics": {"correct": 0.0}}
    assert (await post("/reward", changed))[0] == 409
    assert (await post("/reward", changed | {"revise": True}))[1]["status"] == "revised"
    last = service.events("feedback", decision_id)[-1]["payload"]
    assert (last["quality"], last["revises"], last["metrics"]) == (0.25, 1.0, {"correct": 0.0, "helpful": 1.0})


async def test_metrics_beyond_their_range_make_a_quality_at_its_end(service, post, decide):
    decision_id = await decide("graded")
    await post("/reward", {"decision_id": decision_id, "metrics": {"correct": 50.0, "helpful": 5.0}})
    assert service.events("feedback", decision_id)[-1]["payload"]["quality"] == 1.0


async def test_a_quality_somebody_gave_is_not_replaced_by_metrics_unasked(service, post, decide):
    for more, quality in (({}, 0.25), ({"revise": True}, 0.25)):
        decision_id = await decide("graded")
        await post("/reward", {"decision_id": decision_id, "quality": 0.25})
        item = {"decision_id": decision_id, "metrics": {"correct": 1.0, "helpful": 1.0}}
        assert (await post("/reward", item | more))[1]["status"] == "recorded"
        assert service.events("feedback", decision_id)[-1]["payload"]["quality"] == quality
        both = {"decision_id": decision_id, "quality": 1.0, "revise": True}
        assert (await post("/reward", both))[1]["status"] == "revised"


@pytest.mark.parametrize("size", [1, 1000])
async def test_a_batch_is_answered_item_by_item(service, post, decide, size):
    ids = [await decide() for _ in range(min(size, 50))]
    items = [{"decision_id": ids[i % len(ids)], "quality": 0.5} for i in range(size)]
    status, answer = await post("/reward", items)
    assert (status, answer["accepted"], answer["refused"]) == (200, size, 0)
    expected = ["recorded"] * len(ids) + ["duplicate"] * (size - len(ids))
    assert [result["status"] for result in answer["results"]] == expected
    assert [result["decision_id"] for result in answer["results"]] == [item["decision_id"] for item in items]
    assert all(len(service.events("feedback", decision_id)) == 1 for decision_id in ids)


async def test_what_is_wrong_with_one_item_is_no_matter_for_the_others(service, post, decide):
    first, second = await decide(), await decide()
    old = f"pm-{int((time.time() - 8 * 86_400) * 1000):012x}{'0' * 20}"
    items = [
        {"decision_id": first, "quality": 0.5},
        {"decision_id": "pm-unknown", "quality": 0.5},
        {"decision_id": first, "quality": 0.75},
        {"decision_id": old, "quality": 0.5},
        {"decision_id": second, "quality": 0.5},
    ]
    status, answer = await post("/reward", items)
    assert (status, answer["accepted"], answer["refused"]) == (200, 2, 3)
    said = [(r["status"], r.get("http_status"), r.get("error", {}).get("code")) for r in answer["results"]]
    assert said == [
        ("recorded", None, None),
        ("refused", 404, "decision_not_found"),
        ("refused", 409, "conflicting_record"),
        ("refused", 410, "decision_expired"),
        ("recorded", None, None),
    ]
    assert [len(service.events("feedback", decision_id)) for decision_id in (first, second)] == [1, 1]


async def test_the_same_feedback_at_the_same_time_is_recorded_once(service, post, decide):
    decision_id = await decide()
    item = {"decision_id": decision_id, "quality": 0.5}
    answers = await asyncio.gather(*(post("/reward", item) for _ in range(20)))
    assert sorted(answer["status"] for _, answer in answers) == ["duplicate"] * 19 + ["recorded"]
    assert len(service.events("feedback", decision_id)) == 1


async def test_the_same_outcome_at_the_same_time_is_recorded_once(service, post, decide):
    decision_id = await decide()
    item = {"decision_id": decision_id, "latency_s": 0.5}
    answers = await asyncio.gather(*(post("/outcome", item) for _ in range(20)))
    assert sorted(answer["status"] for _, answer in answers) == ["duplicate"] * 19 + ["recorded"]
    assert len(service.events("outcome", decision_id)) == 1


async def test_feedback_for_a_pinned_call_is_recorded(service, post, http):
    async with http.post(service.url + "/v1/chat/completions", json=CHAT | {"model": "good"}) as response:
        decision_id = (await response.json())["id"]
        assert response.headers["x-pointsman-mode"] == "pinned"
    (decision,) = service.events("decision", decision_id)
    said = [decision["payload"][name] for name in ("mode", "propensity", "arms", "probabilities", "chosen", "pool")]
    assert said == ["pinned", 1.0, ["good"], [1.0], "good", "good"]
    assert (await post("/reward", {"decision_id": decision_id, "quality": 0.5}))[1]["status"] == "recorded"


async def test_feedback_that_comes_after_the_horizon_is_too_late(run_service, trial, http, wait_until, tmp_path):
    """And so is an outcome; nothing of either is recorded."""
    config = {
        "server": {"feedback_horizon_s": 1},
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
    }
    with run_service(config, tmp_path) as service:
        async with http.post(service.url + "/v1/route", json=CHAT) as response:
            decision = await response.json()
        await wait_until(lambda: time.time() > decision["expires_at"] + 0.01)
        before = service.events()
        for path, more in (("/reward", {"quality": 0.5}), ("/outcome", {"latency_s": 0.5})):
            async with http.post(service.url + path, json={"decision_id": decision["decision_id"]} | more) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"], error["param"]) == (410, "decision_expired", "decision_id")
        assert service.events() == before
