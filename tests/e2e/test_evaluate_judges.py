"""`pointsman evaluate` with judges that are models of the service, and with graders of texts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess

import aiohttp
import numpy as np
import pytest
from evaluate_stack import COST_USD, ROOT, TIMEOUT_S, by_model, running, write_suite

from bandit.types import Price
from evaluation.answers import Answer


class Judges:
    """A pool of two: `writer` says what the prompt says; `judge` gives every answer a score of 0.75, or talks."""

    models = ("writer", "judge")
    runs = ()
    talks = False

    def run_at(self, elapsed_s: float) -> None:  # noqa: ARG002 - the Protocol's
        return None

    def use_run(self, run: str) -> None:
        raise NotImplementedError

    def price(self, model: str) -> Price:  # noqa: ARG002 - the Protocol's
        return Price(1.0, 10.0)

    def answer(self, model: str, prompt_text: str, category: str | None, rng: np.random.Generator, elapsed_s: float):
        del category, rng, elapsed_s
        text = prompt_text if model == "writer" else "Well done!" if self.talks else 'So: {"score": 0.75}'
        return Answer(text, 1.0, 0.0, 20, 100)


@pytest.fixture
def judges(run_service, serve_in_thread, tmp_path):
    source = Judges()
    with running(source, run_service, serve_in_thread, tmp_path) as stack:
        stack.source = source
        yield stack


async def test_a_judge_grades_through_the_service_and_its_cost_counts(judges, tmp_path):
    judge = {"kind": "judge", "model": "judge", "rubric": "Is it polite?"}
    suite = write_suite(
        tmp_path / "j.jsonl", [{"id": f"q{i}", "prompt": f"say {i}", "grader": judge} for i in range(6)]
    )
    figures, text = judges.run(suite, "--models", "writer")
    writer = by_model(figures)["writer"]
    assert writer["accuracy"]["mean"] == pytest.approx(0.75)
    assert (writer["cost_usd"], writer["judge_cost_usd"]) == pytest.approx((6 * COST_USD, 6 * COST_USD))
    assert figures["cost_usd"] == pytest.approx(12 * COST_USD)
    assert "for judges" in text
    assert await judges.calls("judge") == 6
    assert {result["model"] for result in judges.results()} == {"writer"}
    async with aiohttp.ClientSession() as session, session.get(f"{judges.upstreams}/control?last=1") as response:
        (request,) = (await response.json())["requests"]
    assert request["body"]["temperature"] == 0
    assert "Is it polite?" in request["body"]["messages"][0]["content"]
    assert re.search(r"<answer-\w{8}>\nsay ", request["body"]["messages"][1]["content"])


async def test_a_judge_counts_against_the_budget(judges, tmp_path):
    """Each item costs two calls: 7 calls' worth admit three."""
    judge = {"kind": "judge", "model": "judge"}
    suite = write_suite(tmp_path / "j.jsonl", [{"id": f"q{i}", "prompt": "say", "grader": judge} for i in range(6)])
    figures, _ = judges.run(suite, "--models", "writer", "--budget-usd", str(7 * COST_USD))
    assert (figures["ending"], figures["left_out"]) == ("budget", 3)
    assert figures["cost_usd"] == pytest.approx(6 * COST_USD)


async def test_a_judge_that_only_talks_ends_the_run_and_the_kept_answers_are_graded_when_resumed(judges, tmp_path):
    judges.source.talks = True
    judge = {"kind": "judge", "model": "judge"}
    suite = write_suite(tmp_path / "j.jsonl", [{"id": f"q{i}", "prompt": "say", "grader": judge} for i in range(20)])
    figures, text = judges.run(suite, "--models", "writer", "--concurrency", "1", expect=1)
    assert "10 gradings by a judge in a row failed, the last: the judge did not answer" in " ".join(text.split())
    assert by_model(figures)["writer"]["errors"] == {"judge_failed": 10}
    assert await judges.calls("writer") == 10
    judges.source.talks = False
    figures, _ = judges.run(suite, "--models", "writer", "--resume")
    assert by_model(figures)["writer"]["accuracy"]["samples"] == 20
    assert (await judges.calls("writer"), await judges.calls("judge")) == (20, 30)


async def test_text_graders_and_functions_of_ones_own(judges, tmp_path):
    """The writer answers with the prompt itself. A grading that fails is the item's error, not the run's."""
    module = tmp_path / "own_grader.py"
    module.write_text("def short(text, answer, item):\n    return len(text) < answer  # raises for a text\n")
    f = {"id": "f", "prompt": '{"name": "f", "arguments": {"x": 1}}', "answer": {"f": {"x": [1, 2]}}}
    own = {"kind": "python", "callable": "own_grader:short"}
    rows = [
        {"id": "n", "prompt": "the sum is 1,234.5", "answer": 1234.5, "grader": "numeric"},
        {"id": "c", "prompt": "The answer is (B)", "answer": "C", "grader": "choice", "category": "geo"},
        {"id": "j", "prompt": '{"a": 1}', "answer": {"required": ["a"]}, "grader": "json_schema"},
        f | {"grader": "function_call"},
        {"id": "p", "prompt": "short", "answer": 10, "grader": own},
        {"id": "b", "prompt": "short", "answer": "boom", "grader": own},
    ]  # fmt: skip
    suite = write_suite(tmp_path / "mixed.jsonl", rows)
    out = tmp_path / "out.json"
    command = judges.command(suite, "--models", "writer", "--json", str(out))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    writer = by_model(json.loads(out.read_bytes()))["writer"]
    assert writer["errors"] == {"grading_failed": 1}
    qualities = {result["item_id"]: result["quality"] for result in judges.results()}
    assert qualities == {"n": 1.0, "c": 0.0, "j": 1.0, "f": 1.0, "p": 1.0, "b": None}
