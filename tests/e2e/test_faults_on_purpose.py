"""Faults on purpose, in the running service: what callers get, what is recorded, and that everything else sees it."""

from __future__ import annotations

import asyncio

import pytest
from scripted_upstream import Scripted

ADMIN_KEY, KEY = "admins-key-12", "callers-key-1"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CALLER = {"Authorization": f"Bearer {KEY}"}
BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as url:
        scripted.url = url
        yield scripted


@pytest.fixture
def config(scripted):
    names = ("one", "two", "hasty")
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "faults": {"enabled": True, "seed": 7},
        "failures": {"retries": {"max_attempts": 2, "per_model": 1, "budget": 10}},
        "log": {"flush_interval_s": 0.1},
        "models": [
            scripted.model(name, timeout_s=0.3 if name == "hasty" else 20, breaker={"min_calls": 3}) for name in names
        ],
        "pools": [{"name": "auto", "models": ["one", "two"], "weights": {"one": 1}}],
    }


@pytest.fixture
def ask(http):
    async def ask(service, method, path, body=None, *, status=200, headers=ADMIN):
        async with http.request(method, service.url + path, json=body, headers=headers) as response:
            answer = await response.json()
            assert response.status == status, answer
            return answer

    return ask


async def call(http, service, model, attempts=1, **more):
    """(status, raw, the outcomes of the call's attempts) of one call."""
    async with http.post(
        f"{service.url}/v1/chat/completions", json={"model": model, **BODY, **more}, headers=CALLER
    ) as response:
        raw, decision = await response.text(), response.headers["x-pointsman-decision-id"]
    async with asyncio.timeout(10):
        while len(events := service.events("outcome", decision)) < attempts:  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(0.01)
    return response.status, raw, [event["payload"] for event in events]


async def test_each_kind_is_told_in_the_log_and_is_real_for_all_else(  # noqa: PLR0917 - fixtures
    run_service, config, scripted, http, ask, tmp_path
):
    with run_service(config, tmp_path) as service:
        asked = scripted.calls("one")
        await ask(service, "POST", "/admin/faults", {"kind": "error", "model": "one", "for_s": 60}, status=201)
        status, raw, (outcome,) = await call(http, service, "one")
        assert (status, "injected" in raw, scripted.calls("one")) == (502, False, asked)
        assert (outcome["status"], outcome["http_status"], outcome["error"]) == ("error", 503, "injected_error")
        status, _, (first, second) = await call(http, service, "auto", attempts=2)
        assert (status, first["error"], second["error"], second["model"]) == (200, "injected_error", None, "two")
        await call(http, service, "one")  # the third: its breaker opens
        pool = await ask(service, "GET", "/admin/pools/auto")
        assert {model["name"]: model["endpoints"]["1"] for model in pool["models"]} == {"one": "open", "two": "closed"}
        await ask(service, "DELETE", "/admin/faults")

        stall = await ask(service, "POST", "/admin/faults", {"kind": "stall", "model": "hasty"}, status=201)
        status, _, (outcome,) = await call(http, service, "hasty")
        assert (status, outcome["status"], outcome["error"]) == (504, "timeout", "injected_stall")
        await ask(service, "DELETE", f"/admin/faults?id={stall['id']}")

        await ask(service, "POST", "/admin/faults", {"kind": "latency", "model": "two", "latency_s": 0.2}, status=201)
        status, _, (outcome,) = await call(http, service, "two")
        assert (status, outcome["status"], outcome["error"]) == (200, "ok", "injected_latency")
        assert outcome["latency_s"] >= 0.2
        await ask(service, "DELETE", "/admin/faults")

        await ask(service, "POST", "/admin/faults", {"kind": "disconnect", "model": "two"}, status=201)
        status, raw, (outcome,) = await call(http, service, "two", stream=True)
        assert (status, "one" in raw, "[DONE]" in raw, "upstream_disconnected" in raw) == (200, True, False, True)
        assert (outcome["status"], outcome["error"]) == ("error", "injected_disconnect")
        async with http.get(f"{service.url}/metrics") as response:
            shown = await response.text()
        for model, kind, times in (("one", "error", 3), ("hasty", "stall", 1), ("two", "disconnect", 1)):
            assert f'pointsman_faults_injected_total{{kind="{kind}",model="{model}"}} {times}.0' in shown
        async with http.get(f"{service.url}/readyz") as response:
            assert response.status == 200
        events = (await ask(service, "GET", "/admin/events?kind=change"))["events"]
        assert [event["what"] for event in reversed(events)] == ["injected", "removed"] * 3 + ["injected"]
        assert {(event["subject"], event["by"]) for event in events} == {("faults", "admin")}
        assert service.stop() == 0


async def test_what_cannot_be_injected_is_refused(run_service, config, http, ask, tmp_path):
    with run_service(config, tmp_path) as service:
        await ask(service, "GET", "/admin/faults", status=403, headers=CALLER)
        told = await ask(service, "POST", "/admin/faults", {"kind": "latency"}, status=422)
        assert told["error"]["param"] == "latency_s"
        await ask(service, "POST", "/admin/faults", {"kind": "error", "model": "oen"}, status=404)
        await ask(service, "DELETE", "/admin/faults?id=f9", status=404)
        assert await ask(service, "GET", "/admin/faults") == {"faults": []}
        assert "break calls on purpose" in service.log


async def test_where_it_is_not_enabled_a_reload_is_needed(run_service, config, http, ask, tmp_path):
    """And one that takes it away ends all of them."""
    import yaml

    path = tmp_path / "pointsman.yaml"
    with run_service(config | {"faults": {}}, tmp_path) as service:
        for method, body in (("GET", None), ("POST", {"kind": "error"}), ("DELETE", None)):
            told = await ask(service, method, "/admin/faults", body, status=409)
            assert told["error"]["code"] == "faults_disabled"
        rule = {"kind": "error", "model": "one", "status": 500}
        path.write_text(yaml.safe_dump(config | {"faults": {"enabled": True, "inject": [rule]}}))
        await ask(service, "POST", "/admin/reload")
        (fault,) = (await ask(service, "GET", "/admin/faults"))["faults"]
        assert (fault["kind"], fault["status"], fault["by"]) == ("error", 500, None)
        assert (await call(http, service, "one"))[0] == 502
        path.write_text(yaml.safe_dump(config | {"faults": {}}))
        await ask(service, "POST", "/admin/reload")
        assert (await call(http, service, "one"))[0] == 200
        await ask(service, "GET", "/admin/faults", status=409)


async def test_a_restart_ends_them(run_service, config, ask, tmp_path):
    with run_service(config, tmp_path) as service:
        await ask(service, "POST", "/admin/faults", {"kind": "error"}, status=201)
        service.kill()
    with run_service(config, tmp_path) as service:
        assert await ask(service, "GET", "/admin/faults") == {"faults": []}
