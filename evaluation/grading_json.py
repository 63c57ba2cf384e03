"""Graders of structured answers: json_schema, and what both it and function_call find as JSON in a text.

Pure; nothing is fetched for a schema's references. Knows no suite.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import orjson

from bandit.errors import InvalidInput
from evaluation.grades import Grade, GraderOptions, Grading, GradingFailed, Message
from evaluation.grading_text import pattern_finder

__all__ = ["NOT_JSON", "JsonSchema", "find_json", "from_json_text"]

NOT_JSON: Final = object()
"""No JSON value is this."""
_FENCE: Final = "```"
_MAX_DEPTH_REASON: Final = "nested too deeply"


class JsonSchema(GraderOptions):
    """The text is JSON (whole, in its last fence, or from its first to its last bracket) and matches a schema."""

    kind: Literal["json_schema"] = "json_schema"

    def prepare(self, answer: Any) -> Grading:
        """`answer`: the schema, an object or its JSON text; draft 2020-12 where `$schema` names no other."""
        schema = from_json_text("answer", answer)
        if not isinstance(schema, dict):
            raise InvalidInput("answer", "must be a JSON schema, an object")
        validator = _validator(schema)
        from referencing.exceptions import Unresolvable

        def graded(message: Message) -> Grade:
            value = find_json(message.text)
            if value is NOT_JSON:
                return Grade.of(good=False, reason="is not JSON")
            try:
                problem = next(validator.iter_errors(value), None)
            except RecursionError:
                return Grade.of(good=False, reason=_MAX_DEPTH_REASON)
            except (Unresolvable, InvalidInput) as error:  # a reference or pattern that is found wanting only here
                raise GradingFailed(f"the schema cannot be used: {error}") from None
            if problem is None:
                return Grade.of(good=True, reason="matches the schema")
            return Grade.of(good=False, reason=f"{problem.json_path}: {problem.message}")

        return graded


def find_json(text: str) -> Any:
    """The JSON value of a text: the whole, or its last fenced block, or from its first to its last bracket; NOT_JSON.

    Values like NaN are no JSON.
    """
    for part in _candidates(text):
        try:
            return orjson.loads(part)
        except orjson.JSONDecodeError:
            continue
    return NOT_JSON


def from_json_text(field: str, value: Any) -> Any:
    """`value`, or what it says where it is JSON text, as in a file whose columns hold texts only."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(field, f"is not valid JSON: {error}") from None


def _candidates(text: str) -> Iterator[str]:
    yield text
    end = text.rfind(_FENCE)
    begin = text.rfind(_FENCE, 0, max(end, 0))
    if 0 <= begin < end:
        first_line, newline, block = text[begin + len(_FENCE) : end].partition("\n")
        yield block if newline else first_line
    starts = [at for bracket in "{[" if (at := text.find(bracket)) >= 0]
    stop = max(text.rfind("}"), text.rfind("]"))
    if starts and stop > min(starts):
        yield text[min(starts) : stop + 1]


def _validator(schema: dict[str, Any]) -> Any:
    try:
        from jsonschema import Draft202012Validator, SchemaError, validators
        from jsonschema_specifications import REGISTRY
    except ImportError:
        message = "json_schema needs the package jsonschema: pip install 'pointsman[evaluation]'"
        raise InvalidInput("grader", message) from None
    base = validators.validator_for(schema, default=Draft202012Validator)
    try:
        base.check_schema(schema)
    except SchemaError as error:
        raise InvalidInput("answer", f"is not a valid JSON schema: {error.json_path}: {error.message}") from None
    except RecursionError:
        raise InvalidInput("answer", f"is not a valid JSON schema: {_MAX_DEPTH_REASON}") from None
    bounded = validators.extend(base, {"pattern": _pattern})
    return bounded(schema, registry=REGISTRY)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Exception]:
    """The keyword `pattern` with the time limit of the grader regex."""
    from jsonschema import ValidationError

    del schema
    if validator.is_type(instance, "string") and pattern_finder("answer", pattern)(instance) is None:
        yield ValidationError(f"{instance!r:.60} does not match {pattern!r}")
