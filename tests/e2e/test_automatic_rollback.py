"""A model whose error rate passes its pool's limit is taken out by itself, stays out over a restart, and comes back."""

from __future__ import annotations

import pytest
from scripted_upstream import Scripted
from steered_service import AUTH, Steered

PAIR = ["steady", "shaky"]
LIMIT = {"constraints": {"max_error_rate": 0.1}, "filters": {"probe_share": 0.2}}
POOLS = ["learned", "shared"]
MOST_CALLS = 900


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def config(scripted):
    half = {"weights": {"steady": 1, "shaky": 1}}
    return {
        "auth": AUTH,
        "log": {"flush_interval_s": 0.1},
        "failures": {"retries": {"burst": 1000, "per_model": 1}},
        "models": [scripted.model(name, breaker={"enabled": False}) for name in PAIR],
        "pools": [
            {"name": "learned", "models": PAIR, "policy": {"seed": 4, "exploration_floor": 0.5}} | LIMIT,
            {"name": "shared", "models": PAIR, "policy": {"seed": 4}} | half | LIMIT,
        ],
    }


async def states(at):
    pools = (await at.admin("GET", "/pools"))["pools"]
    return {pool["name"]: {model["name"]: model["state"] for model in pool["models"]} for pool in pools}


async def called_until(at, scripted, state):
    """Calls to each pool until `shaky` is in this state there; how many of each it took."""
    taken = {}
    for pool in POOLS:
        before = scripted.calls("shaky")
        for _ in range(MOST_CALLS):
            if (await states(at))[pool]["shaky"] == state:
                break
            await at.ask(pool)
        assert (await states(at))[pool]["shaky"] == state
        taken[pool] = scripted.calls("shaky") - before
    return taken


async def test_it_is_out_within_a_few_calls_stays_out_and_comes_back(  # noqa: PLR0917 - fixtures
    run_service, config, scripted, http, tmp_path, wait_until
):
    """Whether the policy or the operator's weights choose; every caller has an answer meanwhile."""
    scripted.rest["shaky"] = "500"
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        taken = await called_until(at, scripted, "filtered")
        assert max(taken.values()) <= 8
        before = scripted.calls("shaky")
        rows = [at.decision((await at.ask(pool)).decision_id) for pool in POOLS for _ in range(20)]
        for row in rows:  # a fresh one's probe share is a quarter of what is set
            assert row["probabilities"] == pytest.approx([0.95, 0.05])
            assert row["feasible"][0]
        assert {row["mode"] for row in rows} == {"bandit", "weighted"}
        assert scripted.calls("shaky") - before <= 10
        query = "SELECT pool, model, constraint_name, to_state FROM filter_events ORDER BY pool"
        assert await wait_until(lambda: at.rows(query)) == [
            (pool, "shaky", "max_error_rate", "filtered") for pool in POOLS
        ]
        await wait_until(lambda: service.events("outcome", rows[-1]["decision_id"]))
        service.kill()
    for ending in ("stop", "kill"):  # from the log, then from a snapshot
        with run_service(config, tmp_path) as service:
            found = await states(Steered(http, service))
            assert [found[pool]["shaky"] for pool in POOLS] == ["filtered", "filtered"]
            getattr(service, ending)()
    scripted.rest["shaky"] = "ok"
    with run_service(config, tmp_path) as service:
        at = Steered(http, service)
        taken = await called_until(at, scripted, "probing")
        assert min(taken.values()) >= 20  # good ones, one after the other
        row = at.decision((await at.ask("shared")).decision_id)
        assert row["probabilities"] == pytest.approx([0.5, 0.5])  # the operator's shares again
        row = at.decision((await at.ask("learned")).decision_id)
        assert row["probabilities"][1] >= 0.1 - 1e-9  # what a model without a certificate may have
        await called_until(at, scripted, "admitted")
