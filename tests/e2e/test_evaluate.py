"""`pointsman evaluate` as a process, against the real service in front of real upstreams."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time

import aiohttp
import pytest
from evaluate_stack import ADMIN_KEY, COST_USD, ROOT, TIMEOUT_S, by_model, running, write_suite

from evaluation.benchmark import chosen_items
from evaluation.recorded import RecordedSet, RecordedSource
from evaluation.suites import read_suite
from evaluation.upstreams import create_app
from tests.unit.recorded_folders import write_folder


@pytest.fixture
def recorded(tmp_path):
    """good: 1 for every prompt; fair: 0.5; poor: 0.1."""
    return write_folder(tmp_path / "recorded", {"good": 1.0, "fair": 0.5, "poor": 0.1})


@pytest.fixture
def stack(recorded, run_service, serve_in_thread, tmp_path):
    """In front of the recorded folder; 30 items."""
    source = RecordedSource(RecordedSet.load(recorded))
    with running(source, run_service, serve_in_thread, tmp_path) as stack:
        yield stack


async def test_a_run_grades_every_model_and_posts_every_result(stack, recorded):
    figures, text = stack.run(recorded, "--by-category", "--concurrency", "8")
    models = by_model(figures)
    assert {name: entry["accuracy"]["mean"] for name, entry in models.items()} == pytest.approx(
        {"good": 1.0, "fair": 0.5, "poor": 0.1}
    )
    assert {entry["accuracy"]["samples"] for entry in models.values()} == {30}
    assert models["fair"]["accuracy"]["low"] < 0.5 < models["fair"]["accuracy"]["high"]
    assert [category["category"] for category in models["good"]["categories"]] == ["code", "law", "math"]
    assert models["good"]["cost_usd_per_call"]["mean"] == pytest.approx(COST_USD)
    assert figures["cost_usd"] == pytest.approx(90 * COST_USD)
    assert (figures["ending"], figures["left_out"], figures["not_posted"]) == ("complete", 0, 0)
    results = stack.results()
    assert len({(result["model"], result["item_id"]) for result in results}) == len(results) == 90
    assert {result["run"] for result in results} == {figures["run"]}
    assert {result["suite"] for result in results} == {"recorded"}
    assert {result["output_tokens"] for result in results} == {100}
    decisions = [event["payload"] for event in stack.service.events("decision")]
    assert {decision["mode"] for decision in decisions} == {"pinned"}
    assert {decision["tags"]["benchmark_run"] for decision in decisions} == {figures["run"]}
    assert "good" in text
    assert "known cost: 0.09180 USD" in text


async def test_it_moves_a_model_out_of_the_feasible_set_and_back(run_service, serve_in_thread, tmp_path):
    """Fair is wrong on everything in the first run, and right on everything in the second."""
    folder = write_folder(tmp_path / "set", {"good": 1.0, "fair": {"r1": 0.0, "r2": 1.0}}, runs=("r1", "r2"))
    source = RecordedSource(RecordedSet.load(folder), run="r1")
    with running(source, run_service, serve_in_thread, tmp_path, constraints={"min_accuracy": 0.5}) as stack:

        async def state():
            async with aiohttp.ClientSession() as session, session.get(f"{stack.service.url}/admin/models") as response:
                models = (await response.json())["models"]
            return {model["name"]: model["pools"][0]["state"] for model in models}

        stack.run(folder)
        assert (await state())["fair"] == "filtered"
        await stack.control(run="r2")
        for _ in range(6):
            stack.run(folder)
        assert await state() == {"good": "admitted", "fair": "admitted"}


@pytest.fixture
def slow(run_service, serve_in_thread, tmp_path, recorded):
    """Each call takes 0.1 s."""
    source = RecordedSource(RecordedSet.load(recorded), models=["good", "fair"])
    with running(source, run_service, serve_in_thread, tmp_path, time_scale=0.2) as stack:
        yield stack


async def interrupted(stack, suite, number, after, *arguments):
    """(exit code, what it said) of a run that gets a signal once `after` calls have been started."""
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        stack.command(suite, "--concurrency", "2", *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        give_up_at = time.monotonic() + TIMEOUT_S
        while await stack.calls("good") + await stack.calls("fair") < after:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)
        process.send_signal(number)
        text, _ = await asyncio.to_thread(process.communicate, timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, text


async def test_ctrl_c_loses_nothing_and_resume_asks_nothing_twice(slow, recorded):
    code, text = await interrupted(slow, recorded, signal.SIGINT, 20)
    assert code == 130, text
    assert "stopping: waiting for the calls under way" in text
    assert "--resume" in text
    posted = len(slow.results())
    assert 18 <= posted < 60
    assert abs(await slow.calls("good") - await slow.calls("fair")) <= 2  # equally far
    _, said = slow.run(recorded, expect=2)
    assert "holds an unfinished run" in said
    figures, _ = slow.run(recorded, "--resume")
    assert figures["ending"] == "complete"
    assert (await slow.calls("good"), await slow.calls("fair")) == (30, 30)
    results = slow.results()
    assert len({(result["model"], result["item_id"]) for result in results}) == len(results) == 60
    assert {result["run"] for result in results} == {figures["run"]}
    slow.run(recorded, "--resume")
    assert await slow.calls("good") == 30


async def test_after_kill_9_only_what_was_under_way_is_asked_again(slow, recorded):
    code, _ = await interrupted(slow, recorded, signal.SIGKILL, 20)
    assert code == -9
    figures, _ = slow.run(recorded, "--resume")
    assert by_model(figures)["fair"]["accuracy"] == pytest.approx(
        by_model(figures)["fair"]["accuracy"] | {"mean": 0.5, "samples": 30}
    )
    assert 60 <= await slow.calls("good") + await slow.calls("fair") <= 62
    results = slow.results()
    assert len({(result["model"], result["item_id"]) for result in results}) == len(results) == 60


async def test_sigterm_ends_it_at_once_with_what_it_has(slow, recorded):
    code, _ = await interrupted(slow, recorded, signal.SIGTERM, 10, "--concurrency", "1")
    assert code == 143
    assert len(slow.results()) >= 9


async def test_a_failing_model_does_not_stop_the_others_and_is_tried_again_when_resumed(stack, recorded):
    await stack.control(faults={"fair": {"kind": "status-500"}})
    figures, text = stack.run(recorded, "--retries", "1", "--concurrency", "8", expect=1)
    models = by_model(figures)
    assert models["good"]["accuracy"]["samples"] == models["poor"]["accuracy"]["samples"] == 30
    assert models["fair"]["accuracy"]["samples"] == 0
    assert 10 <= sum(models["fair"]["errors"].values()) <= 18  # ten in a row, and those that were under way
    assert "fair could not be evaluated: 10 items in a row failed" in text
    assert {result["model"] for result in stack.results()} == {"good", "poor"}
    await stack.control(faults={"fair": None})
    figures, _ = stack.run(recorded, "--resume")
    assert by_model(figures)["fair"]["accuracy"]["samples"] == 30
    assert await stack.calls("good") == 30
    assert len(stack.results()) == 90


async def test_an_item_that_fails_in_passing_is_tried_again(stack, recorded):
    """Half of the calls fail; with ten further attempts, one in 2,000 items would still be lost."""
    await stack.control(faults={"fair": {"kind": "status-429", "share": 0.3}})
    figures, _ = stack.run(recorded, "--retries", "10", "--models", "fair", "--concurrency", "30")
    assert by_model(figures)["fair"]["accuracy"]["samples"] == 30
    assert await stack.calls("fair", "failed") > 0


async def test_a_single_failed_item_is_posted_as_an_error(stack, recorded):
    await stack.control(faults={"fair": {"kind": "status-400", "share": 0.2}})
    figures, _ = stack.run(recorded, "--models", "fair")
    fair = by_model(figures)["fair"]
    failed = sum(fair["errors"].values())
    assert 0 < failed < 20
    assert fair["accuracy"]["samples"] == 30 - failed
    results = stack.results()
    assert len(results) == 30
    assert [result["quality"] for result in results if result["error"]] == [None] * failed


async def test_the_budget_is_kept_and_what_is_left_out_is_said(stack, recorded):
    """Twenty calls cost 0.0204: the twentieth would just fit, 20.5 calls' worth admit 20."""
    budget_usd = 20.5 * COST_USD
    figures, text = stack.run(recorded, "--budget-usd", str(budget_usd), "--concurrency", "8")
    assert figures["ending"] == "budget"
    assert figures["cost_usd"] == pytest.approx(20 * COST_USD)
    assert figures["left_out"] == 70
    assert "stopped by --budget-usd; 70 answers are left out" in text
    asked = [await stack.calls(model) for model in ("good", "fair", "poor")]
    assert (sum(asked), max(asked) - min(asked)) == (20, 1)
    figures, _ = stack.run(recorded, "--resume", "--budget-usd", str(30 * COST_USD))
    assert figures["cost_usd"] == pytest.approx(30 * COST_USD)


async def test_a_sample_is_what_the_seed_says(stack, recorded):
    stack.run(recorded, "--sample", "5", "--seed", "7", "--models", "good")
    expected = {item.id for item in chosen_items(read_suite(recorded), 5, 7)}
    assert {result["item_id"] for result in stack.results()} == expected
    assert len(expected) == 5


def test_a_budget_without_a_known_cost_is_refused_before_the_first_call(
    recorded, run_service, serve_in_thread, tmp_path
):
    source = RecordedSource(RecordedSet.load(recorded))
    with running(source, run_service, serve_in_thread, tmp_path, priced=False) as stack:
        _, text = stack.run(recorded, "--budget-usd", "1", expect=2)
        assert "--budget-usd: cannot be kept: fair, good, poor has no price" in text
        assert stack.service.events("decision") == []


def test_the_admin_key_comes_from_the_environment(recorded, run_service, serve_in_thread, tmp_path):
    source = RecordedSource(RecordedSet.load(recorded), models=["good"])
    with running(source, run_service, serve_in_thread, tmp_path, auth=True) as stack:
        _, text = stack.run(recorded, expect=2)
        assert "knows no such key" in text
        _, text = stack.run(recorded, key="callers-key-1", expect=2)
        assert "wants its admin key" in text
        figures, text = stack.run(recorded, key=ADMIN_KEY)
        assert by_model(figures)["good"]["accuracy"]["samples"] == 30
        assert ADMIN_KEY not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "good,god"], "--models: the service has no model 'god'; there are fair, good, poor"),
        (["--pool", "other"], "--pool: the service has no pool 'other'; there are auto"),
        (["--pool", "auto", "--models", "good"], "--models and --pool: exclude each other"),
        (["--resume", "--restart"], "--resume and --restart: exclude each other"),
        (["--grader", "exact"], "--grader: a folder of recorded outcomes is graded by recorded"),
        (["--suite", "missing.jsonl"], "missing.jsonl: not found in"),
        (["--json", "no/such/folder.json"], "--json: no/such/folder.json cannot be written"),
        (["--url", "localhost:8080"], "--url: must be the service's base URL"),
        (["--url", "http://127.0.0.1:9"], "nothing usable answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_exit_code_2(stack, recorded, arguments, message):
    _, text = stack.run(recorded, *arguments, expect=2)
    assert message in " ".join(text.split())
    assert "Traceback" not in text
    assert stack.service.events("decision") == []


def test_another_server_than_this_service_is_said(stack, recorded):
    _, text = stack.run(recorded, "--url", stack.upstreams, expect=2)
    assert f"no Pointsman answers at {stack.upstreams}: GET /admin/models gave status 404" in " ".join(text.split())


def test_every_problem_of_a_suite_is_told_with_its_place(stack, tmp_path):
    suite = tmp_path / "bad.jsonl"
    suite.write_text('{"id": "a", "prompt": "x", "grader": "exact"}\n{"id": "a"\n')
    _, text = stack.run(suite, expect=2)
    assert "bad.jsonl: line 1, column answer: is missing" in text
    assert "bad.jsonl: line 2: is not valid JSON" in text


def test_a_service_that_stops_for_good_ends_the_run_which_can_be_resumed(slow, recorded, tmp_path):
    process = subprocess.Popen(
        slow.command(recorded, "--concurrency", "2", "--state", str(tmp_path / "s")),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while len(slow.service.events("outcome")) < 6:
            time.sleep(0.02)
        slow.service.kill()
        text, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "the service does not answer any more" in text
    assert "go on with: pointsman evaluate" in text


async def test_the_service_runs_a_suite_by_its_schedule(recorded, run_service, serve_in_thread, tmp_path, wait_until):
    """With its admin key, from the environment; once, for the next run is a day away."""
    source = RecordedSource(RecordedSet.load(recorded), models=["good", "fair"])
    suite = write_suite(
        tmp_path / "s.jsonl",
        [
            {"id": f"q{i}", "prompt": text, "grader": "recorded"}
            for i, text in enumerate(RecordedSet.load(recorded).prompts)
        ],
    )
    with serve_in_thread(create_app(source, time_scale=0.0)) as upstreams:
        config = {
            "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": "callers-key-1", "user": "ada"}]},
            "models": [{"name": name, "endpoint": f"{upstreams}/v1"} for name in source.models],
            "pools": [{"name": "auto", "models": list(source.models)}],
            "benchmarks": [{"suite": str(suite), "pool": "auto", "sample": 10}],
        }
        with run_service(config, tmp_path / "service") as service:
            await wait_until(lambda: "run is through" in service.log, TIMEOUT_S)
            results = [event["payload"] for event in service.events("benchmark_result")]
            assert {(r["model"], r["quality"]) for r in results} == {("good", 1.0), ("fair", 0.5)}
            assert len(results) == 20
            assert ADMIN_KEY not in service.log
