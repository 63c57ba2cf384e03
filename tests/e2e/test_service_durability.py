"""What was acknowledged survives `kill -9`, nothing is learned twice, and what was learned is the fold of the log."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
from killed_service import (
    CHAT_PATH,
    Traffic,
    assert_recorded_once,
    assert_same_learning,
    folded,
    post_all,
    snapshot_of,
)

ROUNDS = 5


def _config(trial, models=("good", "fair", "f500"), **more):
    pool = {
        "name": "auto",
        "models": list(models),
        "constraints": {"max_error_rate": 0.2, "min_accuracy": 0.3, "accuracy_evidence": "feedback"},
        "budget": {"usd_per_request": 0.0001},
        "policy": {"half_life_requests": 200, "exploration_floor": 0.1},
    }
    return {"models": [trial.model(name) for name in models], "pools": [pool], **more}


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
            assert set(await post_all(http, service.url, certain)) <= {"duplicate"}
            open_ = [i for i in decisions if i not in acknowledged]
            again = [{"decision_id": i, "quality": feedback.get((i, "tried"), 0.5)} for i in open_]
            assert set(await post_all(http, service.url, again)) <= {"recorded", "duplicate"}
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
    assert_recorded_once(service.events(), decisions)
    seq, learned = snapshot_of(service.data_dir)
    assert seq == service.events()[-1]["seq"]
    assert_same_learning(learned["auto"], folded(config, service.events())["auto"])


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
        assert set(await post_all(http, service.url, [{"decision_id": i, "quality": 0.5} for i in ids[:50]])) == {
            "recorded"
        }
        assert service.stop() == 0
    rewards = [event["payload"]["reward"] for event in service.events("feedback")]
    assert rewards == [pytest.approx(0.5)] * 50
    assert_same_learning(snapshot_of(service.data_dir)[1]["auto"], folded(config, service.events())["auto"])


async def _route(http, service):
    async with http.post(service.url + "/v1/route", json={"model": "auto"}) as response:
        return await response.json()
