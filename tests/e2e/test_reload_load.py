"""Reloads under 200 calls a second: none is lost, none is broken, and each is in the log with its outcome."""

from __future__ import annotations

import asyncio
import copy
import signal

import pytest
import yaml

from tests.steady_load import accepted, steady_load

ADMIN_KEY, ADA_KEY, SPARE_KEY = "admins-key-12", "adas-key-123", "spare-key-12"
ADMIN, ADA, SPARE = ({"Authorization": f"Bearer {key}"} for key in (ADMIN_KEY, ADA_KEY, SPARE_KEY))
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
SECONDS = 6


@pytest.fixture
def config(trial):
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": ADA_KEY, "user": "ada"}]},
        "budgets": [{"scope": "all", "usd": 1000.0}],
        "limits": [{"scope": "user", "requests_per_minute": 1_000_000}],
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"], "policy": {"exploration_floor": 0.1}}],
    }


def variants(config, trial):
    """Configurations, each with another price, weights, models, keys or limits; the last is the first again."""
    priced, grown, shrunk, keyed = (copy.deepcopy(config) for _ in range(4))
    priced["models"][0]["price"]["input_per_million"] = 7.0
    priced["pools"][0]["weights"] = {"good": 1, "fair": 3}
    grown["models"].append(trial.model("late", upstream_model="good"))
    grown["pools"][0] |= {"models": ["good", "fair", "late"], "weights": {"good": 1, "fair": 1, "late": 2}}
    shrunk["models"] = shrunk["models"][:1]
    shrunk["pools"][0]["models"] = ["good"]
    keyed["auth"]["keys"].append({"key": SPARE_KEY, "user": "bob"})
    keyed["pools"][0]["constraints"] = {"p95_latency_s": 5.0}
    keyed["overload"] = {"max_concurrent": 500}
    return [priced, grown, shrunk, keyed, config]


async def test_no_call_is_lost_or_broken(run_service, trial, config, http, tmp_path, wait_until):  # noqa: PLR0917
    """By turns as a request and by signal; a stream among four calls; invalid files in between change nothing."""
    with run_service(config, tmp_path) as service:
        path = tmp_path / "pointsman.yaml"
        bodies = [CHAT, CHAT, CHAT, CHAT | {"stream": True}]
        load = asyncio.create_task(steady_load(service.url, SECONDS, ADA, bodies=bodies))
        reloads, spare = 0, set()
        while not load.done():
            for i, other in enumerate(variants(config, trial)):
                path.write_text(yaml.safe_dump(other))
                if i % 2:
                    service.process.send_signal(signal.SIGHUP)
                    reloads += 1
                    await wait_until(lambda: _reloaded(service) == reloads)  # noqa: B023 - it is waited for here
                else:
                    async with http.post(service.url + "/admin/reload", headers=ADMIN) as response:
                        assert response.status == 200, await response.text()
                    reloads += 1
                async with http.post(service.url + "/v1/chat/completions", json=CHAT, headers=SPARE) as response:
                    assert response.status == (200 if i == 3 else 401)
                    spare.add(response.status)
            path.write_text("models: [")
            async with http.post(service.url + "/admin/reload", headers=ADMIN) as response:
                assert response.status == 422
        result = await load
        assert (result.lost, dict(result.statuses)) == ({}, {200: SECONDS * 200}), result.said
        assert len(result.whole) == SECONDS * 200
        assert reloads >= 10
        assert spare == {200, 401}
        assert service.stop() == 0
    events = service.events()
    decided = accepted(events)
    assert sorted(decided) == list(range(SECONDS * 200))
    outcomes = [e["decision_id"] for e in events if e["kind"] == "outcome" and e["payload"]["status"] == "ok"]
    assert sorted(outcomes) == sorted(set(outcomes))
    assert set(decided.values()) <= set(outcomes)
    assert {e["payload"]["chosen"] for e in events if e["kind"] == "decision"} == {"good", "fair", "late"}
    assert "Traceback" not in service.log


def _reloaded(service):
    return sum(event["payload"]["what"] == "reloaded" for event in service.events("change"))
