"""Laws of graders: no text makes one raise, or leave [0, 1]; what an answer means is not in its surroundings."""

from __future__ import annotations

import contextlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.graders import parse_grader
from evaluation.grades import GradingFailed, Message, ToolCall
from evaluation.grading_json import NOT_JSON, find_json
from evaluation.judge import Judge

SCHEMA = {
    "type": "object",
    "properties": {"a": {"multipleOf": 0.5, "minimum": 0}},
    "additionalProperties": {"$ref": "#"},
}
CALL = [{"f": {"x": [1, ""], "y": [{"z": [[1]]}]}}, {"name": "g", "arguments": {"n": None}}]
GRADINGS = {
    "exact": parse_grader({"kind": "exact", "ignore_case": True}).prepare("a"),
    "contains": parse_grader("contains").prepare(["a", "b"]),
    "choice": parse_grader("choice").prepare("C"),
    "numeric": parse_grader("numeric").prepare("12%"),
    "regex": parse_grader({"kind": "regex", "pattern": r"(\d+)?x"}).prepare("1"),
    "json_schema": parse_grader("json_schema").prepare(SCHEMA),
    "function_call": parse_grader("function_call").prepare(CALL),
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("axyzfg") | st.text(), inner, max_size=4)
    ),
)
WORDS = st.lists(
    st.sampled_from(
        ["The answer is ", "(C)", "**", "\\boxed{", "}", "####", "1,234", "-", "\u2212", "3/4", "/0", "%", "e999",
         " × 10^", "9" * 400, "\\frac{", "{", "[", "```", "json\n", '"a"', ":", "1", ".", " ", "\n", "C", "A", "null"]
    ),
    max_size=40,
).map("".join)  # fmt: skip
TEXTS = st.text() | WORDS | JSON.map(lambda value: orjson.dumps(value).decode())
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["f", "g", ""]), TEXTS), max_size=4).map(tuple)


@pytest.mark.parametrize("kind", GRADINGS)
@given(message=st.builds(Message, TEXTS, CALLS))
def test_no_answer_makes_a_grader_raise_or_leave_its_range(kind, message):
    grade = GRADINGS[kind](message)
    assert 0.0 <= grade.quality <= 1.0
    assert len(grade.reason) <= 200


@given(message=st.builds(Message, TEXTS, CALLS))
def test_a_judges_answer_is_a_grade_or_a_failed_grading(message):
    with contextlib.suppress(GradingFailed):
        assert 0.0 <= Judge(model="m", scale="1-10").verdict(message).quality <= 1.0


@pytest.mark.parametrize(
    "text", ["C" * 10**6, "(" * 10**6, "1" * 10**6, "1," * 10**6, "[" * 10**6, "```" * 10**6, "A " * 10**6]
)
@pytest.mark.parametrize("kind", GRADINGS)
def test_long_answers_are_graded_as_well(kind, text):
    assert 0.0 <= GRADINGS[kind](Message(text)).quality <= 1.0


@given(value=st.floats(-1e12, 1e12).map(lambda value: round(value, 3)))
def test_a_number_is_read_back_as_it_is_commonly_written(value):
    grading = parse_grader({"kind": "numeric", "tolerance": 1e-6}).prepare(value)
    for text in (f"{value:.3f}", f"{value:,.3f}", f"It is {value:.3f}.", f"\\boxed{{{value:,.3f}}} (5 steps)"):
        assert grading(Message(text)).quality == 1.0, text


@given(value=st.lists(JSON, max_size=3) | st.dictionaries(st.text(), JSON, max_size=3))
def test_json_is_found_in_a_fence(value):
    text = orjson.dumps(value).decode()
    if "```" not in text:
        assert find_json(f"Here:\n```json\n{text}\n```\nDone.") == value
    assert find_json(text) == value
    assert find_json("nothing") is NOT_JSON


@given(message=st.dictionaries(st.sampled_from(["content", "tool_calls", "role"]), JSON))
def test_any_message_can_be_read(message):
    read = Message.of(message)
    assert Message.of(read.to_json()) == read
