"""What was acknowledged survives `kill -9`, nothing is learned twice, and what was learned is the fold of the log."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3

import aiohttp
import numpy as np
import orjson
import pytest

from bandit.snapshot import loads
from bandit.types import Arm, Decision, Feedback, Outcome, Price
from serving.pools import build_pool
from serving.settings import Settings

ROUNDS, WORKERS = 5, 6
CHAT_PATH = "/v1/chat/completions"


def _config(trial, models=("good", "fair", "f500"), **more):
    pool = {
        "name": "auto",
        "models": list(models),
        "constraints": {"max_error_rate": 0.2, "min_accuracy": 0.3, "accuracy_evidence": "feedback"},
        "budget": {"usd_per_request": 0.0001},
        "policy": {"half_life_requests": 200, "exploration_floor": 0.1},
    }
    return {"models": [trial.model(name) for name in models], "pools": [pool], **more}


def snapshot_of(data_dir):
    """(seq, state) of the newest snapshot, read from the file."""
    with contextlib.closing(sqlite3.connect(data_dir / "router.sqlite")) as connection:
        seq, payload = connection.execute("SELECT seq, payload FROM snapshots ORDER BY seq DESC LIMIT 1").fetchone()
    return seq, loads(payload)["pools"]


def folded(config, events):
    """The pools after all events from the first on: written anew here, with nothing of the service's own replay."""
    settings = Settings.parse(config)
    pools = {pool.name: build_pool(pool, settings) for pool in settings.pools}
    decisions, failed, answered, arms = {}, {}, {}, {model.name: model.to_arm() for model in settings.models}
    for event in events:
        row = dict(event["payload"])
        if event["kind"] == "decision":
            decisions[event["decision_id"]] = decision = Decision.from_row(row)
            if decision.mode == "bandit":
                pools[decision.pool].advance(decision)
            continue
        if event["kind"] not in ("outcome", "feedback"):
            _apply_of_no_decision(pools, arms, event["kind"], row)
            continue
        decision = decisions[event["decision_id"]]
        if decision.mode != "bandit":
            continue
        if event["kind"] == "outcome":
            failed[event["decision_id"]], answered[event["decision_id"]] = row["status"] != "ok", row["model"]
            pools[decision.pool].apply_outcome(decision, Outcome(**row), replay=True)
        elif not failed.get(event["decision_id"]):
            del row["reward"]
            model = answered.get(event["decision_id"])
            pools[decision.pool].apply_feedback(decision, Feedback(**row), model=model, replay=True)
    return {name: pool.state() for name, pool in pools.items()}


def _apply_of_no_decision(pools, arms, kind, row):
    if kind in ("model_added", "model_removed"):
        _change_models(pools, arms, row)
    elif kind == "benchmark_result":
        for pool in pools.values():
            if row["model"] in pool.names and row["error"] is None:
                pool.apply_benchmark(row["model"], row["quality"], row["category"])
    elif row["reason"] == "drift":
        pools[row["pool"]].apply_reset(row["model"], row["constraint_name"], row["evidence"])


def _change_models(pools, arms, row):
    if row["reason"] == "added" and row["pool"] is None:
        arms[row["model"]] = Arm(row["model"], Price(**row["definition"]["price"]))
    elif row["reason"] == "added":
        pools[row["pool"]].add_arm(arms[row["model"]], accuracy=row["accuracy"], samples=row["samples"] or 0)
    elif row["pool"] is not None:
        pools[row["pool"]].remove_arm(row["model"])


def assert_same_learning(one, two):
    """All that decides a later prediction; windows of detectors start anew with a process, and so are left out."""
    assert (one["step"], one["arms"]) == (two["step"], two["arms"])
    for name in ("gram", "moment", "square", "weight", "origin"):
        np.testing.assert_array_equal(one["heads"][name], two["heads"][name], err_msg=name)
    np.testing.assert_array_equal(one["heads"]["resets"], two["heads"]["resets"])
    for name in ("standing", "newcomers"):
        assert one[name] == two[name], name
    for kind, other in zip(one["bounds"], two["bounds"], strict=True):
        for residuals, others in zip(kind, other, strict=True):
            # In standard deviations, of predictions whose caches a restart rebuilds on another schedule.
            assert len(residuals) == len(others)
            np.testing.assert_allclose(residuals, others, atol=0.1)
    assert one["pacer"]["multiplier"] == two["pacer"]["multiplier"]
    np.testing.assert_array_equal(one["pacer"]["usd"], two["pacer"]["usd"])


class Traffic:
    """Callers who post feedback for what they are answered, and remember what was acknowledged."""

    def __init__(self, url, rng, decisions, feedback):
        self.url, self.rng, self.decisions, self.feedback = url, rng, decisions, feedback

    async def run(self):
        """Until the service is gone."""
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._caller(session, stream=i == 0) for i in range(WORKERS)))

    async def _caller(self, session, *, stream):
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while True:
                decision_id = await self._ask(session, stream=stream)
                if decision_id is None:
                    continue
                self.decisions.append(decision_id)
                quality = float(self.rng.integers(0, 5)) / 4
                await self._reward(session, decision_id, quality)
                if self.rng.random() < 0.2:
                    await self._reward(session, decision_id, 1.0 - quality)

    async def _ask(self, session, *, stream):
        body = {"model": "auto", "stream": stream, "messages": [{"role": "user", "content": f"{self.rng.random()}"}]}
        async with session.post(self.url + CHAT_PATH, json=body) as response:
            raw = await response.read()
            if response.status != 200:
                return None
            return response.headers["x-pointsman-decision-id"] if stream else orjson.loads(raw)["id"]

    async def _reward(self, session, decision_id, quality):
        item = {"decision_id": decision_id, "quality": quality, "revise": True}
        self.feedback[decision_id, "tried"] = quality
        async with session.post(self.url + "/reward", json=item) as response:
            assert response.status == 200, await response.text()
        self.feedback[decision_id] = quality


async def _post_all(http, url, items):
    """Rewards in batches: (status of each, in order)."""
    said = []
    for start in range(0, len(items), 1000):
        async with http.post(url + "/reward", json=items[start : start + 1000]) as response:
            assert response.status == 200
            said += [result["status"] for result in (await response.json())["results"]]
    return said


async def test_kill_under_load(run_service, trial, http, tmp_path):
    """Five times, at random moments, with snapshots in between."""
    config = _config(trial, store={"snapshot_every_events": 150}, log={"flush_interval_s": 0.2})
    rng = np.random.default_rng(20_240_811)
    decisions, feedback = [], {}
    for number in range(ROUNDS + 1):
        with run_service(config, tmp_path) as service:
            acknowledged = {key: value for key, value in feedback.items() if isinstance(key, str)}
            certain = [
                {"decision_id": decision_id, "quality": quality}
                for decision_id, quality in acknowledged.items()
                if feedback[decision_id, "tried"] == quality  # else a revision was on its way when the power failed
            ]
            assert set(await _post_all(http, service.url, certain)) <= {"duplicate"}
            open_ = [i for i in decisions if i not in acknowledged]
            again = [{"decision_id": i, "quality": feedback.get((i, "tried"), 0.5)} for i in open_]
            assert set(await _post_all(http, service.url, again)) <= {"recorded", "duplicate"}
            feedback |= {item["decision_id"]: item["quality"] for item in again}
            feedback |= {(item["decision_id"], "tried"): item["quality"] for item in again}
            if number == ROUNDS:
                assert service.stop() == 0
                break
            traffic = asyncio.create_task(Traffic(service.url, rng, decisions, feedback).run())
            await asyncio.sleep(0.15 + 0.5 * rng.random())
            service.kill()
            await traffic
    assert len(decisions) > 10 * ROUNDS
    assert "the snapshot" not in service.log
    replayed = [int(count) for count in re.findall(r"replayed (\d+) events", service.log)]
    assert len(replayed) == ROUNDS + 1
    assert sum(replayed) > 0
    _assert_recorded_once(service.events(), decisions)
    seq, learned = snapshot_of(service.data_dir)
    assert seq == service.events()[-1]["seq"]
    assert_same_learning(learned["auto"], folded(config, service.events())["auto"])


def _assert_recorded_once(events, decisions):
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [
        (e["kind"], e["decision_id"], e["payload"].get("revision"), e["payload"].get("attempt"))
        for e in events
        if e["decision_id"]
    ]
    assert len(kinds) == len(set(kinds))
    assert set(decisions) <= {event["decision_id"] for event in events if event["kind"] == "decision"}


async def _some_traffic(http, service, calls, offset=0):
    for i in range(calls):
        body = {"model": "auto", "messages": [{"role": "user", "content": f"number {i + offset}"}]}
        async with http.post(service.url + CHAT_PATH, json=body) as response:
            answer = await response.json()
        if response.status == 200:
            reward = {"decision_id": answer["id"], "quality": i % 3 / 2}
            async with http.post(service.url + "/reward", json=reward) as response:
                assert response.status == 200


async def test_a_clean_restart_replays_nothing_and_goes_on_where_it_stood(run_service, trial, http, tmp_path):
    config = _config(trial, ("good", "fair"))
    for number in range(2):
        with run_service(config, tmp_path) as service:
            assert service.log.count("replayed 0 events") == number + 1
            await _some_traffic(http, service, 40, 100 * number)
            assert service.stop() == 0
    seq, learned = snapshot_of(service.data_dir)
    assert (seq, learned["auto"]["step"]) == (service.events()[-1]["seq"], 80)
    assert_same_learning(learned["auto"], folded(config, service.events())["auto"])


async def test_a_changed_list_of_models_keeps_what_was_learned_of_those_that_stay(run_service, trial, http, tmp_path):
    """After a clean end and after a crash, whose tail of the log speaks of a model that is gone."""
    before, after = _config(trial, ("good", "fair")), _config(trial, ("renamed", "fair"))
    after["models"][0] = trial.model("renamed", upstream_model="good")
    with run_service(before, tmp_path) as service:
        await _some_traffic(http, service, 30)
        late = await _route(http, service)
        while late["model"] != "good":  # the one that will leave
            late = await _route(http, service)
        assert service.stop() == 0
    _, old = snapshot_of(service.data_dir)
    with run_service(after, tmp_path) as service:
        assert "starts without" not in service.log
        assert service.stop() == 0
    _, new = snapshot_of(service.data_dir)
    assert (new["auto"]["arms"], new["auto"]["step"]) == (["renamed", "fair"], old["auto"]["step"])
    for name in ("gram", "moment", "square", "weight"):
        np.testing.assert_array_equal(new["auto"]["heads"][name][:, 1], old["auto"]["heads"][name][:, 1])
        assert not new["auto"]["heads"][name][:, 0].any()
    with run_service(before, tmp_path) as service:
        await _some_traffic(http, service, 30)
        service.kill()
    with run_service(after, tmp_path) as service:
        await _some_traffic(http, service, 5)
        outcome = {"decision_id": late["decision_id"], "latency_s": 0.1, "input_tokens": 5, "output_tokens": 5}
        async with http.post(service.url + "/outcome", json=outcome) as response:
            assert response.status == 200  # also when it speaks of the model that has left
        async with http.post(service.url + "/reward", json=outcome | {"quality": 1.0}) as response:
            assert response.status == 422
        assert service.stop() == 0
    assert "Traceback" not in service.log


@pytest.mark.parametrize("snapshot_every", [40, 10**6])
async def test_models_that_come_and_go_are_part_of_the_fold(run_service, trial, http, tmp_path, snapshot_every):
    """Killed after each change, with snapshots behind it and without: what is learned is learned by the same models."""
    config = _config(trial, ("good", "fair"), store={"snapshot_every_events": snapshot_every})
    late = trial.model("late", upstream_model="good")
    changes = [
        ("POST", "", {"model": late, "pools": ["auto"], "accuracy": 0.75, "samples": 20}),
        ("DELETE", "/fair?pools=auto", None),
        ("POST", "", {"model": late | {"name": "later"}, "pools": ["auto"]}),
        ("DELETE", "/good", None),
    ]
    for number, (method, path, body) in enumerate(changes):
        with run_service(config, tmp_path) as service:
            await _some_traffic(http, service, 30, 100 * number)
            async with http.request(method, f"{service.url}/admin/models{path}", json=body) as response:
                assert response.status in (200, 201), await response.text()
            await _some_traffic(http, service, 30, 100 * number + 50)
            service.kill()
    with run_service(config, tmp_path) as service:
        assert service.stop() == 0
    _, learned = snapshot_of(service.data_dir)
    assert learned["auto"]["arms"] == ["late", "later"]
    assert_same_learning(learned["auto"], folded(config, service.events())["auto"])


async def test_what_was_learned_does_not_depend_on_the_cache(run_service, trial, http, tmp_path):
    """More decisions than memory holds, and feedback for the oldest of them: it is found in the store."""
    config = _config(trial, ("good", "fair"), store={"cache_decisions": 1000})
    with run_service(config, tmp_path) as service:
        ids = []
        for _ in range(11):
            answers = await asyncio.gather(*(_route(http, service) for _ in range(100)))
            ids += [answer["decision_id"] for answer in answers]
        outcome = {"latency_s": 0.5, "input_tokens": 10, "output_tokens": 10}
        for decision_id in ids[:50]:
            async with http.post(service.url + "/outcome", json={"decision_id": decision_id} | outcome) as response:
                assert response.status == 200
        assert set(await _post_all(http, service.url, [{"decision_id": i, "quality": 0.5} for i in ids[:50]])) == {
            "recorded"
        }
        assert service.stop() == 0
    rewards = [event["payload"]["reward"] for event in service.events("feedback")]
    assert rewards == [pytest.approx(0.5)] * 50
    assert_same_learning(snapshot_of(service.data_dir)[1]["auto"], folded(config, service.events())["auto"])


async def _route(http, service):
    async with http.post(service.url + "/v1/route", json={"model": "auto"}) as response:
        return await response.json()
