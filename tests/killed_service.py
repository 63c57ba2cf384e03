"""What tests of a service that is killed need: callers who remember what was acknowledged, and the fold of the log.

The fold is written anew here, with nothing of the service's own replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import aiohttp
import numpy as np
import orjson

from bandit.snapshot import loads
from bandit.types import Arm, Decision, Feedback, Outcome, Price
from serving.pools import build_pool
from serving.settings import Settings

WORKERS = 6
CHAT_PATH = "/v1/chat/completions"


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
    assert (one["pacer"] is None) == (two["pacer"] is None)
    if one["pacer"] is not None:
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


async def post_all(http, url, items):
    """Rewards in batches: (status of each, in order)."""
    said = []
    for start in range(0, len(items), 1000):
        async with http.post(url + "/reward", json=items[start : start + 1000]) as response:
            assert response.status == 200
            said += [result["status"] for result in (await response.json())["results"]]
    return said


def assert_recorded_once(events, decisions):
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [
        (e["kind"], e["decision_id"], e["payload"].get("revision"), e["payload"].get("attempt"))
        for e in events
        if e["decision_id"]
    ]
    assert len(kinds) == len(set(kinds))
    assert set(decisions) <= {event["decision_id"] for event in events if event["kind"] == "decision"}
