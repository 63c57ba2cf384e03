"""The grader function_call: the functions an answer calls, against those it should call.

Pure. Where the message has no tool calls, calls that stand as JSON in its text count. Knows no suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from bandit.errors import InvalidInput
from evaluation.grades import Grade, GraderOptions, Grading, Message
from evaluation.grading_json import NOT_JSON, find_json, from_json_text

__all__ = ["FunctionCall"]

MAX_CALLS: Final = 64
_ABSENT: Final = ""
"""In a list of acceptable values (Berkeley's form): the argument may be left out."""
_IGNORED: Final = str.maketrans("", "", " ,./-_*^()'\"")


class FunctionCall(GraderOptions):
    """Each expected call is made, no other is; their order is free.

    1 equals 1.0, true does not equal 1. A dot in an expected name also matches an underscore, since the protocol
    allows no dots. With `loose_text`, texts are compared without case, spaces and `,./-_*^()'"`.
    """

    kind: Literal["function_call"] = "function_call"
    loose_text: bool = False

    def prepare(self, answer: Any) -> Grading:
        """`answer`: one call or a list of them, each in one of two forms; an empty list: nothing may be called.

        `{"name": "f", "arguments": {"x": 1, "y": {"any_of": [2, 3], "optional": true}}}`, or the form of the Berkeley
        leaderboard, `{"f": {"x": [1], "y": [2, 3, ""]}}`: acceptable values, "" where it may be left out.
        """
        answer = from_json_text("answer", answer)
        listed = answer if isinstance(answer, list) else [answer]
        if len(listed) > MAX_CALLS:
            raise InvalidInput("answer", f"must hold at most {MAX_CALLS} calls")
        wanted = [_expected(entry, f"answer[{i}]") for i, entry in enumerate(listed)]
        equal = _comparison(loose_text=self.loose_text)

        def graded(message: Message) -> Grade:
            try:
                return _graded(message, wanted, equal)
            except RecursionError:
                return Grade.of(good=False, reason="nested too deeply")

        return graded


Equal = Callable[[Any, Any], bool]


@dataclass(frozen=True, slots=True)
class _Argument:
    """What an argument may be: one of `values`; `nested`: dictionaries among them hold lists of values themselves."""

    values: tuple[Any, ...]
    optional: bool
    nested: bool


@dataclass(frozen=True, slots=True)
class _Expected:
    name: str
    arguments: Mapping[str, _Argument]


def _graded(message: Message, wanted: Sequence[_Expected], equal: Equal) -> Grade:
    made = _calls_of(message)
    if made is None:
        return Grade.of(good=False, reason="a call whose arguments are not a JSON object")
    if len(made) != len(wanted):
        names = ", ".join(name for name, _ in made[:MAX_CALLS]) or "none"
        return Grade.of(good=False, reason=f"{len(made)} calls instead of {len(wanted)}: {names}")
    fits = [[_fits(call, expected, equal) for call in made] for expected in wanted]
    missing = _unmatched(fits)
    if missing is None:
        return Grade.of(good=True, reason="as expected")
    return Grade.of(good=False, reason=f"no call fits the expected {wanted[missing].name}")


def _expected(entry: Any, path: str) -> _Expected:
    if not isinstance(entry, dict):
        raise InvalidInput(path, 'must be an object such as {"name": "f", "arguments": {"x": 1}}')
    if isinstance(entry.get("name"), str) and set(entry) <= {"name", "arguments"}:
        arguments = entry.get("arguments") or {}
        if not isinstance(arguments, dict):
            raise InvalidInput(f"{path}.arguments", "must be an object")
        return _Expected(entry["name"], {name: _argument(value) for name, value in arguments.items()})
    name, arguments = next(iter(entry.items())) if len(entry) == 1 else ("", None)
    if not isinstance(arguments, dict) or not all(isinstance(values, list) for values in arguments.values()):
        message = (
            'must be {"name": "f", "arguments": {"x": 1}} or {"f": {"x": [1, 2]}}, with lists of acceptable values'
        )
        raise InvalidInput(path, message)
    return _Expected(name, {key: _acceptable(values) for key, values in arguments.items()})


def _argument(value: Any) -> _Argument:
    """An expected value, or `{"any_of": [...], "optional": true}`."""
    if isinstance(value, dict) and value and set(value) <= {"any_of", "optional"}:
        values, optional = value.get("any_of"), value.get("optional", False)
        if isinstance(values, list) and values and isinstance(optional, bool):
            return _Argument(tuple(values), optional, nested=False)
    return _Argument((value,), optional=False, nested=False)


def _acceptable(values: list[Any]) -> _Argument:
    return _Argument(tuple(values), _ABSENT in values, nested=True)


def _calls_of(message: Message) -> list[tuple[str, dict[str, Any]]] | None:
    """(name, arguments) of each call; None where some call has no readable arguments."""
    if message.tool_calls:
        found = [
            (call.name, find_json(call.arguments) if call.arguments.strip() else {}) for call in message.tool_calls
        ]
    else:
        found = _calls_in(find_json(message.text))
    calls = [(name, arguments) for name, arguments in found if isinstance(arguments, dict)]
    return calls if len(calls) == len(found) else None


def _calls_in(value: Any) -> list[tuple[str, Any]]:
    """Calls that stand in a text: an object with a name and arguments (or parameters), or a list of such objects."""
    if value is NOT_JSON:
        return []
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    calls: list[tuple[str, Any]] = []
    for entry in value if isinstance(value, list) else [value]:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return []  # some other JSON
        arguments = function.get("arguments", function.get("parameters", {}))
        calls.append((function["name"], find_json(arguments) if isinstance(arguments, str) else arguments))
    return calls


def _fits(call: tuple[str, dict[str, Any]], expected: _Expected, equal: Equal) -> bool:
    name, arguments = call
    if (
        name not in (expected.name, expected.name.replace(".", "_"))
        or not arguments.keys() <= expected.arguments.keys()
    ):
        return False
    for key, wanted in expected.arguments.items():
        if key not in arguments:
            if not wanted.optional:
                return False
        elif not _is_one_of(arguments[key], wanted, equal):
            return False
    return True


def _is_one_of(value: Any, wanted: _Argument, equal: Equal) -> bool:
    return any(equal(value, one) or (wanted.nested and _is_nested(value, one, equal)) for one in wanted.values)


def _is_nested(value: Any, wanted: Any, equal: Equal) -> bool:
    """Whether `value` is like `wanted`, dictionaries of which say acceptable values per key."""
    if isinstance(wanted, list) and isinstance(value, list):
        pairs = zip(value, wanted, strict=False)
        return len(value) == len(wanted) and all(equal(a, b) or _is_nested(a, b, equal) for a, b in pairs)
    if not (isinstance(wanted, dict) and isinstance(value, dict)):
        return False
    if not value.keys() <= wanted.keys() or not all(isinstance(values, list) for values in wanted.values()):
        return False
    return all(
        _is_one_of(value[key], _acceptable(values), equal) if key in value else _ABSENT in values
        for key, values in wanted.items()
    )


def _comparison(*, loose_text: bool) -> Equal:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, str) and isinstance(b, str):
            return _loose(a) == _loose(b) if loose_text else a == b
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(equal, a, b))
        if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
            return a is b
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        return numbers and a == b

    return equal


def _loose(text: str) -> str:
    return text.casefold().translate(_IGNORED)


def _unmatched(fits: Sequence[Sequence[bool]]) -> int | None:
    """The first expected call (a row) that cannot be given a call of its own (a column); None: all can.

    Kuhn's augmenting paths: one call may fit several expected ones, so the first that fits will not do.
    """
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, good in enumerate(fits[row]):
            if good and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return next((row for row in range(len(fits)) if not place(row, set())), None)
