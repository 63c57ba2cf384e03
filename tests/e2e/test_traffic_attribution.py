"""A log with one of each kind of call says what a replay may use, and a replay uses only that."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import duckdb
import pytest

MESSAGES = [{"role": "user", "content": "hello"}]
KEY, ADMIN = "caller-of-the-tests", "operator-of-the-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
SEED = {"exploration_floor": 0.3, "seed": 3}
HALVES = [{"name": "old", "share": 0.5, "model": "good"}, {"name": "new", "share": 0.5, "model": "fair"}]
EXPERIMENT = {"name": "ab", "unit": "session", "variants": HALVES}


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    pair = ["good", "fair"]
    config = {
        "log": {"flush_interval_s": 0.1},
        "auth": {"admin_key": ADMIN, "keys": [{"key": KEY, "user": "ada", "team": "search"}]},
        "models": [trial.model(name) for name in ("good", "fair", "f500")],
        "pools": [
            {
                "name": "auto",
                "models": pair,
                "policy": SEED,
                "shadow": {"model": "fair", "share": 1, "max_usd_per_day": 9},
            },
            {"name": "fixed", "models": pair, "weights": {"good": 70, "fair": 30}},
            {"name": "trial", "models": pair, "policy": SEED},
            {"name": "failing", "models": ["f500", "good"], "weights": {"f500": 1}},
            {"name": "tested", "models": pair, "policy": SEED, "experiments": [EXPERIMENT]},
            {"name": "switched", "models": pair, "policy": SEED},
        ],
    }
    with run_service(config, tmp_path_factory.mktemp("attribution")) as service:
        yield service


@pytest.fixture
def ask(service, http):
    async def ask(model, **headers):
        body = {"model": model, "messages": MESSAGES, "max_tokens": 50}
        url = f"{service.url}/v1/chat/completions"
        async with http.post(url, json=body, headers=HEADERS | headers) as response:
            assert response.status == 200, await response.text()
            return response.headers

    return ask


@pytest.fixture
def admin(service, http):
    async def admin(method, path, body=None):
        headers = {"Authorization": f"Bearer {ADMIN}"}
        async with http.request(method, service.url + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    return admin


@pytest.fixture
def replayed(service, tmp_path):
    """Which decisions of a pool a replay judges."""

    async def replayed(pool):
        out = tmp_path / f"{pool}.json"
        command = [sys.executable, "-m", "serving", "replay", str(service.data_dir), "--pool", pool, "--json", str(out)]
        command += ["--policy", "uniform", "--min-effective-samples", "5"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())["selection"]

    return replayed


def rows(service, query):
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        return log.execute(query).fetchall()


async def test_each_kind_of_call_is_logged_as_what_it_was(service, ask, admin, replayed):
    for _ in range(30):
        assert (await ask("auto"))["x-pointsman-mode"] == "bandit"
    assert (await ask("good"))["x-pointsman-mode"] == "pinned"
    session = {"x-pointsman-session": "s-1"}
    first = await ask("fixed", **session)
    for _ in range(5):
        later = await ask("fixed", **session)
        assert (later["x-pointsman-mode"], later["x-pointsman-model"]) == ("sticky", first["x-pointsman-model"])
    for _ in range(30):
        assert (await ask("fixed"))["x-pointsman-mode"] == "weighted"
    failed = await ask("failing")
    assert (failed["x-pointsman-model"], failed["x-pointsman-attempts"]) == ("good", "2")
    canary = {"model": "fair", "steps": [0.2, 0.5], "compare_to": "good"}
    assert (await admin("POST", "/admin/pools/trial/canary", canary))[0] == 201
    for _ in range(30):
        assert (await ask("trial"))["x-pointsman-mode"] == "canary"
    status, body = await admin("GET", "/admin/usage?by=model,mode")
    assert status == 200, body
    for name in ("attempts", "output_tokens", "cost_usd"):  # a call of two models is one of each
        assert sum(row[name] for row in body["rows"]) == pytest.approx(body["total"][name], abs=1e-9)
    (logged,) = rows(service, "SELECT count(*), sum(cost_usd) FROM outcomes")
    assert (body["total"]["attempts"], body["total"]["cost_usd"]) == (logged[0], pytest.approx(logged[1], abs=1e-9))

    modes = dict(rows(service, "SELECT mode, count(*) FROM decisions GROUP BY mode"))
    shadows = modes.pop("shadow")
    assert modes == {"bandit": 30, "pinned": 1, "sticky": 5, "weighted": 32, "canary": 30}
    assert 1 <= shadows <= 30  # those that found a place
    assert rows(service, "SELECT DISTINCT propensity FROM decisions WHERE mode IN ('pinned', 'sticky')") == [(1.0,)]
    weighted = "SELECT DISTINCT arms, probabilities FROM decisions WHERE pool = 'fixed' AND mode = 'weighted'"
    assert rows(service, weighted) == [(["good", "fair"], pytest.approx([0.7, 0.3]))]
    mixture = "SELECT probabilities FROM decisions WHERE mode = 'canary'"
    for ((good, fair),) in rows(service, mixture):  # the policy may choose good alone; 0.2 each are mixed in
        assert (good, fair) == (pytest.approx(0.8), pytest.approx(0.2))
    drawn = (
        "SELECT count(*) FROM decisions WHERE mode <> 'shadow'"
        " AND abs(propensity - probabilities[list_position(arms, chosen)]) > 1e-9"
    )
    assert rows(service, drawn) == [(0,)]
    origins = "SELECT count(*) FROM decisions s JOIN decisions d ON s.origin = d.decision_id WHERE s.mode = 'shadow'"
    assert rows(service, origins) == [(shadows,)]
    attempts = "SELECT attempt, o.model, status FROM outcomes o JOIN decisions USING (decision_id)"
    attempts += " WHERE pool = 'failing' ORDER BY attempt"
    assert rows(service, attempts) == [(0, "f500", "error"), (1, "good", "ok")]
    changes = "SELECT subject, what, pool, model, \"by\" FROM changes WHERE what = 'canary_started'"
    assert rows(service, changes) == [("traffic", "canary_started", "trial", "fair", "admin")]

    for pool, used, left in (
        ("auto", 30, {"pinned": 1, "shadow": shadows}),
        ("fixed", 31, {"pinned": 1, "sticky": 5}),
        ("trial", 30, {"pinned": 1}),
    ):
        selection = await replayed(pool)
        assert selection["decisions"] == used
        assert selection["left_out_by_mode"] == left


async def test_experiments_and_calls_without_a_look_at_the_request_are_known_as_such(ask, admin, replayed, service):
    """Whoever is in an experiment keeps its variant; with learning bypassed, or the pool out, there is no context."""
    for number in range(20):
        assert (await ask("tested"))["x-pointsman-mode"] == "bandit"
        assert (await ask("tested", **{"x-pointsman-session": f"unit-{number}"}))["x-pointsman-mode"] == "weighted"
        assert (await ask("tested", **{"x-pointsman-session": f"unit-{number}"}))["x-pointsman-mode"] == "sticky"
    for _ in range(20):
        assert (await ask("switched"))["x-pointsman-mode"] == "bandit"
    await admin("PATCH", "/admin/pools/switched", {"learning": "bypass"})
    for _ in range(7):
        assert (await ask("switched"))["x-pointsman-mode"] == "weighted"
    await admin("GET", "/admin/usage")  # which waits for the log
    seen = "SELECT mode, experiment IN ('ab/old', 'ab/new'), probabilities, count(*) FROM decisions"
    seen += " WHERE pool = 'tested' AND experiment IS NOT NULL GROUP BY ALL ORDER BY mode"
    found = rows(service, seen)
    assert ("weighted", True, [0.5, 0.5], 20) in found
    assert sum(count for mode, *_, count in found if mode == "sticky") == 20
    unseen = "SELECT mode, propensity, len(context), count(*) FROM decisions"
    unseen += " WHERE pool = 'switched' AND context_version = 'none' GROUP BY ALL"
    assert rows(service, unseen) == [("weighted", 1.0, 0, 7)]
    for pool, left in (("tested", {"sticky": 20, "experiment": 20}), ("switched", {"bypass": 7})):
        selection = await replayed(pool)
        assert selection["decisions"] == 20
        assert {mode: count for mode, count in selection["left_out_by_mode"].items() if mode != "pinned"} == left


async def test_an_operator_moves_traffic_at_once_and_for_good(service, ask, admin):
    status, body = await admin("PATCH", "/admin/pools/fixed", {"weights": {"fair": 1}})
    assert (status, body["weights"]) == (200, {"fair": 1})
    assert {(await ask("fixed"))["x-pointsman-model"] for _ in range(10)} == {"fair"}
    assert (await admin("PATCH", "/admin/pools/fixed", {"weights": {"fare": 1}}))[0] == 422
    assert (await admin("PATCH", "/admin/models/fair", {"disabled": True}))[0] == 200
    assert {(await ask("fixed"))["x-pointsman-model"] for _ in range(5)} == {"good"}
    assert (await admin("PATCH", "/admin/models/fair", {"disabled": False}))[0] == 200
    status, body = await admin("PATCH", "/admin/pools/fixed", {"learning": "bypass"})
    assert (status, body["learning"]) == (200, "bypass")
    assert (await ask("fixed"))["x-pointsman-mode"] == "weighted"
    status, body = await admin("DELETE", "/admin/pools/trial/canary")
    assert (status, body["canary"]["phase"]) == (200, "aborted")
    assert {(await ask("trial"))["x-pointsman-model"] for _ in range(10)} == {"good"}  # it is kept out until let in
    assert (await admin("DELETE", "/admin/pools/trial/canary"))[0] == 200
    assert (await admin("DELETE", "/admin/pools/trial/canary"))[0] == 409
