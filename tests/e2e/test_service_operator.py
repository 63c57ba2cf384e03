"""What operators see of the whole service, and that every change they make is on record: who, when, before, after."""

from __future__ import annotations

import asyncio
import contextlib
import io
from types import SimpleNamespace

import duckdb
import numpy as np
import pytest
import requests
from api_document import told

ADMIN_KEY, KEY = "admins-key-12", "callers-key-1"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CALLER = {"Authorization": f"Bearer {KEY}"}
SECRET = "hidden-upstream-key"


@pytest.fixture
def config(trial, monkeypatch):
    monkeypatch.setenv("NEW_MODELS_KEY", SECRET)
    variants = [{"name": "a", "share": 0.5, "model": "good"}, {"name": "b", "share": 0.5, "model": "fair"}]
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "models": [
            trial.model("good", api_key=SECRET, headers={"x-secret": SECRET}),
            trial.model("fair"),
            trial.model("steady"),
        ],
        "pools": [
            {"name": "auto", "models": ["good", "fair"], "cache": {"ttl_s": 60}},
            {"name": "other", "models": ["good", "fair"], "experiments": [{"name": "ab", "variants": variants}]},
        ],
        "budgets": [
            {"scope": "all", "usd": 5.0, "name": "everybody", "webhook": f"http://127.0.0.1:9/{SECRET}?t={SECRET}"}
        ],
        "log": {"flush_interval_s": 0.1},
    }


async def ask(http, service, method, path, body=None, *, status=200, headers=ADMIN):
    async with http.request(method, service.url + path, json=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == status, answer
        assert told(method, path, status, answer) == []
        return answer


async def make_every_change(http, service, trial):
    """Each change that /admin can make, once: (subject, what) of what must be on record, oldest first."""
    new = trial.model("slow") | {"api_key": "${NEW_MODELS_KEY}"}
    experiment = {
        "name": "live",
        "variants": [{"name": "a", "share": 0.5, "model": "good"}, {"name": "b", "share": 0.5, "model": "fair"}],
    }
    await ask(http, service, "POST", "/admin/models", {"model": new, "pools": ["auto"]}, status=201)
    await ask(http, service, "DELETE", "/admin/models/slow")
    key = await ask(http, service, "POST", "/admin/keys", {"user": "bob"}, status=201)
    rotated = await ask(http, service, "POST", f"/admin/keys/{key['id']}/rotate")
    await ask(http, service, "DELETE", f"/admin/keys/{key['id']}")
    await ask(http, service, "PATCH", "/admin/pools/auto", {"learning": "observe"})
    await ask(http, service, "PATCH", "/admin/pools/auto", {"disabled": ["fair"]})
    await ask(http, service, "PATCH", "/admin/pools/auto", {"weights": {"good": 1.0}})
    await ask(http, service, "PATCH", "/admin/models/steady", {"disabled": True})
    await ask(http, service, "POST", "/admin/pools/auto/experiments", experiment, status=201)
    await ask(http, service, "DELETE", "/admin/pools/auto/experiments/live")
    await ask(http, service, "POST", "/admin/pools/auto/canary", {"model": "fair"}, status=201)
    await ask(http, service, "DELETE", "/admin/pools/auto/canary")
    await ask(http, service, "DELETE", "/admin/pools/auto/canary")
    await ask(http, service, "DELETE", "/admin/pools/auto/cache")
    await ask(http, service, "PATCH", "/admin/budgets/everybody", {"usd": 80.0})
    await ask(http, service, "POST", "/admin/drain")
    await ask(http, service, "DELETE", "/admin/drain")
    secrets = [key["secret"], rotated["secret"], SECRET, KEY, ADMIN_KEY]
    expected = [
        *(("models", what) for what in ("added", "removed")),
        *(("keys", what) for what in ("created", "rotated", "revoked")),
        *(("traffic", what) for what in ("learning", "disabled", "weights", "model_disabled")),
        *(("traffic", what) for what in ("experiments", "experiments")),
        *(("traffic", what) for what in ("canary_started", "canary_aborted", "canary_released")),
        ("cache", "purged"),
        ("budgets", "limit"),
        *(("drain", what) for what in ("begun", "ended")),
    ]
    return expected, secrets


async def test_every_change_is_on_record_and_outlives_the_service(config, run_service, trial, http, tmp_path):
    with run_service(config, tmp_path) as service:
        expected, secrets = await make_every_change(http, service, trial)
        found = (await ask(http, service, "GET", "/admin/events?kind=change&limit=500"))["events"]
        assert [(event["subject"], event["what"]) for event in reversed(found)] == expected
        assert {event["by"] for event in found} == {"admin"}
        assert all({"ts", "before", "after", "seq", "kind", "title"} <= set(event) for event in found)
        (limit,) = [event for event in found if event["what"] == "limit"]
        assert (limit["before"]["limit"], limit["after"]["limit"]) == (5.0, 80.0)
        (added,) = [event for event in found if (event["subject"], event["what"]) == ("models", "added")]
        assert (added["before"], added["after"]["pools"]) == (None, ["auto"])
        assert added["after"]["definition"]["api_key"] == "${NEW_MODELS_KEY}"
        assert service.stop() == 0
    with run_service(config, tmp_path) as service:
        again = (await ask(http, service, "GET", "/admin/events?kind=change&limit=500"))["events"]
        assert again == found
        changed = (await ask(http, service, "GET", "/admin/config"))["changed"]
        assert changed["pools"]["auto"] == {"learning": "observe", "disabled": ["fair"], "weights": {"good": 1.0}} | {
            "experiments": []
        }
        assert (changed["budgets"], changed["disabled_models"]) == ({"everybody": 80.0}, ["steady"])
        assert service.stop() == 0
        log_text = service.log
    with contextlib.closing(duckdb.connect(str(tmp_path / "data" / "log.duckdb"), read_only=True)) as log:
        rows = log.sql('SELECT subject, what, "by", ts FROM changes ORDER BY seq').fetchall()
        everything = str(log.sql("SELECT * FROM changes").fetchall())
    assert [row[:2] for row in rows] == expected
    assert all(by == "admin" and ts > 0 for _, _, by, ts in rows)
    for secret in secrets:
        assert secret not in everything + str(found) + log_text


async def test_events_come_in_pages_by_kind_pool_and_time(config, run_service, trial, http, tmp_path):
    with run_service(config, tmp_path) as service:
        for i in range(7):
            await ask(http, service, "PATCH", "/admin/pools/auto", {"learning": ("observe", "apply")[i % 2]})
        await ask(http, service, "PATCH", "/admin/pools/other", {"learning": "bypass"})
        seen, cursor = [], ""
        for _ in range(4):
            page = await ask(http, service, "GET", f"/admin/events?kind=change&pool=auto&limit=2{cursor}")
            seen += [event["seq"] for event in page["events"]]
            cursor = f"&cursor={page['next_cursor']}"
        assert (len(seen), page["next_cursor"]) == (7, None)
        assert seen == sorted(set(seen), reverse=True)
        newest = (await ask(http, service, "GET", "/admin/events?limit=1"))["events"][0]
        assert (newest["pool"], newest["after"]) == ("other", "bypass")
        since = await ask(http, service, "GET", f"/admin/events?since={newest['ts']}")
        assert since["events"] == [newest]
        for query in ("kind=x", "cursor=-1", "cursor=x", "limit=0", "limit=501", "limit=1.5", "since=x", "color=red"):
            await ask(http, service, "GET", f"/admin/events?{query}", status=400)


async def test_the_configuration_is_shown_without_secrets(config, run_service, http, tmp_path):
    with run_service(config, tmp_path) as service:
        shown = await ask(http, service, "GET", "/admin/config")
        settings = shown["settings"]
        assert settings["auth"]["admin_key"] == settings["auth"]["keys"][0]["key"] == "***"
        assert settings["models"][0]["api_key"] == settings["models"][0]["headers"]["x-secret"] == "***"
        assert settings["budgets"][0]["webhook"] == "***"
        assert settings["pools"][0]["policy"]["kind"] == "thompson"
        assert (shown["draining"], shown["changed"]["pools"]) == (False, {})
        assert not [secret for secret in (SECRET, KEY, ADMIN_KEY) if secret in str(shown)]
        experiments = (await ask(http, service, "GET", "/admin/experiments"))["experiments"]
        assert [(found["pool"], found["name"]) for found in experiments] == [("other", "ab")]
        assert (await ask(http, service, "GET", "/admin/canaries"))["canaries"] == []
        await ask(http, service, "POST", "/admin/pools/other/canary", {"model": "fair"}, status=201)
        (canary,) = (await ask(http, service, "GET", "/admin/canaries"))["canaries"]
        assert (canary["pool"], canary["model"], canary["phase"]) == ("other", "fair", "running")


async def test_another_service_starts_from_a_snapshot(config, run_service, http, tmp_path):
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    with run_service(config, tmp_path / "one") as service:
        for _ in range(5):
            answer = await ask(http, service, "POST", "/v1/chat/completions", body, headers=CALLER)
            await ask(http, service, "POST", "/reward", {"decision_id": answer["id"], "quality": 1.0}, headers=CALLER)
        evidence = (await ask(http, service, "GET", "/admin/models"))["models"][0]["pools"][0]["evidence"]
        async with http.get(f"{service.url}/admin/snapshot", headers=ADMIN) as response:
            assert response.content_type == "application/zip"
            content = await response.read()
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        assert "meta" in archive.files
    assert KEY.encode() not in content
    assert b"ada" not in content
    (tmp_path / "two" / "data").mkdir(parents=True)
    (tmp_path / "two" / "data" / "warmstart.npz").write_bytes(content)
    with run_service(config, tmp_path / "two") as service:
        other = (await ask(http, service, "GET", "/admin/models"))["models"][0]["pools"][0]["evidence"]
        assert other == pytest.approx(evidence)
        assert "has a warm start" in service.log


async def test_a_drained_service_finishes_what_it_has(config, run_service, http, tmp_path):
    slow = {"model": "steady", "messages": [{"role": "user", "content": "hello"}]}
    with run_service(config, tmp_path) as service:
        under_way = asyncio.create_task(ask(http, service, "POST", "/v1/chat/completions", slow, headers=CALLER))
        while not (await ask(http, service, "GET", "/admin/drain"))["under_way"]:
            pass
        drained = await ask(http, service, "POST", "/admin/drain")
        assert (drained["draining"], drained["under_way"]) == (True, 1)
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/infer/auto", "/v1/route"):
            async with http.post(service.url + path, json=slow | {"input": "x"}, headers=CALLER) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "5")
                assert (await response.json())["error"]["code"] == "draining"
        await ask(http, service, "GET", "/readyz", status=503)
        await ask(http, service, "GET", "/healthz")
        answer = await under_way
        await ask(http, service, "POST", "/reward", {"decision_id": answer["id"], "quality": 1.0}, headers=CALLER)
        assert (await ask(http, service, "GET", "/admin/drain"))["under_way"] == 0
        assert (await ask(http, service, "DELETE", "/admin/drain"))["draining"] is False
        await ask(http, service, "GET", "/readyz")
        await ask(http, service, "POST", "/v1/chat/completions", slow, headers=CALLER)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models", "/healthz", "/readyz", "/openapi.json"),
        *(f"/admin/{what}" for what in ("models", "matrix", "keys", "budgets", "usage", "pools", "canaries")),
        *("/admin/usage?by=team,user,tier,key,pool,model,mode,day,hour", "/admin/matrix?pool=auto&days=1"),
        *(f"/admin/{what}" for what in ("experiments", "config", "drain", "events", "decisions")),
        *("/admin/pools/auto", "/admin/pools/other/experiments/ab", "/admin/pools/auto/canary"),
        *("/admin/pools/other/canary", "/admin/events?kind=breaker", "/admin/decisions/{id}"),
    ],
)
async def test_an_answer_is_as_the_document_says(used, http, path):
    await ask(http, used.service, "GET", path.replace("{id}", used.decision_id))


@pytest.fixture(scope="module")
def used(run_service, trial, tmp_path_factory):
    """A service that has served, failed, been graded, and has something of everything."""
    variants = [{"name": "a", "share": 0.5, "model": "good"}, {"name": "b", "share": 0.5, "model": "fair"}]
    other = {"experiments": [{"name": "ab", "variants": variants}], "canary": {"model": "fair"}}
    config = {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada", "team": "search"}]},
        "models": [trial.model("good"), trial.model("fair"), trial.model("f500", breaker={"min_calls": 2})],
        "pools": [
            {"name": "auto", "models": ["good", "fair"], "shadow": {"model": "fair", "share": 1, "max_usd_per_day": 1}},
            {"name": "other", "models": ["good", "fair"]} | other,
        ],
        "budgets": [{"scope": "user", "usd": 5.0}, {"scope": "team", "tokens": 10**7}],
    }
    with run_service(config, tmp_path_factory.mktemp("used")) as service:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        for model in ("auto", "other", "good", "f500", "f500", "f500"):
            answer = requests.post(
                f"{service.url}/v1/chat/completions",
                json=body | {"model": model},
                headers=CALLER | {"x-pointsman-category": "math"},
                timeout=30,
            )
            assert told("POST", "/v1/chat/completions", answer.status_code, answer.json()) == []
            if model == "auto":
                decision_id = answer.json()["id"]
        for items in ({"decision_id": decision_id, "quality": 1}, [{"decision_id": decision_id, "quality": 0}] * 2):
            answer = requests.post(f"{service.url}/reward", json=items, headers=CALLER, timeout=30)
            assert told("POST", "/reward", answer.status_code, answer.json()) == []
        yield SimpleNamespace(service=service, decision_id=decision_id)
