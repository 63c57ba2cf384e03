"""Graders by table: each row is an answer somebody could give, and the quality that it deserves."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.graders import KINDS, parse_grader
from evaluation.grades import GradingFailed, Message, ToolCall


def quality(grader, answer, text) -> float:
    message = text if isinstance(text, Message) else Message(text)
    return parse_grader(grader).prepare(answer)(message).quality


@pytest.mark.parametrize(
    ("grader", "answer", "text", "expected"),
    [
        ("exact", "Paris", "  Paris\n", 1),
        ("exact", "Paris", "paris", 0),
        ("exact", "Paris", "Paris.", 0),
        ({"kind": "exact", "ignore_case": True}, "Straße", "STRASSE", 1),
        ("exact", ["Paris", "Paname"], "Paname", 1),
        ("exact", 42, "42", 1),
        ("contains", ["red", "blue"], "blue and red", 1),
        ("contains", ["red", "blue"], "blue", 0),
        ({"kind": "contains", "match": "any"}, ["red", "blue"], "blue", 1),
        ({"kind": "contains", "match": "any"}, ["red", "blue"], "green", 0),
        ("contains", "Red", "red", 0),
        ({"kind": "contains", "ignore_case": True}, "Red", "it is red", 1),
        ("regex", r"\bcat\b", "a cat sat", 1),
        ("regex", r"\bcat\b", "concatenate", 0),
        ({"kind": "regex", "full": True}, r"\d+", " 42 ", 1),
        ({"kind": "regex", "full": True}, r"\d+", "42 apples", 0),
        ({"kind": "regex", "ignore_case": True}, "CAT", "cat", 1),
        ({"kind": "regex", "pattern": r"ANSWER: (.*)"}, "7", "ANSWER: 5\nANSWER: 7 ", 1),
        ({"kind": "regex", "pattern": r"ANSWER: (.*)"}, "5", "ANSWER: 5\nANSWER: 7 ", 0),
        ({"kind": "regex", "pattern": r"\d+"}, 7, "5 or 7", 1),
        ({"kind": "regex", "pattern": r"ANSWER: (.*)"}, "7", "no idea", 0),
        ("recorded", None, "words words\n(recorded quality 0.25)", 0.25),
        ("recorded", None, Message("", (ToolCall("f", '{"note": "(simulated quality 1.0)"}'),)), 1),
    ],
)
def test_texts_are_graded_by_their_words(grader, answer, text, expected):
    assert quality(grader, answer, text) == expected


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        ("**C**", "C"),
        ("(c).", "C"),
        ("The answer is (C)", "C"),
        ("The answer is **C**, as shown.", "C"),
        ("the correct answer is: C", "C"),
        ("Answer: C", "C"),
        ("Answer:\n\nC", "C"),
        ("The correct option is C) Paris", "C"),
        ("The answer is option C.", "C"),
        ("The answer is A because it fits", "A"),
        ("The answer is A. No, wait: the answer is C", "C"),
        ("Option A is wrong. Option B is wrong. The answer is C", "C"),
        ("The answer is C. I excluded (A) and (B).", "C"),
        (r"Hence $\boxed{C}$", "C"),
        (r"Hence $\boxed{\text{C}}$ and not (A)", "C"),
        ("Only (C) remains", "C"),
        ("First (A), then (C)", "C"),
        ("So **C)** it is", "C"),
        ("C) Paris", "C"),
        ("C. Paris", "C"),
        ("Let me think. A train leaves.\nC", "C"),
        ("A and B are wrong, so it must be C.", "C"),
        ("I'd go with **C", "C"),
        ("It is C, I think", None),
        ("It draws 12 A", None),
        ("Use the D.C.", None),
        ("The answer is a bit unclear", None),
        ("The answer is not clear", None),
        ("Answers vary", None),
        ("I do not know", None),
        ("Certainly", None),
        ("The answer is Z", None),
        ("", None),
    ],
)
def test_the_choice_is_the_last_letter_stated(text, letter):
    grade = parse_grader("choice").prepare(letter or "C")(Message(text))
    assert (grade.quality, grade.reason) == ((1.0, f"chose {letter}") if letter else (0.0, "states no choice"))


def test_a_choice_may_be_one_of_several_and_letters_may_be_others():
    assert quality("choice", ["A", "(b)"], "B") == 1
    assert quality({"kind": "choice", "letters": "VWXYZ"}, "Y", "The answer is Y") == 1


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        (42, "It is 42.", 1),
        (42, "41 or 42", 1),
        (41, "41 or 42", 0),
        (1234567.5, "$1,234,567.50", 1),
        (1234567, "1\u202f234\u202f567", 1),
        ("1,234", "1234", 1),
        (3, "1,2,3", 1),
        (-3, "x = -3", 1),
        (-3, "x = \u22123", 1),
        (-5, "-$5", 1),
        (25, "2024-07-25", 1),
        (0.5, "about .5", 1),
        ("3/4", "0.75", 1),
        (0.75, "3/4", 1),
        (0.75, r"\frac{3}{4}", 1),
        (-0.5, r"-\dfrac{1}{2}", 1),
        (1.5, "1 1/2", 1),
        (1.5, r"1\frac{1}{2}", 1),
        (7, r"so \boxed{7}, not 8", 1),
        (0.75, r"\boxed{\frac{3}{4}} of 5", 1),
        (8, r"\boxed{x} and 8", 1),
        (7, "2 + 5\n#### 7\n(in 3 steps)", 1),
        (12, "12%", 1),
        (0.12, "12 %", 1),
        (0.12, r"12\%", 1),
        ("12%", "12", 1),
        ("12%", "0.12", 1),
        ("12%", "12%", 1),
        ("12%", "0.12%", 0),
        (1500, "1.5e3", 1),
        (1500, "1.5 × 10^3", 1),
        (0.0015, r"1.5 \times 10^{-3}", 1),
        (3e8, "3.0 x 10^8 m/s", 1),
        (0.001, "10^{-3}", 1),
        (1024, "2^10.", 1),
        ("10^3", "1000", 1),
        (-4, "-2^2", 1),
        (12, "The area is 12 m^2", 1),
        (9.8, r"9.8\text{ m} s^{-2}", 1),
        (8, "x^2 + y^{10} = 8, since x^2 is less", 1),
        (7, "7 or 0^-1 or 10^9999", 1),
        (4, "GPT4", 0),
        (1, "1/0", 0),
        (1, "none", 0),
        (3.14, "3.1416", 0),
    ],
)
def test_the_number_is_the_last_one_stated(answer, text, expected):
    assert quality("numeric", answer, text) == expected


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({"tolerance": 0.01}, "3.149", 1),
        ({"tolerance": 0.01}, "3.151", 0),
        ({"relative_tolerance": 0.01}, "3.17", 1),
        ({"relative_tolerance": 0.01}, "3.18", 0),
        ({"tolerance": 0.5, "relative_tolerance": 0.01}, "3.6", 1),
    ],
)
def test_a_number_is_right_within_the_larger_tolerance(options, text, expected):
    """Of 3.14: ±0.01, or ±0.0314."""
    assert quality({"kind": "numeric", **options}, 3.14, text) == expected


SCHEMA = {
    "type": "object",
    "required": ["a"],
    "properties": {"a": {"type": "integer"}, "b": {"type": "string", "pattern": "^x"}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', 1),
        ('{"a": 1.0}', 1),
        ('{"a": 1.5}', 0),
        ('{"a": "1"}', 0),
        ("{}", 0),
        ("[]", 0),
        ('{"a": 1, "b": "xyz"}', 1),
        ('{"a": 1, "b": "yz"}', 0),
        ('Sure:\n```json\n{"a": 1}\n```\nDone.', 1),
        ('```\n{"a": "no"}\n```\nrather\n```\n{"a": 2}\n```', 1),
        ('Here it is: {"a": 3}. Bye.', 1),
        ("{'a': 1}", 0),
        ("no json", 0),
        ("", 0),
        ("[" * 5000 + "]" * 5000, 0),
    ],
)
def test_json_must_match_its_schema(text, expected):
    assert quality("json_schema", SCHEMA, text) == expected


def test_a_schema_may_be_a_text_and_refer_to_its_own_parts():
    schema = '{"$ref": "#/$defs/n", "$defs": {"n": {"type": "number", "minimum": 2}}}'
    assert quality("json_schema", schema, "3") == 1
    assert quality("json_schema", schema, "1") == 0


def test_nothing_is_fetched_for_a_schema():
    with pytest.raises(GradingFailed, match="the schema cannot be used"):
        quality("json_schema", {"$ref": "http://127.0.0.1:9/schema.json"}, "1")


@pytest.mark.parametrize("grader", ["regex", {"kind": "regex", "full": True}])
def test_a_pattern_that_would_take_hours_is_a_failed_grading(grader):
    with pytest.raises(GradingFailed, match="takes more than 1 s"):
        quality(grader, r"((a|a)*)*[bc]", "a" * 3000)


def calls(*made: tuple[str, str]) -> Message:
    return Message("", tuple(ToolCall(name, arguments) for name, arguments in made))


F = {"name": "geo.area", "arguments": {"base": 10, "height": 5}}
BERKELEY = {"geo.area": {"base": [10], "height": [5, 6], "unit": ["cm", ""]}}


@pytest.mark.parametrize(
    ("answer", "message", "expected"),
    [
        (F, calls(("geo.area", '{"base": 10, "height": 5.0}')), 1),
        (F, calls(("geo_area", '{"height": 5, "base": 10}')), 1),
        (F, calls(("geo.area", '{"base": "10", "height": 5}')), 0),
        (F, calls(("geo.area", '{"base": 10}')), 0),
        (F, calls(("geo.area", '{"base": 10, "height": 5, "unit": "cm"}')), 0),
        (F, calls(("geo.volume", '{"base": 10, "height": 5}')), 0),
        (F, calls(("geo.area", "not json")), 0),
        (F, calls(("geo.area", "[1]")), 0),
        (F, calls(("geo.area", '{"base": 10, "height": 5}'), ("geo.area", "{}")), 0),
        (F, Message("I will not call"), 0),
        (F, Message('{"name": "geo.area", "arguments": {"base": 10, "height": 5}}'), 1),
        (F, Message('```json\n[{"name": "geo.area", "parameters": {"base": 10, "height": 5}}]\n```'), 1),
        (
            F,
            Message(
                '{"tool_calls": [{"function": {"name": "geo.area", "arguments": "{\\"base\\":10,\\"height\\":5}"}}]}'
            ),
            1,
        ),
        (BERKELEY, calls(("geo.area", '{"base": 10, "height": 6}')), 1),
        (BERKELEY, calls(("geo.area", '{"base": 10, "height": 6, "unit": "cm"}')), 1),
        (BERKELEY, calls(("geo.area", '{"base": 10, "height": 6, "unit": "m"}')), 0),
        (BERKELEY, calls(("geo.area", '{"base": 10, "unit": "cm"}')), 0),
        ({"f": {"at": [{"x": [1, 2], "y": ["", 3]}]}}, calls(("f", '{"at": {"x": 2}}')), 1),
        ({"f": {"at": [{"x": [1, 2], "y": ["", 3]}]}}, calls(("f", '{"at": {"x": 2, "y": 4}}')), 0),
        ({"f": {"all": [[{"x": [1]}, {"x": [2]}]]}}, calls(("f", '{"all": [{"x": 1}, {"x": 2}]}')), 1),
        ({"name": "f", "arguments": {"x": {"any_of": [1, 2], "optional": True}}}, calls(("f", "{}")), 1),
        ({"name": "f", "arguments": {"x": {"any_of": [1, 2]}}}, calls(("f", "{}")), 0),
        ({"name": "f", "arguments": {"x": {"any_of": [1, 2]}}}, calls(("f", '{"x": 2}')), 1),
        ({"name": "f", "arguments": {"x": {"any_of": "text"}}}, calls(("f", '{"x": {"any_of": "text"}}')), 1),
        ({"name": "f"}, calls(("f", "")), 1),
        ({"name": "f", "arguments": {"x": True}}, calls(("f", '{"x": 1}')), 0),
        ({"name": "f", "arguments": {"x": None}}, calls(("f", '{"x": null}')), 1),
        ({"name": "f", "arguments": {"x": [1, [2]]}}, calls(("f", '{"x": [1, [2.0]]}')), 1),
        ({"name": "f", "arguments": {"x": [1, 2]}}, calls(("f", '{"x": [2, 1]}')), 0),
        ([], Message("Nothing fits."), 1),
        ([], calls(("f", "{}")), 0),
        ('[{"name": "f"}]', calls(("f", "{}")), 1),
    ],
)
def test_calls_are_compared_by_name_and_arguments(answer, message, expected):
    assert quality("function_call", answer, message) == expected


def test_parallel_calls_may_come_in_any_order():
    answer = [{"f": {"x": [1]}}, {"f": {"x": [2]}}, {"g": {}}]
    assert quality("function_call", answer, calls(("g", "{}"), ("f", '{"x": 2}'), ("f", '{"x": 1}'))) == 1
    assert quality("function_call", answer, calls(("g", "{}"), ("f", '{"x": 2}'), ("f", '{"x": 2}'))) == 0


def test_a_call_that_fits_two_expected_ones_is_given_to_the_one_that_has_no_other():
    """The first call fits both, the second only the first expected one: taking the first that fits would fail."""
    answer = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}]
    assert quality("function_call", answer, calls(("f", '{"x": 1}'), ("f", '{"x": 2}'))) == 1


def test_loose_text_ignores_case_spaces_and_punctuation():
    answer = {"name": "f", "arguments": {"city": "San Francisco, CA"}}
    made = calls(("f", '{"city": "san francisco CA"}'))
    assert quality("function_call", answer, made) == 0
    assert quality({"kind": "function_call", "loose_text": True}, answer, made) == 1


def half(text, answer, item):
    return 0.5 if (text, answer, item.get("message", {}).get("content")) == ("text", "answer", "text") else 0.0


def broken(text, answer, item):
    raise ValueError("of no use")


def nonsense(text, answer, item):
    return "good"


def test_a_function_of_ones_own_grades(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert quality({"kind": "python", "callable": "test_graders:half"}, "answer", "text") == 0.5


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "raised ValueError: of no use"), ("nonsense", "returned 'good'")]
)
def test_what_a_function_raises_or_a_result_that_is_none_is_a_failed_grading(name, message, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(GradingFailed, match=message):
        quality({"kind": "python", "callable": f"test_graders:{name}"}, "answer", "text")


def test_answers_of_trial_upstreams_without_a_grade_are_failed_gradings():
    with pytest.raises(GradingFailed, match="is for answers of trial upstreams"):
        quality("recorded", None, "an answer")


def test_every_kind_calls_itself_by_its_name():
    assert {name: kind.model_fields["kind"].default for name, kind in KINDS.items()} == {name: name for name in KINDS}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "a"}, Message("a")),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}]}, Message("ab")),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, calls(("f", "{}"))),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
            calls(("f", '{"x":1}')),
        ),
        ({}, Message("")),
        ({"content": 5, "tool_calls": "x"}, Message("")),
        ({"tool_calls": [None, {}, {"function": {"name": None}}]}, calls(("", ""))),
    ],
)
def test_a_message_is_read_for_what_it_holds(message, expected):
    assert Message.of(message) == expected
    assert Message.of(expected.to_json()) == expected
