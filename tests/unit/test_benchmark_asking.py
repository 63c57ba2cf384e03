"""One item, asked and graded: other calls go on meanwhile."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from evaluation.benchmark_asking import Asking
from evaluation.benchmark_client import ServiceClient
from evaluation.benchmark_state import Result
from evaluation.grades import Message
from evaluation.suites import read_suite


@pytest.mark.parametrize(
    "grader",
    [
        {"kind": "json_schema"},  # 300 objects that differ take 44,850 comparisons
        {"kind": "python", "callable": "patient_grader:right"},
    ],
)
async def test_grading_that_takes_its_time_holds_up_no_other_call(grader, tmp_path, monkeypatch):
    """The loop goes round meanwhile; where grading held it, it would go round once or twice."""
    (tmp_path / "patient_grader.py").write_text(
        "import time\n\ndef right(text, answer, item):\n    time.sleep(0.05)\n    return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "s.jsonl"
    schema = {"type": "array", "uniqueItems": True}
    path.write_bytes(orjson.dumps({"id": "a", "prompt": "x", "answer": schema, "grader": grader}))
    (item,) = read_suite(path).items
    async with ServiceClient("http://127.0.0.1:9", None, timeout_s=1.0, connections=1) as client:
        asking = Asking(client, retries=0, stop=asyncio.Event(), tags="")
        message = Message(orjson.dumps([{"n": i} for i in range(300)]).decode())
        answer = Result("m", "a", None, "ungraded", error="judge_failed")
        grading = asyncio.create_task(asking.graded(item, answer, message))
        turns = 0
        while not grading.done():
            await asyncio.sleep(0)
            turns += 1
    assert grading.result().quality == 1.0
    assert turns > 10
