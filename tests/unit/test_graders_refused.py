"""Graders that cannot work are refused before anything is asked."""

from __future__ import annotations

import pytest

from bandit.errors import InvalidInput
from evaluation.graders import parse_grader


@pytest.mark.parametrize(
    ("grader", "answer", "message"),
    [
        ("exat", "x", "grader: no kind is called 'exat' \\(did you mean 'exact'\\?\\); there are exact, "),
        (5, "x", "grader: must be a name, or an object"),
        ({"tolerance": 1}, 1, "grader: must be a name, or an object"),
        ('{"kind": "exact"', "x", "grader: is not valid JSON"),
        (
            {"kind": "numeric", "tolerence": 1},
            1,
            "grader.tolerence: numeric has no such option \\(did you mean 'tolerance",
        ),
        ({"kind": "numeric", "tolerance": "1"}, 1, "grader.tolerance: input should be a valid number"),
        ({"kind": "numeric", "tolerance": -1}, 1, "grader.tolerance: input should be greater than or equal to 0"),
        ("numeric", "many", "answer: must be a number"),
        ("numeric", True, "answer: must be a number"),
        ("numeric", float("inf"), "answer: must be a number"),
        ("exact", [], "answer: must be a text or number, or a list"),
        ("exact", {"a": 1}, "answer: must be a text or number, or a list"),
        ("contains", "", "answer: must hold no empty text"),
        ("choice", "Z", "answer: must be one letter of ABCDEFGHIJ, not 'Z'"),
        ("choice", "AB", "answer: must be one letter"),
        ({"kind": "choice", "letters": "abc"}, "A", "grader.letters: string should match"),
        ("regex", "(", "answer: is not a valid pattern: missing \\)"),
        ("regex", 1, "answer: must be the pattern"),
        ({"kind": "regex", "pattern": "["}, "x", "grader.pattern: is not a valid pattern"),
        ("json_schema", "{", "answer: is not valid JSON"),
        ("json_schema", [1], "answer: must be a JSON schema"),
        ("json_schema", {"type": "strin"}, "answer: is not a valid JSON schema: \\$.type: 'strin' is not valid"),
        ("json_schema", {"pattern": "("}, "answer: is not a valid JSON schema: \\$.pattern"),
        ("function_call", "x", "answer: is not valid JSON"),
        ("function_call", [1], "answer\\[0\\]: must be an object such as"),
        ("function_call", {"name": "f", "arguments": [1]}, "answer\\[0\\].arguments: must be an object"),
        ("function_call", {"f": {"x": 1}}, "answer\\[0\\]: must be"),
        ("function_call", {}, "answer\\[0\\]: must be"),
        ({"kind": "python"}, "x", "grader.callable: field required"),
        ({"kind": "python", "callable": "os.system"}, "x", "grader.callable: string should match"),
        (
            {"kind": "python", "callable": "nowhere.at.all:f"},
            "x",
            "grader.callable: cannot be imported: ModuleNotFound",
        ),
        ({"kind": "python", "callable": "math:nothing"}, "x", "grader.callable: cannot be imported: AttributeError"),
        ({"kind": "python", "callable": "math:pi"}, "x", "grader.callable: math:pi is not callable"),
        ("judge", "x", "grader.model: field required"),
        ({"kind": "judge", "model": "m", "scale": "1-5"}, "x", "grader.scale: input should be '0-1' or '1-10'"),
    ],
)
def test_a_grader_that_cannot_work_is_refused_by_the_path_of_what_is_wrong(grader, answer, message):
    with pytest.raises(InvalidInput, match=message):
        parse_grader(grader).prepare(answer)
