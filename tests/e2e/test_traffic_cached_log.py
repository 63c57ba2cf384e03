"""What the log says of answers from the cache, and that nothing which learns, judges or bills takes them for calls."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import duckdb
import pytest
from numbered_upstream import COST_USD, Numbered

KEY, ADMIN = "caller-of-the-tests", "operator-of-the-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
HURRIED = "another-of-the-tests"
PROMPTS, AGAIN = 12, 3
SPENT_USD = PROMPTS * COST_USD


@pytest.fixture
def service(run_service, serve_in_thread, tmp_path):
    upstream = Numbered()
    with serve_in_thread(upstream.app) as upstream.url:
        pool = {"name": "auto", "models": ["one", "two"], "policy": {"seed": 3, "exploration_floor": 0.3}}
        pool |= {"cache": {}, "quality_metrics": {"right": 1.0}}
        pool |= {"constraints": {"min_accuracy": 0.5, "accuracy_evidence": "feedback"}}
        keys = [(KEY, "ada"), (HURRIED, "bob")]
        config = {
            "log": {"flush_interval_s": 0.1},
            "auth": {"admin_key": ADMIN, "keys": [{"key": k, "user": u, "team": "search"} for k, u in keys]},
            "models": [upstream.model(name) for name in ("one", "two")],
            "pools": [pool],
            "budgets": [{"name": "team", "scope": "team", "usd": SPENT_USD, "per": "total"}],
            "limits": [{"scope": "user", "match": "bob", "requests_per_minute": 2, "tokens_per_minute": 1_000}],
        }
        with run_service(config, tmp_path / "service") as service:
            yield service


@pytest.fixture
def ask(service, http):
    async def ask(i, key=KEY, **more):
        messages = [{"role": "user", "content": f"question {i}"}]
        body = {"model": "auto", "messages": messages, "temperature": 0, "max_tokens": 100} | more
        async with http.post(
            f"{service.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
        ) as response:
            await response.read()
            return response.status, response.headers

    return ask


@pytest.fixture
def get(service, http):
    async def get(path, key=ADMIN):
        async with http.get(service.url + path, headers={"Authorization": f"Bearer {key}"}) as response:
            assert response.status == 200
            return await response.json()

    return get


async def test_hits_are_decisions_of_their_own_that_cost_and_teach_nothing(service, ask, get, http, tmp_path):
    made = {}
    for i in range(PROMPTS):
        status, headers = await ask(i)
        assert (status, headers["x-pointsman-mode"]) == (200, "bandit")
        made[i] = headers
    steps = {event["payload"]["step"] for event in service.events("decision")}
    hits = [(i, (await ask(i, stream=i % 2 == 0))[1]) for i in range(PROMPTS) for _ in range(AGAIN)]
    budget = float(hits[-1][1]["x-pointsman-budget-remaining-usd"])  # all is spent, and hits cost nothing
    assert {headers["x-pointsman-mode"] for _, headers in hits} == {"cached"}
    assert budget < COST_USD
    assert (await ask("new"))[0] == 402

    graded = [{"decision_id": headers["x-pointsman-decision-id"], "quality": 0.0} for _, headers in hits]
    before = await get("/admin/models")
    async with http.post(f"{service.url}/reward", json=graded, headers=HEADERS) as response:
        assert (await response.json())["accepted"] == len(graded)
    assert await get("/admin/models") == before

    decisions = {e["decision_id"]: e["payload"] for e in service.events("decision")}
    outcomes = {e["decision_id"]: e["payload"] for e in service.events("outcome")}
    assert len(decisions) == len(outcomes) == PROMPTS + len(hits)
    for i, headers in hits:
        decision, outcome = (of[headers["x-pointsman-decision-id"]] for of in (decisions, outcomes))
        model = made[i]["x-pointsman-model"]
        assert (decision["mode"], decision["pool"], decision["user"]) == ("cached", "auto", "ada")
        assert decision["origin"] == made[i]["x-pointsman-decision-id"]
        assert (decision["chosen"], decision["arms"], decision["probabilities"]) == (model, [model], [1.0])
        assert (decision["propensity"], decision["context_version"], decision["step"]) == (1.0, "none", 0)
        assert (outcome["model"], outcome["status"], outcome["stream"]) == (model, "ok", i % 2 == 0)
        assert (outcome["cost_usd"], outcome["input_tokens"], outcome["output_tokens"]) == (0.0, 0, 0)
        assert outcome["saved_usd"] == pytest.approx(COST_USD)
    assert {d["step"] for d in decisions.values() if d["mode"] == "bandit"} == steps == set(range(PROMPTS))

    await check_sums(get, len(hits))
    await check_readers(service, get, len(hits), tmp_path / "judged.json")
    assert [(await ask(0, key=HURRIED))[0] for _ in range(3)] == [200, 200, 429]  # each is a request, without tokens
    written = (service.data_dir / "router.sqlite").read_bytes() + service.log.encode()
    assert b"answer 1 of" not in written
    assert b"question 1" not in written


async def check_sums(get, hits):
    """Bills and budgets: what hits cost is nothing, and what they saved is said."""
    bill = await get("/admin/usage?by=mode")
    by_mode = {row["mode"]: row for row in bill["rows"]}
    assert by_mode["bandit"]["cost_usd"] == bill["total"]["cost_usd"] == pytest.approx(SPENT_USD)
    assert (by_mode["cached"]["calls"], by_mode["cached"]["output_tokens"]) == (hits, 0)
    assert by_mode["cached"]["saved_usd"] == bill["total"]["saved_usd"] == pytest.approx(AGAIN * SPENT_USD)
    (budget,) = (await get("/admin/budgets"))["budgets"]
    (counter,) = budget["counters"]
    assert (counter["spent"], counter["saved_usd"]) == (pytest.approx(SPENT_USD), pytest.approx(AGAIN * SPENT_USD))


async def check_readers(service, get, hits, out):
    """The log, the matrix and a replay: hits are there, and are nobody's calls."""
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        joined = "SELECT count(*) FROM decisions c JOIN decisions d ON c.origin = d.decision_id WHERE c.mode = 'cached'"
        assert log.execute(f"{joined} AND d.mode = 'bandit' AND c.chosen = d.chosen").fetchall() == [(hits,)]
    matrix = await get("/admin/matrix?pool=auto")
    assert sum(model["overall"]["calls"] for model in matrix["models"]) == PROMPTS
    command = [sys.executable, "-m", "serving", "replay", str(service.data_dir), "--pool", "auto", "--json", str(out)]
    command += ["--policy", "uniform", "--min-effective-samples", "3"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode in {0, 3}, done.stderr
    selection = json.loads(out.read_text())["selection"]
    assert (selection["decisions"], selection["left_out_by_mode"]) == (PROMPTS, {"cached": hits})


async def test_a_restart_knows_what_hits_were_and_keeps_no_answer(run_service, serve_in_thread, http, tmp_path):
    """Answers are in memory alone; feedback for a hit of an earlier life is taken, and its budget is as it was."""
    upstream = Numbered()
    body = {"model": "auto", "messages": [{"role": "user", "content": "q"}], "temperature": 0}

    async def ask(service):
        async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
            return response.headers["x-pointsman-mode"], (await response.json())["id"]

    with serve_in_thread(upstream.app) as upstream.url:
        config = {"models": [upstream.model("one")], "pools": [{"name": "auto", "models": ["one"], "cache": {}}]}
        with run_service(config, tmp_path) as service:
            assert (await ask(service))[0] == "bandit"
            mode, decision_id = await ask(service)
            assert mode == "cached"
            service.kill()
        with run_service(config, tmp_path) as service:
            feedback = {"decision_id": decision_id, "quality": 1.0}
            async with http.post(f"{service.url}/reward", json=feedback) as response:
                assert (await response.json())["status"] == "recorded"
            assert (await ask(service))[0] == "bandit"
    assert upstream.asked["q"] == 2
