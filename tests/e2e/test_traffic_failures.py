"""Calls that fail at one endpoint and are answered all the same: tried again, elsewhere, or said to be lost."""

from __future__ import annotations

import socket

import pytest
from scripted_upstream import Scripted

QUICK = {"timeout_s": 0.4}
RETRIES = {"backoff_s": 0.01, "burst": 1000}
FAILURES = {"retries": RETRIES}
SOLE = (
    "s408",
    "s429",
    "s500",
    "s502",
    "s503",
    "s504",
    "reset",
    "malformed",
    "hang",
    "busy",
    "very-busy",
    "s400",
    "s422",
)
CHAIN = ("first", "second", "third")


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def service(run_service, scripted, tmp_path_factory):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    quiet = {"breaker": {"enabled": False}}
    models = [scripted.model(name, **QUICK, **quiet) for name in (*SOLE, *CHAIN, "down", "ruin", "cut-off")]
    models += [scripted.model(name, timeout_s=30.0, **quiet) for name in ("late", "later")]
    twofold = scripted.model("twofold", **quiet)
    del twofold["endpoint"]
    live = {"url": f"{scripted.url}/twofold/v1", "name": "live"}
    models += [twofold | {"endpoints": [{"url": closed, "name": "dead", "weight": 1000}, live], "balance": "weights"}]
    pools = [{"name": f"sole-{name}", "models": [name], "failures": FAILURES} for name in SOLE]
    always = {"weights": {"first": 1}, "models": list(CHAIN)}
    pools += [
        {"name": "by-utility", **always, "failures": FAILURES},
        {"name": "stated", **always, "failures": FAILURES | {"fallbacks": ["third"]}},
        {"name": "errors-only", **always, "failures": FAILURES | {"on": ["errors"]}},
        {"name": "no-fallback", **always, "failures": FAILURES | {"fallbacks": []}},
        {"name": "ruins", "models": ["down", "ruin"], "failures": FAILURES},
        {"name": "hurried", "models": ["late", "later"], "failures": FAILURES | {"deadline_s": 0.6}},
        {"name": "balanced", "models": ["twofold"], "failures": FAILURES},
    ]
    with run_service({"models": models, "pools": pools}, tmp_path_factory.mktemp("failures")) as service:
        yield service


@pytest.fixture
def ask(service, http):
    async def ask(pool, headers=None, **more):
        body = {"model": pool, "messages": [{"role": "user", "content": "hello"}], **more}
        async with http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers or {}) as response:
            return response.status, response.headers, await response.json()

    return ask


@pytest.fixture
def attempts(service, wait_until):
    """Model, status and HTTP status of a decision's attempts, in their order."""

    async def attempts(decision_id, count):
        await wait_until(lambda: len(service.events("outcome", decision_id)) >= count)
        rows = [event["payload"] for event in service.events("outcome", decision_id)]
        assert [row["attempt"] for row in rows] == list(range(len(rows)))
        return [(row["model"], row["status"], row["http_status"]) for row in rows]

    return attempts


@pytest.mark.parametrize(
    ("name", "what", "status", "http_status"),
    [(f"s{status}", str(status), "error", status) for status in (408, 429, 500, 502, 503, 504)]
    + [("reset", "reset", "error", None), ("malformed", "malformed", "error", 200), ("hang", "hang", "timeout", None)],
)
async def test_what_may_pass_is_tried_again(  # noqa: PLR0917 - a row's columns
    ask, scripted, attempts, name, what, status, http_status
):
    scripted.plans[name].append(what)
    told, headers, body = await ask(f"sole-{name}")
    assert (told, body["choices"][0]["message"]["content"]) == (200, f"from {name}")
    assert headers["x-pointsman-attempts"] == "2"
    assert await attempts(body["id"], 2) == [(name, status, http_status), (name, "ok", 200)]


async def test_an_attempt_that_failed_is_no_overhead_of_ours(ask, scripted):
    """The one that was waited for in vain took 0.4 s at least."""
    scripted.plans["hang"].append("hang")
    _, headers, _ = await ask("sole-hang")
    assert headers["x-pointsman-attempts"] == "2"
    assert float(headers["x-pointsman-overhead-ms"]) < 1000 * QUICK["timeout_s"]


@pytest.mark.parametrize(("name", "what"), [("s400", "bad-request"), ("s422", "unprocessable")])
async def test_a_callers_own_mistake_is_not_tried_again(ask, scripted, name, what):
    scripted.plans[name].append(what)
    told, _, body = await ask(f"sole-{name}")
    assert (told, body["error"]["code"]) == (int(name[1:]), "bad")
    assert scripted.calls(name) == 1


async def test_retry_after_is_waited_for(ask, scripted):
    scripted.plans["busy"].append("busy")
    told, _, _ = await ask("sole-busy")
    assert told == 200
    first, second = scripted.arrived["busy"]
    assert second - first >= 0.9  # it asked for one second


async def test_a_longer_retry_after_than_is_worth_waiting_ends_the_call(ask, scripted):
    scripted.plans["very-busy"].append("very-busy")
    told, headers, _ = await ask("sole-very-busy")
    assert (told, scripted.calls("very-busy")) in {(429, 1), (503, 1)}
    assert int(headers["Retry-After"]) >= 15


@pytest.mark.parametrize(
    ("pool", "what", "answered_by"),
    [
        ("by-utility", "500", {"second", "third"}),
        ("by-utility", "too-long", {"second", "third"}),
        ("by-utility", "filtered", {"second", "third"}),
        ("by-utility", "too-long-flat", {"second", "third"}),
        ("by-utility", "error-200", {"second", "third"}),
        ("stated", "500", {"third"}),
        ("stated", "too-long", {"third"}),
    ],
)
async def test_another_model_answers_at_once(  # noqa: PLR0917 - a row's columns
    ask, scripted, attempts, pool, what, answered_by
):
    scripted.plans["first"].append(what)
    told, headers, body = await ask(pool)
    assert (told, headers["x-pointsman-attempts"]) == (200, "2")
    assert {body["model"]} <= answered_by
    assert headers["x-pointsman-model"] == body["model"]
    (failed, *_), (model, status, _) = await attempts(body["id"], 2)
    assert (failed, model, status) == ("first", body["model"], "ok")


@pytest.mark.parametrize(("pool", "what"), [("errors-only", "too-long"), ("errors-only", "bad-request")])
async def test_a_refusal_goes_to_the_caller_where_nothing_else_was_asked_for(ask, scripted, pool, what):
    scripted.plans["first"].append(what)
    told, headers, _ = await ask(pool)
    assert (told, headers["x-pointsman-attempts"]) == (400, "1")


async def test_without_fallbacks_the_same_model_is_tried_again(ask, scripted):
    scripted.plans["first"].append("500")
    told, headers, body = await ask("no-fallback")
    assert (told, body["model"], headers["x-pointsman-attempts"]) == (200, "first", "2")


async def test_where_all_is_down_the_caller_hears_what_was_tried(ask, scripted):
    scripted.rest |= {"down": "500", "ruin": "reset"}
    told, headers, body = await ask("ruins")
    assert (told, body["error"]["code"]) == (503, "no_model_available")
    assert int(headers["Retry-After"]) >= 1
    assert {entry["model"] for entry in body["error"]["tried"]} == {"down", "ruin"}
    assert "127.0.0.1" not in str(body)


async def test_all_attempts_share_one_deadline(ask, scripted):
    """Each endpoint alone would have half a minute."""
    scripted.rest |= {"late": "hang", "later": "hang"}
    told, _, body = await ask("hurried")
    assert (told, body["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_caller_may_shorten_it(ask, scripted):
    scripted.rest["cut-off"] = "hang"
    told, _, body = await ask("late", {"x-pointsman-timeout-s": "0.2"})
    assert (told, body["error"]["code"]) == (504, "deadline_exceeded")


async def test_of_two_endpoints_the_live_one_takes_over_at_once(ask, attempts, service, wait_until):
    """The dead one is a thousand times as likely to be asked first."""
    told, headers, body = await ask("balanced")
    assert (told, headers["x-pointsman-attempts"]) == (200, "2")
    await wait_until(lambda: len(service.events("outcome", body["id"])) == 2)
    rows = [event["payload"] for event in service.events("outcome", body["id"])]
    assert [(row["model"], row["endpoint"], row["status"]) for row in rows] == [
        ("twofold", "dead", "error"),
        ("twofold", "live", "ok"),
    ]
