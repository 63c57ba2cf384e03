"""Bodies of our own routes: their form, and how what is wrong with one is told, every field with its path.

Knows no particular route. Bodies of inference calls are `serving.wire`'s matter.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serving.errors import InvalidFields

__all__ = ["Body", "Cost", "Quality", "Seconds", "Tokens", "validated"]

_MAX_PROBLEMS = 100  # named in one answer
Quality = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Cost = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=10**9)]


class Body(BaseModel):
    """A JSON object of the contract: no unknown fields, "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def validated(adapter: TypeAdapter[Any], body: Any) -> Any:
    """What `adapter` makes of parsed JSON; raises InvalidFields with every problem's path, 100 at most."""
    try:
        return adapter.validate_python(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:_MAX_PROBLEMS]
        raise InvalidFields([_problem(e) for e in found]) from None


def _problem(error: Any) -> dict[str, str]:
    path = ""
    for part in error["loc"]:
        if part == "[key]":  # pydantic's mark for a mapping's key
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return {"param": path, "message": error["msg"]}
