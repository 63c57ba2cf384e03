"""The kinds of value a setting can have, and the form every section of the configuration shares.

Owns strictness: "1" is no number, 1 is no text, NaN is nothing. It must never know a particular setting.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, Strict
from pydantic_core import PydanticCustomError

from serving.config_file import EnvText, Loc

__all__ = [
    "AccessKey",
    "Count",
    "Flag",
    "Label",
    "Name",
    "Number",
    "OrDefaults",
    "Secret",
    "Section",
    "reject",
    "resolved",
]


class Section(BaseModel):
    """A mapping of the file: no unknown keys, never changed, values kept out of error texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def resolved(value: Any) -> Any:
    """A value as its validator should see it: what an environment variable holds may be a number."""
    return value.resolved if isinstance(value, EnvText) else value


def reject(message: str, hint: str | None = None, at: Loc = ()) -> NoReturn:
    """Reject a value from inside a validator; `at` leads on from the validated place to the wrong one."""
    raise PydanticCustomError("rule", "{message}", {"message": message, "hint": hint, "at": at})


def _printable(value: str) -> str:
    return value if value.isprintable() else reject("must have no control characters")


def _without_spaces(value: str) -> str:
    if any(c.isspace() or not c.isprintable() for c in value):
        reject("must have no spaces or control characters")
    return value


def _bearer(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]*", value.get_secret_value()):
        reject("must have no spaces, line breaks or non-ASCII characters", "does the variable end in a line break?")
    return value


Number = Annotated[float, Strict(), AllowInfNan(allow_inf_nan=False), BeforeValidator(resolved)]
Count = Annotated[int, Strict(), BeforeValidator(resolved)]
Flag = Annotated[bool, Strict(), BeforeValidator(resolved)]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_spaces)]
Secret = Annotated[SecretStr, Field(min_length=1, max_length=4096), AfterValidator(_bearer)]
AccessKey = Annotated[SecretStr, Field(min_length=8, max_length=512), AfterValidator(_bearer)]
# `log:` with every line below it commented out is null in YAML, and means the defaults.
OrDefaults = BeforeValidator(lambda value: {} if value is None else value)
