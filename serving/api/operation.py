"""What is said of one route: the form of an entry in the tables of `serving.api`, and the pieces that entries share.

Values alone. Knows no particular route, and nothing of OpenAPI's own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel

__all__ = [
    "CURSOR",
    "JSON",
    "LIMIT",
    "Answer",
    "Binary",
    "Operation",
    "Parameter",
    "Text",
    "moment",
    "parameter",
]

JSON: Final = "application/json"
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or request header; `schema` is plain JSON Schema."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})
    place: Literal["query", "header"] = "query"
    required: bool = False
    many: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A body that is no JSON."""

    media: str = "text/plain"


@dataclass(frozen=True, slots=True)
class Binary:
    """A body of bytes."""

    media: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One kind of good answer. `body`: a model of its JSON, text, or bytes; several for several content types."""

    description: str
    body: tuple[type[BaseModel] | Text | Binary, ...] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `access`: whom it takes: anybody where the service says so (`open`), callers, or the operator alone.

    `errors` are the statuses it answers besides those that its access, its path and its body bring with them.
    """

    method: str
    path: str
    summary: str
    answers: tuple[Answer, ...]
    tag: str
    access: Literal["page", "open", "caller", "admin"] = "admin"
    body: type[BaseModel] | None = None
    body_required: bool = True
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[int, ...] = ()
    description: str = ""


def parameter(name: str, description: str, **schema: Any) -> Parameter:
    """A query parameter of a schema given by its words."""
    return Parameter(name, description, {"type": "string", **schema})


def moment(name: str, description: str) -> Parameter:
    """A query parameter that is a time."""
    return Parameter(name, f"{description} Unix seconds, or ISO 8601 (UTC unless it says otherwise).")


LIMIT: Final = "How many at most."
CURSOR: Final = "The next_cursor of an earlier answer."
