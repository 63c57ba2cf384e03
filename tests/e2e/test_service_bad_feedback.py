"""Bad feedback: each has its status, says where it is wrong, and leaves nothing recorded."""

from __future__ import annotations

import time

import orjson
import pytest

CHAT_PATH = "/v1/chat/completions"
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("bad-feedback")) as service:
        yield service


@pytest.fixture
def decide(service, http):
    """Make a decision to post things for; durable, and with no outcome of its own."""

    async def decide():
        async with http.post(f"{service.url}/v1/route", json=CHAT) as response:
            return (await response.json())["decision_id"]

    return decide


@pytest.fixture
def refused(service, expect_refusal):
    """Post what must be refused: (status, error)."""

    async def refused(path, body, headers=None, method="POST"):
        return await expect_refusal(service, method, path, body, headers)

    return refused


GOOD = {"decision_id": "pm-x", "quality": 1.0}
BAD_REWARDS = [
    *(({"decision_id": "pm-x", "quality": value}, "quality") for value in (1.0001, -0.1, True, "0.5", [], {}, 1e30)),
    ({"quality": 1.0}, "decision_id"),
    *(({"decision_id": value, "quality": 1.0}, "decision_id") for value in ("", 7, None, "x" * 65, ["pm-x"])),
    *((GOOD | {"metrics": value}, "metrics") for value in ([], "x", 7, {f"m{i}": 1.0 for i in range(51)})),
    *((GOOD | {"metrics": {"a": value}}, "metrics.a") for value in ("1", True, None, [1])),
    (GOOD | {"metrics": {"": 1.0}}, "metrics."),
    *((GOOD | {"revise": value}, "revise") for value in ("yes", 1, None)),
    (GOOD | {"qualty": 1.0}, "qualty"),
    ({"decision_id": "pm-x"}, ""),
    ({"decision_id": "pm-x", "quality": None, "metrics": {}}, ""),
    (7, ""),
    (None, ""),
    ("pm-x", ""),
    ([], ""),
    ([GOOD] * 1001, ""),
    ([GOOD, 7], "[1]"),
    ([GOOD, GOOD | {"quality": 2}], "[1].quality"),
    ([GOOD | {"metrics": {"a": "x"}}, GOOD], "[0].metrics.a"),
]


@pytest.mark.parametrize(("body", "param"), BAD_REWARDS)
async def test_a_reward_that_is_wrong_says_where(refused, body, param):
    """All problems are named, and one bad item refuses a whole batch."""
    status, error = await refused("/reward", body if isinstance(body, dict) else orjson.dumps(body))
    assert (status, error["code"], error["type"]) == (422, "invalid_field", "invalid_request_error")
    assert (error["param"] or "", error["problems"][0]["param"]) == (param, param)


async def test_all_problems_of_a_batch_are_named_up_to_a_bound(refused):
    _, error = await refused("/reward", [GOOD | {"quality": 2}, GOOD | {"revise": 1, "x": 1}])
    assert [problem["param"] for problem in error["problems"]] == ["[0].quality", "[1].revise", "[1].x"]
    _, error = await refused("/reward", [{}] * 500)
    assert len(error["problems"]) == 100


UNKNOWN = [
    "x",
    "pm-",
    "pm-" + "0" * 11 + "_" + "0" * 20,
    "pm--" + "0" * 31,
    "pm-" + "\uff10" * 32,
    "pm-" + "F" * 32,
    "pm-" + "f" * 32,
    "PM-" + "0" * 32,
    "\x00",
    "'; DROP TABLE events; --",
]


@pytest.mark.parametrize("decision_id", UNKNOWN)
async def test_an_id_that_nobody_gave(refused, decision_id):
    """Ours are lower-case hexadecimal digits; what merely looks like a number is none of ours."""
    for path, more in (("/reward", {"quality": 1.0}), ("/outcome", {})):
        status, error = await refused(path, {"decision_id": decision_id} | more)
        assert (status, error["param"], error["code"]) == (404, "decision_id", "decision_not_found")


async def test_an_id_of_the_right_form_and_time_that_nobody_gave(refused):
    decision_id = f"pm-{int(time.time() * 1000):012x}{'0' * 20}"
    assert (await refused("/reward", {"decision_id": decision_id, "quality": 1.0}))[0] == 404


async def test_conflicting_feedback_is_refused_and_says_what_is_recorded(refused, decide, service, http):
    decision_id = await decide()
    await _post(http, service, {"decision_id": decision_id, "quality": 0.25, "metrics": {"a": 1.0}})
    for more, recorded in (
        ({"quality": 0.5}, {"quality": 0.25}),
        ({"metrics": {"a": 2.0, "b": 1.0}}, {"a": 1.0}),
        ({"quality": 0.5, "metrics": {"a": 2.0}}, {"quality": 0.25, "a": 1.0}),
    ):
        status, error = await refused("/reward", {"decision_id": decision_id} | more)
        assert (status, error["code"], error["recorded"]) == (409, "conflicting_record", recorded)


async def _post(http, service, body, path="/reward"):
    async with http.post(service.url + path, json=body) as response:
        assert response.status == 200
        return (await response.json())["status"]


# --- /outcome

BAD_OUTCOMES = [
    ({"status": "great"}, "status"),
    *(({"latency_s": value}, "latency_s") for value in (-1, "1", True, 1e8)),
    *(({"time_to_first_token_s": value}, "time_to_first_token_s") for value in (-1, "1")),
    *(({"input_tokens": value}, "input_tokens") for value in (-1, 1.5, True, "7", 10**10)),
    *(({"output_tokens": value}, "output_tokens") for value in (-1, 1.5)),
    *(({"cost_usd": value}, "cost_usd") for value in (-1, "1", 1e10)),
    *(({"http_status": value}, "http_status") for value in (99, 600, "200")),
    *(({"error": value}, "error") for value in ("x" * 201, 7)),
    ({"decision_id": None}, "decision_id"),
    ({"model": "good"}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_OUTCOMES)
async def test_an_outcome_that_is_wrong_says_where(refused, fields, param):
    status, error = await refused("/outcome", {"decision_id": "pm-x"} | fields)
    assert (status, error["param"], error["code"]) == (422, param, "invalid_field")


async def test_an_outcome_is_one_object(refused):
    for body in ([], [{"decision_id": "pm-x"}], 7, None):
        assert (await refused("/outcome", orjson.dumps(body)))[0] == 422


async def test_an_outcome_may_come_once(refused, decide, service, http):
    """The same again is a duplicate, another is a conflict."""
    decision_id = await decide()
    outcome = {"decision_id": decision_id, "latency_s": 0.5, "input_tokens": 10, "output_tokens": 20}
    assert await _post(http, service, outcome, "/outcome") == "recorded"
    assert await _post(http, service, outcome, "/outcome") == "duplicate"
    status, error = await refused("/outcome", outcome | {"output_tokens": 21})
    assert (status, error["code"], error["recorded"]) == (409, "conflicting_record", {"status": "ok"})
    (event,) = service.events("outcome", decision_id)
    assert event["payload"]["cost_usd"] == pytest.approx((10 * 1.0 + 20 * 10.0) / 1e6)


async def test_a_call_the_service_makes_has_no_outcome_but_its_own(refused, service, http):
    async with http.post(service.url + CHAT_PATH, json=CHAT) as response:
        decision_id = (await response.json())["id"]
    await service.outcome(decision_id)
    status, error = await refused("/outcome", {"decision_id": decision_id, "latency_s": 0.5})
    assert (status, error["code"]) == (409, "conflicting_record")


async def test_after_all_this_nobody_was_surprised(service):
    assert service.stop() == 0
    assert "Traceback" not in service.log
    assert "unexpected" not in service.log
