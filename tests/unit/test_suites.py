"""Suites as files: what is read, and how everything that is wrong with one is told by its place."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import orjson
import pytest

from bandit.errors import InvalidInput
from evaluation import suites
from evaluation.graders import KINDS
from evaluation.grades import Message
from evaluation.suite_rows import MAX_ITEMS
from evaluation.suites import SuiteProblems, read_suite
from tests.unit.recorded_folders import write_folder

GOOD = {"id": "q1", "prompt": "1 + 1?", "answer": 2, "grader": "numeric"}


def written(folder: Path, *rows, name="s.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, bytes) else orjson.dumps(row) for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def parquet(folder: Path, select: str) -> Path:
    path = folder / "s.parquet"
    duckdb.sql(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path


def test_a_suite_of_json_lines(tmp_path):
    path = written(
        tmp_path,
        b"\xef\xbb\xbf" + orjson.dumps(GOOD),
        b"",
        {
            "id": 2,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"}],
            "category": "geo",
            "answer": "Paris",
            "max_tokens": 5,
            "temperature": 0,
            "metadata": {"source": "mine"},
        },
    )
    suite = read_suite(path, grader="contains")
    first, second = suite.items
    assert (suite.name, len(suite)) == ("s", 2)
    assert (first.id, first.category, first.body) == ("q1", None, {"messages": [{"role": "user", "content": "1 + 1?"}]})
    assert first.grading(Message("It is 2.")).quality == 1
    assert (second.id, second.category, second.options.kind) == ("2", "geo", "contains")
    assert second.body["messages"][1]["content"] == "Capital?"
    assert (second.body["max_tokens"], second.body["temperature"]) == (5, 0)


def test_a_suite_of_parquet_with_structs(tmp_path):
    path = parquet(
        tmp_path,
        "SELECT 7 AS id, [{'role': 'user', 'content': 'hi'}] AS messages, 'x' AS category, 1.5::DECIMAL(4,2) AS answer,"
        " {'kind': 'numeric', 'tolerance': 0.1} AS grader"
        " UNION ALL SELECT 8, [{'role': 'user', 'content': 'ho'}], NULL,"
        " 2, {'kind': 'numeric', 'tolerance': NULL} ORDER BY id",
    )
    first, second = read_suite(path).items
    assert (first.id, first.answer, first.options.tolerance) == ("7", 1.5, 0.1)
    assert first.body == {"messages": [{"role": "user", "content": "hi"}]}
    assert (second.category, second.options.tolerance) == (None, 1e-9)


def test_a_suite_of_parquet_with_json_in_texts(tmp_path):
    rows = [
        {
            "id": "a",
            "messages": '[{"role": "user", "content": "call f"}]',
            "answer": '[{"name": "f"}]',
            "grader": '{"kind": "function_call"}',
            "tools": '[{"type": "function", "function": {"name": "f"}}]',
        }
    ]
    written(tmp_path, *rows, name="rows.json")
    texts = {"id", "messages", "answer", "grader", "tools"}
    table = duckdb.read_json(str(tmp_path / "rows.json"), columns=dict.fromkeys(sorted(texts), "VARCHAR"))
    table.write_parquet(str(tmp_path / "s.parquet"))
    (item,) = read_suite(tmp_path / "s.parquet").items
    assert item.body["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert item.body["messages"] == [{"role": "user", "content": "call f"}]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": None}, "column id: is missing"),
        ({"id": ""}, "column id: must be a text of 1 to 256 printable characters"),
        ({"id": "a\nb"}, "column id: must be a text of 1 to 256 printable characters"),
        ({"id": True}, "column id: must be a text"),
        ({"prompt": None}, "column prompt: is missing; give prompt, a text, or messages"),
        ({"prompt": ""}, "column prompt: must be a text that is not empty"),
        ({"prompt": ["x"]}, "column prompt: must be a text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "column messages: stands beside prompt"),
        ({"prompt": None, "messages": []}, "column messages: must be a list"),
        ({"prompt": None, "messages": "[{"}, "column messages: is a text, but not valid JSON"),
        ({"prompt": None, "messages": [{"content": "x"}]}, "column messages[0]: must be an object with a role"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "column messages[0].content: must be a text"),
        ({"answer": None}, "column answer: is missing; the grader numeric compares with it"),
        ({"answer": "two"}, "column answer: must be a number"),
        ({"category": ""}, "column category: must be a text of 1 to 64"),
        ({"category": "x" * 65}, "column category: must be a text of 1 to 64"),
        ({"category": 5}, "column category: must be a text of 1 to 64"),
        ({"grader": None}, "column grader: is missing; give the column, or one for all with --grader"),
        ({"grader": "numeral"}, "column grader: no kind is called 'numeral' (did you mean 'numeric'?)"),
        ({"grader": {"kind": "numeric", "tol": 1}}, "column grader.tol: numeric has no such option"),
        ({"grader": "regex", "answer": "("}, "column answer: is not a valid pattern"),
        ({"grader": "json_schema", "answer": {"type": 5}}, "column answer: is not a valid JSON schema"),
        ({"max_tokens": 0}, "column max_tokens: must be a whole number from 1"),
        ({"max_tokens": True}, "column max_tokens: must be a whole number from 1"),
        ({"temperature": 3}, "column temperature: must be a number from 0 to 2"),
        ({"tools": {"type": "function"}}, "column tools: must be a list of objects"),
        ({"response_format": "json"}, "column response_format: is a text, but not valid JSON"),
        ({"response_format": []}, "column response_format: must be an object"),
        ({"categry": "x"}, "column categry: is unknown; did you mean 'category'?"),
        ({"source": "x"}, "column source: is unknown; what you want to keep goes into 'metadata'"),
    ],
)
def test_a_problem_names_file_line_and_column(tmp_path, row, problem):
    path = written(tmp_path, GOOD, b"", GOOD | {"id": "q2"} | row)
    with pytest.raises(SuiteProblems) as refused:
        read_suite(path)
    assert len(refused.value.problems) == 1
    assert str(refused.value).startswith(f"s.jsonl: line 3, {problem}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": "q2", ', "line 2: is not valid JSON: "),
        (b"[1]", "line 2: must be a JSON object"),
        (b'{"id": "caf\xe9"}', "line 2: is not UTF-8: byte 12 of the line"),
        (orjson.dumps(GOOD), "line 2, column id: 'q1' is also that of line 1; each must be unique"),
    ],
)
def test_a_line_that_is_no_row(tmp_path, line, problem):
    with pytest.raises(SuiteProblems) as refused:
        read_suite(written(tmp_path, GOOD, line))
    assert str(refused.value).startswith(f"s.jsonl: {problem}")


def test_a_problem_in_parquet_names_the_row(tmp_path):
    path = parquet(
        tmp_path, "SELECT 'a' AS id, 'x' AS prompt, 'y' AS answer UNION ALL SELECT 'b', NULL, 'y' ORDER BY id"
    )
    with pytest.raises(SuiteProblems) as refused:
        read_suite(path, grader="exact")
    assert str(refused.value) == "s.parquet: row 2, column prompt: is missing; give prompt, a text, or messages"


def test_all_problems_are_told_at_once_up_to_twenty(tmp_path):
    path = written(tmp_path, *[{"id": f"q{i}", "grader": "exact"} for i in range(30)])
    with pytest.raises(SuiteProblems) as refused:
        read_suite(path)
    assert len(refused.value.problems) == 20
    assert refused.value.more == 40  # each line lacks prompt and answer
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("s.jsonl: line 1, column prompt")
    assert lines[1].startswith("s.jsonl: line 1, column answer")
    assert lines[-1] == "s.jsonl: and 40 more"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("s.jsonl", b"", "s.jsonl: holds no item"),
        ("s.jsonl", b"\n \n", "s.jsonl: holds no item"),
        ("s.parquet", b"not parquet", "s.parquet: cannot be read as Parquet"),
        ("s.csv", b"id,prompt", "s.csv: must end in .jsonl, .ndjson or .parquet"),
        ("s.jsonl", None, "s.jsonl: not found in "),
    ],
)
def test_a_file_that_is_no_suite(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=problem):
        read_suite(tmp_path / name)


def test_a_suite_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.suite_rows.MAX_ITEMS", 2)
    path = written(tmp_path, GOOD, GOOD | {"id": "q2"}, GOOD | {"id": "q3"})
    with pytest.raises(InvalidInput, match=r"s.jsonl: line 3: a suite has at most 2 items"):
        read_suite(path)
    monkeypatch.setattr("evaluation.suite_rows.MAX_SUITE_BYTES", 2**20)
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(InvalidInput, match=r"s.jsonl: is larger than 1 MiB"):
        read_suite(path)
    assert MAX_ITEMS == 100_000


def test_the_digest_is_that_of_what_is_asked_and_how_it_is_graded(tmp_path):
    def digest(*rows, **more):
        return read_suite(written(tmp_path, *rows), **more).digest

    base = digest(GOOD)
    assert digest({name: GOOD[name] for name in reversed(GOOD)}) == base  # the order of columns says nothing
    assert digest(GOOD | {"metadata": 1}) == base
    assert digest(GOOD | {"grader": {"kind": "numeric"}}) == base
    others = [GOOD | {"prompt": "2 + 2?"}, GOOD | {"answer": 3}, GOOD | {"category": "x"}, GOOD | {"temperature": 1}]
    others.append(GOOD | {"grader": {"kind": "numeric", "tolerance": 1}})
    assert len({base, *map(digest, others)}) == 6
    without = {name: value for name, value in GOOD.items() if name != "grader"}
    assert digest(without, grader="numeric") == base
    assert digest(without, grader="exact") != base


@pytest.mark.parametrize("grader", ["numeral", "{", '{"kind": "numeric", "tol": 1}'])
def test_a_bad_default_grader_is_named_as_the_option_it_came_by(tmp_path, grader):
    with pytest.raises(InvalidInput, match=r"^--grader: "):
        read_suite(written(tmp_path, GOOD), grader=grader)


def test_a_folder_of_recorded_outcomes_is_a_suite(tmp_path):
    suite = read_suite(write_folder(tmp_path / "recorded", {"a": 1.0}))
    assert (suite.name, len(suite), suite.notes) == ("recorded", 30, ())
    first = suite.items[0]
    assert (first.id, first.category, first.options.kind) == ("p0", "math", "recorded")
    assert first.body == {"messages": [{"role": "user", "content": "what is 0 times seven"}]}
    assert first.grading(Message("(recorded quality 0.5)")).quality == 0.5
    with pytest.raises(InvalidInput, match="--grader: a folder of recorded outcomes is graded by recorded"):
        read_suite(tmp_path / "recorded", grader="exact")


def test_of_several_prompts_with_one_text_the_first_stays(tmp_path):
    folder = write_folder(tmp_path / "recorded", {"a": 1.0})
    path = folder / "prompts.parquet"
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE p AS SELECT * FROM read_parquet(?)", [str(path)])
        connection.execute("UPDATE p SET prompt = 'same' WHERE prompt_id IN ('p3', 'p5', 'p9')")
        connection.execute(f"COPY p TO '{path}' (FORMAT parquet)")
    suite = read_suite(folder)
    assert len(suite) == 28
    assert [item.id for item in suite.items if item.body["messages"][0]["content"] == "same"] == ["p3"]
    assert suite.notes == ("2 prompts are left out: others before them have the same text",)


def test_a_judges_item_is_graded_through_the_service(tmp_path):
    (item,) = read_suite(written(tmp_path, {"id": "a", "prompt": "x", "grader": {"kind": "judge", "model": "m"}})).items
    assert item.grading is None
    assert item.judge.model == "m"
    assert suites.MAX_PROBLEMS == 20


README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_suite_in_the_readme_is_one(tmp_path):
    (example,) = re.findall(r"```jsonl\n(.*?)```", README, re.DOTALL)
    (tmp_path / "suite.jsonl").write_text(example)
    assert [item.options.kind for item in read_suite(tmp_path / "suite.jsonl").items] == ["numeric", "choice", "judge"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_has_each_grader_with_its_options(kind):
    (row,) = re.findall(rf"^\| `{kind}` \|.*$", README, re.MULTILINE)
    options = {field.alias or name for name, field in KINDS[kind].model_fields.items()} - {"kind"}
    assert [option for option in sorted(options) if f"`{option}" not in row] == []
