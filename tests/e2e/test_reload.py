"""A reload: applied whole or refused whole, by request, signal or file; a restart that keeps the port and all calls."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import shutil
import signal
import sqlite3

import numpy as np
import pytest
import yaml

from bandit.snapshot import loads

ADMIN_KEY, ADA_KEY, BOB_KEY = "admins-key-12", "adas-key-123", "bobs-key-123"
ADMIN, ADA, BOB = ({"Authorization": f"Bearer {key}"} for key in (ADMIN_KEY, ADA_KEY, BOB_KEY))
CHAT_PATH = "/v1/chat/completions"


@pytest.fixture
def config(trial):
    models = [trial.model("good"), trial.model("fair"), trial.model("steady")]
    return {
        "server": {"max_messages": 50},
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": ADA_KEY, "user": "ada"}]},
        "store": {"snapshot_every_events": 1},
        "models": models,
        "pools": [
            {
                "name": "auto",
                "models": ["good", "fair"],
                "constraints": {"min_accuracy": 0.3, "accuracy_evidence": "benchmarks"},
                "policy": {"exploration_floor": 0.1},
            }
        ],
    }


def write(service, config):
    """Put another configuration in the file's place, in one step."""
    path = service.data_dir.parent / "pointsman.yaml"
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(config, sort_keys=False))
    fresh.replace(path)


async def asked(http, service, method, path, body=None, headers=ADMIN):  # noqa: PLR0917
    async with http.request(method, service.url + path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def called(http, service, model="auto", headers=ADA, **more):
    """(status, answer) of a call."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    return await asked(http, service, "POST", CHAT_PATH, body, headers)


async def reloaded(http, service, config):
    """What `POST /admin/reload` says of another configuration, which is applied."""
    write(service, config)
    status, said = await asked(http, service, "POST", "/admin/reload")
    assert status == 200, said
    return said


async def counted(http, service, result):
    async with http.get(service.url + "/metrics") as response:
        text = await response.text()
    lines = [line for line in text.splitlines() if line.startswith(f'pointsman_reloads_total{{result="{result}"}}')]
    return float(lines[0].split()[-1]) if lines else 0.0


def changes(service, what):
    return [e["payload"] for e in service.events("change") if e["payload"]["what"] == what]


def snapshot_of(data_dir):
    with contextlib.closing(sqlite3.connect(data_dir / "router.sqlite")) as connection:
        ((payload,),) = connection.execute("SELECT payload FROM snapshots ORDER BY seq DESC LIMIT 1").fetchall()
    return loads(payload)


async def test_what_is_reloaded_acts_on_the_next_call_and_is_logged(run_service, trial, config, http, tmp_path):
    """A model and a key come, others go, a price and weights change; the log names settings and no value."""
    with run_service(config, tmp_path) as service:
        assert (await called(http, service))[0] == 200
        other = copy.deepcopy(config)
        other["auth"]["keys"] = [{"key": BOB_KEY, "user": "bob"}]
        other["models"] = [
            trial.model("good", price={"input_per_million": 0.0, "output_per_million": 0.0, "per_call": 0.5}),
            *(trial.model("late", upstream_model="good"), trial.model("steady")),
        ]
        other["pools"][0] |= {"models": ["good", "late"], "weights": {"good": 1}}
        said = await reloaded(http, service, other)
        assert said["status"] == "applied"
        assert {"auth.keys", "models[fair]", "models[late]", "pools[auto].weights"} <= set(said["changed"])
        assert (await called(http, service))[0] == 401
        assert (await called(http, service, "fair", BOB))[0] == 404
        status, answer = await called(http, service, headers=BOB)
        assert (status, answer["model"]) == (200, "good")
        assert (await service.outcome(answer["id"]))["cost_usd"] == 0.5
        assert (await called(http, service, "late", BOB))[0] == 200
        (row,) = changes(service, "reloaded")
        assert (row["subject"], row["by"], row["reason"]) == ("configuration", "admin", "POST /admin/reload")
        assert (row["before"], row["after"]["digest"]) == ({"digest": said["before"]}, said["after"])
        assert said["before"] != said["after"]
        assert await reloaded(http, service, other) == said | {
            "status": "unchanged",
            "before": said["after"],
            "changed": [],
        }
        assert [await counted(http, service, result) for result in ("applied", "unchanged", "refused")] == [1, 1, 0]
        assert not any(key in service.log + str(row) for key in (ADMIN_KEY, ADA_KEY, BOB_KEY))
        assert service.stop() == 0
    assert "Traceback" not in service.log


async def test_what_cannot_be_used_changes_nothing_and_says_why(run_service, config, http, tmp_path, wait_until):
    """Every problem with path and line, what needs a restart by its name; after a signal log and events say so."""
    with run_service(config, tmp_path) as service:
        before = service.events()
        other = copy.deepcopy(config)
        other["pools"][0] |= {"models": ["good", "missing"], "policy": {"kind": "tompson"}}
        other["auth"]["keys"] = []
        write(service, other)
        status, said = await asked(http, service, "POST", "/admin/reload")
        assert (status, said["error"]["code"]) == (422, "invalid_configuration")
        problems = {problem["path"]: problem for problem in said["error"]["problems"]}
        assert set(problems) >= {"pools[0].policy.kind", "pools[0].models[1]"}
        assert all(set(p) == {"path", "message", "hint", "line"} and p["line"] for p in problems.values())
        assert "thompson" in str(problems["pools[0].policy.kind"])
        fixed = copy.deepcopy(config) | {"store": {"snapshot_every_events": 1, "queue_limit": 77}}
        fixed["server"] |= {"max_body_bytes": 4096}
        fixed["auth"]["keys"] = []
        write(service, fixed)
        status, said = await asked(http, service, "POST", "/admin/reload")
        assert status == 422
        assert {p["path"] for p in said["error"]["problems"]} == {"server.max_body_bytes", "store.queue_limit"}
        assert all("restart" in p["hint"] and p["line"] for p in said["error"]["problems"])
        assert service.events() == before
        service.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: changes(service, "reload_refused"))
        (row,) = changes(service, "reload_refused")
        assert (row["reason"], len(row["after"]["problems"])) == ("SIGHUP", 2)
        assert "configuration refused (SIGHUP): server.max_body_bytes" in service.log
        assert (await called(http, service))[0] == 200
        assert await counted(http, service, "refused") == 3
        (service.data_dir.parent / "pointsman.yaml").unlink()
        assert (await asked(http, service, "POST", "/admin/reload"))[0] == 422
        for headers, status in ((ADA, 403), ({}, 401)):
            assert (await asked(http, service, "POST", "/admin/reload", headers=headers))[0] == status


async def test_a_signal_and_a_changed_file_reload_too(run_service, config, http, tmp_path, wait_until):
    """The file is watched once the configuration says so; it is tried once, however often it is looked at."""
    with run_service(config, tmp_path) as service:
        watched = copy.deepcopy(config)
        watched["server"]["watch_config"] = True
        write(service, watched)
        service.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: changes(service, "reloaded"))
        again = copy.deepcopy(watched)
        again["auth"]["keys"] += [{"key": BOB_KEY, "user": "bob"}]
        write(service, again)
        await wait_until(lambda: len(changes(service, "reloaded")) == 2, 20)
        assert [row["reason"] for row in changes(service, "reloaded")] == ["SIGHUP", "file"]
        assert (await called(http, service, headers=BOB))[0] == 200
        (service.data_dir.parent / "pointsman.yaml").write_text("models: [")
        await wait_until(lambda: changes(service, "reload_refused"), 20)
        await asyncio.sleep(3)
        assert len(changes(service, "reload_refused")) == 1
        assert (await called(http, service, headers=BOB))[0] == 200


async def test_a_reload_ends_in_the_state_of_a_restart(run_service, trial, config, http, tmp_path):
    """To the last bit: pools, keys, budgets, models that were added; what `/admin` changed stands after both."""
    config["budgets"] = [{"name": "all", "scope": "all", "usd": 100.0}]
    other = copy.deepcopy(config)
    other["models"] = [
        trial.model("good", price={"input_per_million": 9, "output_per_million": 9}),
        *config["models"][2:],
    ]
    other["pools"][0] |= {"models": ["good", "steady"], "constraints": {"min_accuracy": 0.9}}
    with run_service(config, tmp_path / "one") as service:
        extra = {"model": trial.model("extra", upstream_model="good"), "pools": ["auto"]}
        assert (await asked(http, service, "POST", "/admin/models", extra))[0] == 201
        _, key = await asked(http, service, "POST", "/admin/keys", {"user": "eve"})
        assert (await asked(http, service, "PATCH", "/admin/budgets/all", {"usd": 50.0}))[0] == 200
        for i in range(60):
            _, answer = await called(http, service, user=f"u{i}")
            item = {"decision_id": answer["id"], "quality": float(i % 3 > 0)}
            assert (await asked(http, service, "POST", "/reward", item))[0] == 200
        assert (await asked(http, service, "PATCH", "/admin/pools/auto", {"disabled": ["good"]}))[0] == 200
        live = snapshot_of(service.data_dir)
        (tmp_path / "two" / "data").mkdir(parents=True)
        shutil.copy(service.data_dir / "session.key", tmp_path / "two" / "data")
        with (
            contextlib.closing(sqlite3.connect(service.data_dir / "router.sqlite")) as source,
            contextlib.closing(sqlite3.connect(tmp_path / "two" / "data" / "router.sqlite")) as target,
        ):
            source.backup(target)
        await reloaded(http, service, other)
        by_reload = snapshot_of(service.data_dir)
        _, pools = await asked(http, service, "GET", "/admin/pools/auto")
        assert [model["name"] for model in pools["models"]] == ["good", "steady", "extra"]
        assert pools["disabled"] == ["good"]
        eve = {"Authorization": f"Bearer {key['secret']}"}
        assert (await called(http, service, headers=eve))[0] == 200
        _, budgets = await asked(http, service, "GET", "/admin/budgets")
        assert budgets["budgets"][0]["limit"] == 50.0
        assert service.stop() == 0
    with run_service(other, tmp_path / "two") as service:
        assert service.stop() == 0
    by_restart = snapshot_of(tmp_path / "two" / "data")
    line = by_reload["folds"]["dashboard"]["timeline"]
    assert "reloaded" in str(line["entries"].pop())  # that it was reloaded
    line["count"] = by_restart["folds"]["dashboard"]["timeline"]["count"]
    for part in ("pools", "folds", "roster"):
        assert_same(by_reload[part], by_restart[part], part)
    before, after = live["pools"]["auto"], by_reload["pools"]["auto"]
    assert after["step"] == before["step"] >= 60
    for name in ("good", "extra"):  # models that stayed: nothing of what was learned is lost
        old, new = before["arms"].index(name), after["arms"].index(name)
        for head in ("gram", "moment", "weight"):
            np.testing.assert_array_equal(
                np.take(after["heads"][head], new, axis=1), np.take(before["heads"][head], old, axis=1)
            )


def assert_same(one, two, where):
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for name in one:
            assert_same(one[name], two[name], f"{where}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for i, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_same(left, right, f"{where}[{i}]")
    else:
        np.testing.assert_array_equal(one, two, err_msg=where)


async def test_a_changed_limit_acts_at_once(run_service, config, http, tmp_path):
    """What was good enough is filtered by the next bad grades; a budget that is used up refuses the next call."""
    results = [{"item_id": f"i{i}", "model": "fair", "quality": float(i % 2)} for i in range(100)]
    with run_service(config, tmp_path) as service:

        async def state(run):
            body = {"suite": "s", "run": run, "results": results}
            assert (await asked(http, service, "POST", "/admin/benchmarks", body))[0] == 200
            _, pool = await asked(http, service, "GET", "/admin/pools/auto")
            return {model["name"]: model["state"] for model in pool["models"]}["fair"]

        assert await state("one") == "admitted"
        strict = copy.deepcopy(config)
        strict["pools"][0]["constraints"]["min_accuracy"] = 0.9
        await reloaded(http, service, strict)
        assert await state("two") == "filtered"
        assert (await called(http, service))[0] == 200
        await reloaded(http, service, strict | {"budgets": [{"scope": "user", "match": "ada", "usd": 1e-9}]})
        assert (await called(http, service))[0] == 402


async def test_a_call_under_way_keeps_the_model_that_a_reload_removes(run_service, config, http, tmp_path, trial):
    """And what is set aside for it in a budget stays so until it is booked."""
    config["budgets"] = [{"name": "all", "scope": "all", "usd": 100.0}]
    with run_service(config, tmp_path) as service:
        started = (await trial.seen(http, "steady"))["started"]
        calls = [asyncio.create_task(called(http, service, "steady", stream=False)) for _ in range(3)]
        async with asyncio.timeout(10):
            while (await trial.seen(http, "steady"))["started"] < started + 3:  # noqa: ASYNC110 - another's counter
                await asyncio.sleep(0.01)
        other = copy.deepcopy(config) | {"models": config["models"][:2]}
        other["budgets"] = [{"name": "new", "scope": "team", "usd": 1.0}, *config["budgets"]]
        await reloaded(http, service, other)
        _, budgets = await asked(http, service, "GET", "/admin/budgets")
        (counter,) = budgets["budgets"][1]["counters"]
        assert counter["reserved"] > 0
        assert (await called(http, service, "steady"))[0] == 404
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}
        _, budgets = await asked(http, service, "GET", "/admin/budgets")
        (counter,) = budgets["budgets"][1]["counters"]
        assert (counter["reserved"], counter["spent"] > 0) == (0, True)
        assert service.stop() == 0
    assert "Traceback" not in service.log
