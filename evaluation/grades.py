"""What all grading speaks of: the message a model answered with, the grade it gets, and the base of graders' options.

Values only. Knows no kind of grader, no suite and no service.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson
from pydantic import BaseModel, ConfigDict

from bandit.errors import InvalidInput

__all__ = ["MAX_ANSWER_CHARACTERS", "Grade", "GraderOptions", "Grading", "GradingFailed", "Message", "ToolCall"]

MAX_ANSWER_CHARACTERS: Final = 1_000_000
"""Of a longer answer only the end is graded: that is where answers state their result."""
_MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called; `arguments` as it wrote them, JSON if all is well."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """What a model answered: its text ("" where there is none) and the functions it wants called."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Message:
        """From the `message` of a chat completion; what is not as it should be counts as not there."""
        content = message.get("content")
        if isinstance(content, list):
            parts = (part.get("text") for part in content if isinstance(part, Mapping))
            content = "".join(text for text in parts if isinstance(text, str))
        text = content[-MAX_ANSWER_CHARACTERS:] if isinstance(content, str) else ""
        listed = message.get("tool_calls")
        calls = listed if isinstance(listed, list) else []
        wanted = [entry.get("function") for entry in calls if isinstance(entry, Mapping)]
        return cls(text, tuple(_tool_call(function) for function in wanted if isinstance(function, Mapping)))

    def to_json(self) -> dict[str, Any]:
        """The same as `of` reads it."""
        calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in self.tool_calls]
        return {"content": self.text, "tool_calls": calls}


@dataclass(frozen=True, slots=True)
class Grade:
    """How good an answer is, from 0 to 1, and in a few words why."""

    quality: float
    reason: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.quality) and 0.0 <= self.quality <= 1.0):
            raise InvalidInput("quality", f"must be between 0 and 1, not {self.quality!r}")

    @classmethod
    def of(cls, good: bool, reason: str) -> Grade:  # noqa: FBT001 - right or wrong
        """1 for a right answer, 0 for a wrong one."""
        return cls(1.0 if good else 0.0, reason[:_MAX_REASON])


class GradingFailed(Exception):
    """An answer that could not be graded, through no fault of the answer."""


Grading = Callable[[Message], Grade]
"""Grades one answer; raises GradingFailed."""


class GraderOptions(BaseModel):
    """What the column `grader` may say of one kind; a subclass each, whose `prepare` grades one item's answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: str
    needs_answer: ClassVar[bool] = True

    def prepare(self, answer: Any) -> Grading:
        """What grades the item whose column `answer` this is. Raises InvalidInput, whose field is a column's path."""
        raise NotImplementedError


def _tool_call(function: Mapping[str, Any]) -> ToolCall:
    arguments = function.get("arguments")
    if isinstance(arguments, dict | list):  # some endpoints send an object where the protocol has its text
        try:
            arguments = orjson.dumps(arguments).decode()
        except TypeError:
            arguments = ""
    return ToolCall(str(function.get("name") or ""), str(arguments or "")[:MAX_ANSWER_CHARACTERS])
