"""Every kind of grader there is, and how the column `grader` names one.

Owns the list of kinds and the grader python; the others live in `grading_*` and `judge`. Knows no suite.
"""

from __future__ import annotations

import importlib
import math
import numbers
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final, Literal

import numpy as np
import orjson
from pydantic import Field, ValidationError

from bandit.errors import InvalidInput
from evaluation.grades import Grade, GraderOptions, Grading, GradingFailed, Message
from evaluation.grading_calls import FunctionCall
from evaluation.grading_json import JsonSchema
from evaluation.grading_numbers import Numeric
from evaluation.grading_text import Choice, Contains, Exact, Recorded, Regex
from evaluation.judge import Judge

__all__ = ["KINDS", "Python", "parse_grader"]


class Python(GraderOptions):
    """A function of yours, `package.module:function`, called with (answer's text, column `answer`, the item's columns).

    It returns a bool or a number from 0 to 1. What it raises, or another result, is a grading that failed. The item's
    columns hold `message`, too: what the model answered, tool calls included.
    """

    kind: Literal["python"] = "python"
    callable_: str = Field(alias="callable", pattern=r"^[\w.]+:[\w.]+$")

    def prepare(self, answer: Any) -> Grading:
        """As `prepare_with`, for an item without other columns."""
        return self.prepare_with(answer, {})

    def prepare_with(self, answer: Any, item: Mapping[str, Any]) -> Grading:
        """`answer`: whatever the function takes."""
        function = self._function()

        def graded(message: Message) -> Grade:
            try:
                result = function(message.text, answer, {**item, "message": message.to_json()})
                quality = float(result) if isinstance(result, numbers.Real | np.bool_) else math.nan
            except Exception as error:  # the boundary to somebody else's code
                raise GradingFailed(f"{self.callable_} raised {type(error).__name__}: {error}") from error
            if 0.0 <= quality <= 1.0:
                return Grade(quality, "as the function said")
            raise GradingFailed(f"{self.callable_} returned {result!r:.60}, not a bool or a number from 0 to 1")

        return graded

    def _function(self) -> Callable[..., Any]:
        module, _, path = self.callable_.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except Exception as error:  # noqa: BLE001 - importing runs somebody else's code
            message = f"cannot be imported: {type(error).__name__}: {error}"
            raise InvalidInput("grader.callable", message) from None
        if not callable(found):
            raise InvalidInput("grader.callable", f"{self.callable_} is not callable")
        return found  # type: ignore[no-any-return]  # just found to be


KINDS: Final[Mapping[str, type[GraderOptions]]] = {
    "exact": Exact,
    "choice": Choice,
    "numeric": Numeric,
    "regex": Regex,
    "contains": Contains,
    "json_schema": JsonSchema,
    "function_call": FunctionCall,
    "python": Python,
    "judge": Judge,
    "recorded": Recorded,
}


def parse_grader(value: Any) -> GraderOptions:
    """What `grader` says: a kind's name, or an object (or its JSON text) with `kind` and its options.

    Raises InvalidInput, whose field is `grader` or the path of an option, for an unknown kind, option or value.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise InvalidInput("grader", f"is not valid JSON: {error}") from None
    options = {"kind": value} if isinstance(value, str) else value
    kind = options.get("kind") if isinstance(options, dict) else None
    if not isinstance(kind, str):
        raise InvalidInput("grader", 'must be a name, or an object such as {"kind": "numeric", "tolerance": 0.01}')
    model = KINDS.get(kind)
    if model is None:
        raise InvalidInput("grader", f"no kind is called {kind!r}{_nearest(kind, KINDS)}; there are {', '.join(KINDS)}")
    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(["grader", *map(str, first["loc"])])
        if first["type"] == "extra_forbidden":
            known = [field.alias or name for name, field in model.model_fields.items()]
            name = str(first["loc"][-1])
            message = f"{kind} has no such option{_nearest(name, known)}; it has {', '.join(known)}"
            raise InvalidInput(path, message) from None
        raise InvalidInput(path, _sentence(first["msg"])) from None


def _nearest(name: str, known: Any) -> str:
    found = get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:]
