"""A suite: prompts with a way to grade answers, read from JSON lines, Parquet, or a folder of recorded outcomes.

Owns what its columns mean. Every problem names file, row and column, and up to MAX_PROBLEMS are told at once. Never
asks a model anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import orjson

from bandit.errors import InvalidInput
from evaluation.graders import Python, parse_grader
from evaluation.grades import GraderOptions, Grading
from evaluation.grading_json import JsonSchema
from evaluation.grading_text import Recorded
from evaluation.judge import Judge
from evaluation.recorded import RecordedSet
from evaluation.suite_rows import Row, read_rows

__all__ = ["MAX_PROBLEMS", "Item", "Suite", "SuiteProblems", "read_suite", "suite_of"]

MAX_PROBLEMS: Final = 20
MAX_ID: Final = 256
MAX_CATEGORY: Final = 64
_CALL_OPTIONS: Final = ("tools", "max_tokens", "temperature", "response_format")
_COLUMNS: Final = ("id", "messages", "prompt", "category", "answer", "grader", *_CALL_OPTIONS, "metadata")


class SuiteProblems(InvalidInput):
    """What is wrong with a suite: all of it, up to MAX_PROBLEMS; `problems` are sentences, `more` are not told."""

    def __init__(self, name: str, problems: list[str], more: int) -> None:
        lines = [f"{name}: {problem}" for problem in problems]
        if more:
            lines.append(f"{name}: and {more} more")
        super().__init__(name, "\n".join(lines).removeprefix(f"{name}: "))
        self.problems, self.more = problems, more


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One prompt: the body of its call without `model`, and how its answers are graded.

    `grading` None: by `judge`. `answer` is the column as it stood there.
    """

    id: str
    category: str | None
    body: Mapping[str, Any]
    answer: Any
    options: GraderOptions
    grading: Grading | None

    @property
    def judge(self) -> Judge | None:
        """Who grades it through the service, if somebody does."""
        return self.options if isinstance(self.options, Judge) else None

    @property
    def may_block(self) -> bool:
        """Whether grading may take its time: code of the suite's author, or a schema such as one of unique items."""
        return isinstance(self.options, Python | JsonSchema)


@dataclass(frozen=True, slots=True, eq=False)
class Suite:
    """Items in their file's order. `digest` is that of all that decides what is asked and how it is graded."""

    name: str
    items: tuple[Item, ...]
    digest: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


def read_suite(path: str | Path, *, grader: str | None = None, name: str | None = None) -> Suite:
    """The suite in a file, or in a folder of recorded outcomes; `grader` is for rows without one.

    `name`: default the file's, without its ending. Raises InvalidInput, and SuiteProblems with all of them.
    """
    path = Path(path)
    default = None if grader is None else _default_grader(grader)
    name = (path.resolve().name if path.is_dir() else path.stem) if name is None else name
    if not name or len(name) > MAX_ID or not name.isprintable():
        raise InvalidInput("--suite-name", f"must be 1 to {MAX_ID} printable characters, not {name!r:.80}")
    if path.is_dir():
        if grader not in (None, "recorded"):
            raise InvalidInput("--grader", "a folder of recorded outcomes is graded by recorded; leave it out")
        return suite_of(RecordedSet.load(path), name)
    return _suite(name, path.name, read_rows(path), default)


def suite_of(recorded: RecordedSet, name: str) -> Suite:
    """Every prompt of recorded outcomes, graded by the mark that the trial upstreams' answers carry.

    Of several prompts with one text only the first: the upstreams know a prompt by its text, and serve that one.
    """
    seen: set[str] = set()
    rows: list[Row] = []
    listed = zip(recorded.prompt_ids, recorded.prompts, recorded.categories, strict=True)
    for i, (prompt_id, prompt, category) in enumerate(listed, start=1):
        if prompt not in seen:
            seen.add(prompt)
            rows.append((f"row {i}", {"id": prompt_id, "prompt": prompt, "category": category or None}))
    left_out = len(recorded.prompts) - len(rows)
    notes = (f"{left_out} prompts are left out: others before them have the same text",) if left_out else ()
    return _suite(name, "prompts.parquet", rows, Recorded(), notes)


def _suite(
    name: str, file: str, rows: Iterable[Row], default: GraderOptions | None, notes: tuple[str, ...] = ()
) -> Suite:
    items: list[Item] = []
    places: dict[str, str] = {}
    problems: list[str] = []
    more, digest, empty = 0, hashlib.sha256(), True
    for place, row in rows:
        empty = False
        found: list[InvalidInput] = []
        item = row if isinstance(row, InvalidInput) else _item(row, default, found)
        if isinstance(item, InvalidInput):
            told = [f"{place}: {str(item).removeprefix('row: ')}"]
        else:
            if item is not None and item.id in places:
                found.append(InvalidInput("id", f"{item.id!r} is also that of {places[item.id]}; each must be unique"))
            told = [f"{place}, column {problem}" for problem in found]
            if item is not None and not found:
                places[item.id] = place
                items.append(item)
                digest.update(_canonical(item))
        room = MAX_PROBLEMS - len(problems)
        problems += told[:room]
        more += len(told[room:])
    if problems:
        raise SuiteProblems(file, problems, more)
    if empty:
        raise InvalidInput(file, "holds no item; write one JSON object a line")
    return Suite(name, tuple(items), digest.hexdigest(), notes)


def _item(row: Mapping[str, Any], default: GraderOptions | None, found: list[InvalidInput]) -> Item | None:
    """The item a row says; None, and what is wrong in `found`, where it is not sound."""
    for column in row:
        if column not in _COLUMNS:
            near = get_close_matches(column, _COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "what you want to keep goes into 'metadata'"
            found.append(InvalidInput(column, f"is unknown; {hint}"))
    item_id = _checked(found, _id, row.get("id"))
    category = _checked(found, _category, row.get("category"))
    body = {"messages": _checked(found, _messages, row)}
    for name in _CALL_OPTIONS:
        if row.get(name) is not None:
            body[name] = _checked(found, _call_option, name, row[name])
    answer = row.get("answer")
    options = _checked(found, _grader, row.get("grader"), default)
    if options is None:
        return None
    if answer is None and options.needs_answer:
        found.append(InvalidInput("answer", f"is missing; the grader {options.kind} compares with it"))
        return None
    grading = _checked(found, _grading, options, answer, row, body["messages"])
    if found or item_id is None:
        return None
    return Item(item_id, category, body, answer, options, grading)


def _checked(found: list[InvalidInput], check: Any, *arguments: Any) -> Any:
    """What `check` returns; None, and its problem in `found`, where it raises one."""
    try:
        return check(*arguments)
    except InvalidInput as problem:
        found.append(problem)
        return None


def _id(value: Any) -> str:
    if value is None:
        raise InvalidInput("id", "is missing; each item needs one of its own")
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_ID or not text.isprintable():
        raise InvalidInput("id", f"must be a text of 1 to {MAX_ID} printable characters, not {value!r:.60}")
    return text


def _category(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_CATEGORY or not value.isprintable():
        raise InvalidInput("category", f"must be a text of 1 to {MAX_CATEGORY} printable characters, not {value!r:.60}")
    return value


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if prompt is not None and messages is not None:
        raise InvalidInput("messages", "stands beside prompt; give one of the two")
    if messages is None:
        if prompt is None:
            raise InvalidInput("prompt", "is missing; give prompt, a text, or messages")
        if not isinstance(prompt, str) or not prompt:
            raise InvalidInput("prompt", f"must be a text that is not empty, not {prompt!r:.60}")
        return [{"role": "user", "content": prompt}]
    messages = _from_text("messages", messages)
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages", 'must be a list such as [{"role": "user", "content": "…"}]')
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidInput(f"messages[{i}]", "must be an object with a role and content")
        content = message.get("content")
        if not (isinstance(content, str | list) or (content is None and message["role"] == "assistant")):
            raise InvalidInput(f"messages[{i}].content", "must be a text or a list of parts")
    return messages


def _call_option(name: str, value: Any) -> Any:
    value = _from_text(name, value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "max_tokens" and not (number and isinstance(value, int) and value >= 1):
        raise InvalidInput(name, f"must be a whole number from 1, not {value!r:.60}")
    if name == "temperature" and not (number and 0.0 <= value <= 2.0):
        raise InvalidInput(name, f"must be a number from 0 to 2, not {value!r:.60}")
    if name == "tools" and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
        raise InvalidInput(name, "must be a list of objects")
    if name == "response_format" and not isinstance(value, dict):
        raise InvalidInput(name, "must be an object")
    return value


def _grader(value: Any, default: GraderOptions | None) -> GraderOptions:
    if value is not None:
        return parse_grader(value)
    if default is None:
        raise InvalidInput("grader", "is missing; give the column, or one for all with --grader")
    return default


def _default_grader(text: str) -> GraderOptions:
    try:
        return parse_grader(text)
    except InvalidInput as problem:
        raise InvalidInput("--grader", str(problem).removeprefix("grader: ")) from None


def _grading(options: GraderOptions, answer: Any, row: Mapping[str, Any], messages: Any) -> Grading | None:
    if isinstance(options, Judge):
        return None
    if isinstance(options, Python):
        return options.prepare_with(answer, {**row, "messages": messages})
    return options.prepare(answer)


def _from_text(column: str, value: Any) -> Any:
    """A column's value, parsed where a file has JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(column, f"is a text, but not valid JSON: {error}") from None


def _canonical(item: Item) -> bytes:
    said = [item.id, item.category, item.body, item.answer, item.options.model_dump(mode="json")]
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
