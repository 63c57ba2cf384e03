"""Tiers and tenants on the real process: what a name means for whom, and whose decisions one may speak of."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI, PermissionDeniedError

KEYS = {
    "free": "free-callers-key",
    "paid": "paid-callers-key",
    "enterprise": "enterprise-key-1",
    "admin": "admins-key-12",
}
MESSAGES = [{"role": "user", "content": "hello"}]


def bearer(whose):
    return {"Authorization": f"Bearer {KEYS[whose]}"}


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    keys = [
        {"key": KEYS["free"], "user": "fay"},
        {"key": KEYS["paid"], "user": "pat", "team": "search", "tier": "paid"},
        {"key": KEYS["enterprise"], "user": "eve", "tier": "enterprise"},
    ]
    config = {
        "auth": {"admin_key": KEYS["admin"], "keys": keys},
        "tiers": [
            {"name": "free", "pools": {"auto": "cheap"}, "allow": [], "default": True},
            {"name": "paid", "pools": {"auto": "better"}, "allow": ["fair"], "priority": 5},
            {"name": "enterprise", "pools": {"auto": "theirs"}, "priority": 9},
        ],
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [
            {"name": "cheap", "models": ["fair"]},
            {"name": "better", "models": ["good", "fair"]},
            {"name": "theirs", "models": ["good"]},
        ],
    }
    with run_service(config, tmp_path_factory.mktemp("tiers")) as service:
        yield service


@pytest.mark.parametrize(
    ("whose", "pool", "tier"),
    [("free", "cheap", "free"), ("paid", "better", "paid"), ("enterprise", "theirs", "enterprise")],
)
async def test_the_same_name_leads_each_tier_to_its_own_pool(service, http, whose, pool, tier):
    """A call, a stream and a decision alone; logged in the pool it was drawn in, in mode bandit."""
    client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key=KEYS[whose], max_retries=0)
    answer = await client.chat.completions.create(model="auto", messages=MESSAGES)
    stream = await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
    ids = {chunk.id async for chunk in stream} | {answer.id}
    body = {"model": "auto", "messages": MESSAGES}
    async with http.post(f"{service.url}/v1/route", json=body, headers=bearer(whose)) as response:
        ids.add((await response.json())["decision_id"])
    assert len(ids) == 3
    for decision_id in ids:
        (decision,) = service.events("decision", decision_id)
        row = decision["payload"]
        assert (row["pool"], row["tier"], row["mode"]) == (pool, tier, "bandit")


@pytest.mark.parametrize(
    ("whose", "names"),
    [
        ("free", ["auto"]),
        ("paid", ["auto", "fair"]),
        ("enterprise", ["auto", "better", "cheap", "fair", "good", "theirs"]),
        ("admin", ["better", "cheap", "fair", "good", "theirs"]),
    ],
)
async def test_a_caller_sees_only_what_it_may_use(service, whose, names):
    client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key=KEYS[whose], max_retries=0)
    assert sorted([model.id async for model in client.models.list()]) == names


@pytest.mark.parametrize(
    ("whose", "name", "may"), [("free", "good", "auto"), ("free", "cheap", "auto"), ("paid", "theirs", "auto, fair")]
)
async def test_what_is_another_tiers_is_refused(service, http, whose, name, may):
    """By every route that names a model, without a decision."""
    before = len(service.events("decision"))
    client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key=KEYS[whose], max_retries=0)
    with pytest.raises(PermissionDeniedError) as refused:
        await client.chat.completions.create(model=name, messages=MESSAGES)
    assert refused.value.code == "model_not_allowed"
    assert f"may use {may}" in refused.value.message
    body = {"model": name, "messages": MESSAGES, "prompt": "x", "input": "x"}
    for path in ("/v1/route", "/v1/completions", "/v1/embeddings"):
        async with http.post(service.url + path, json=body, headers=bearer(whose)) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "model_not_allowed")
    assert len(service.events("decision")) == before


async def test_a_name_that_is_not_there_lists_no_other_tiers_names(service, http):
    body = {"model": "nothing-like-it", "messages": MESSAGES}
    for path in ("/v1/chat/completions", "/v1/route"):
        async with http.post(service.url + path, json=body, headers=bearer("free")) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (404, "model_not_found")
        assert not any(name in error["message"] for name in ("better", "theirs", "good", "fair", "cheap"))


async def test_feedback_and_outcomes_stay_with_the_tenant(service, http):
    """Another tenant's decision is as unknown as one that never was; the operator may speak of all."""
    body = {"model": "auto", "messages": MESSAGES}
    async with http.post(f"{service.url}/v1/route", json=body, headers=bearer("paid")) as response:
        decision_id = (await response.json())["decision_id"]
    reward, outcome = {"decision_id": decision_id, "quality": 1.0}, {"decision_id": decision_id, "latency_s": 1.0}
    for path, item in (("/reward", reward), ("/outcome", outcome)):
        async with http.post(service.url + path, json=item, headers=bearer("enterprise")) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (404, "decision_not_found")
    async with http.post(f"{service.url}/reward", json=[reward], headers=bearer("free")) as response:
        assert (await response.json())["results"][0]["error"]["code"] == "decision_not_found"
    assert [event["kind"] for event in service.events(decision_id=decision_id)] == ["decision"]
    for path, item, whose in (("/outcome", outcome, "paid"), ("/reward", reward, "admin")):
        async with http.post(service.url + path, json=item, headers=bearer(whose)) as response:
            assert (await response.json())["status"] == "recorded"
