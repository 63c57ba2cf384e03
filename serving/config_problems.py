"""Words what pydantic found wrong, for someone who edits a YAML file: path, message, hint, line.

Owns the messages and the search for the key that was meant. It must never know a particular setting, and shows a
value only where it is a number or one of a fixed set of words that did not come from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from serving.config_file import Document, EnvText, Loc, Problem, dotted

__all__ = ["validation_problems"]

_TYPES = {
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
}
_PLAIN = {"missing": "is required", "finite_number": "must be a finite number"}
_BOUNDS = {
    "greater_than": ("gt", "must be above"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be below"),
    "less_than_equal": ("le", "must be at most"),
}


def validation_problems(error: ValidationError, document: Document, root: type[BaseModel]) -> list[Problem]:
    """One Problem for each error of validating `document.data` as `root`, save where the value itself is broken."""
    problems = []
    for found in error.errors(include_url=False):
        loc: Loc = tuple(part for part in found["loc"] if part != "[key]")  # pydantic's mark for a mapping's key
        kind, value, context = found["type"], found["input"], found.get("ctx", {})
        if loc in document.broken and kind != "extra_forbidden":
            continue
        if kind == "too_short" and isinstance(value, list | tuple | dict) and len(value) >= context["min_length"]:
            continue  # pydantic counts only the entries that are right, and has reported the others
        line = document.line(loc)
        path = dotted(loc)
        if kind == "extra_forbidden":
            hint = _meant(root, loc)
            path, message = _unknown_key(root, loc, hinted=hint is not None)
            hint = hint or _known(root, loc)
        elif kind == "rule":
            message, hint = context["message"], context["hint"]
            path = dotted((*loc, *context["at"]))
            line = document.line((*loc, *context["at"]))
        else:
            message, hint = _worded(kind, value, context)
        problems.append(Problem(path, message, hint or _from_env(value), line))
    return problems


def _worded(kind: str, value: Any, context: dict[str, Any]) -> tuple[str, str | None]:
    message, hint = "is not valid", None
    if kind in _PLAIN:
        message = _PLAIN[kind]
    elif kind in _TYPES:
        message = f"{_TYPES[kind]}, not {_kind(value)}"
        hint = _as_bool(value) if kind == "bool_type" else None
        hint = "put it in quotes" if kind == "string_type" and isinstance(value, int | float) else hint
    elif kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        message = f"{words} {_number(bound)}" + ("" if isinstance(value, EnvText) else f", not {_number(value)}")
        hint = _as_fraction(value, bound)
    elif kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        near = get_close_matches(str(value).lower(), allowed, 1, 0.6)
        message = f"must be one of {', '.join(allowed)}"
        hint = f"did you mean {near[0]}?" if near else None
    elif kind.endswith(("too_short", "too_long")):
        message = _length(kind, value, context)
    return message, hint


def _length(kind: str, value: Any, context: dict[str, Any]) -> str:
    words, number = ("at least", "min_length") if kind.endswith("short") else ("at most", "max_length")
    if context[number] == 1 and kind.endswith("short"):
        return "must not be empty"
    unit = "entries" if isinstance(value, list | tuple | dict) else "characters"
    return f"must have {words} {context[number]:,} {unit}"


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "text", EnvText: "text", dict: "a mapping", type(None): "nothing"}
    if isinstance(value, list | tuple):
        return "a list"
    return names.get(type(value), "a number")


def _number(value: float) -> str:
    return f"{value:,.10g}"


def _as_fraction(value: Any, bound: float) -> str | None:
    """For someone who wrote 80 where 0.80 is meant."""
    percent = isinstance(value, int | float) and 1 < value <= 100 and 0 < bound <= 1
    return f"write {value:g} % as {value / 100:g}" if percent else None


def _as_bool(value: Any) -> str | None:
    """For someone used to YAML 1.1."""
    words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
    return f"write {words[value.lower()]}" if isinstance(value, str) and value.lower() in words else None


def _from_env(value: Any) -> str | None:
    return f"it was read from {value.reference}" if isinstance(value, EnvText) else None


# --- unknown keys


def _meant(root: type[BaseModel], loc: Loc) -> str | None:
    """The nearest known key: by its name one level away, by its spelling here, by its spelling one level away."""
    parent, key = loc[:-1], str(loc[-1]).lower()
    here = _section_at(root, parent)
    if here is None:
        return None
    away = list(_one_level_away(root, parent, here))
    for place, section in away:
        if key in section.model_fields:
            return f"it belongs in {place}"
    near = get_close_matches(key, here.model_fields, 1, 0.6) or [
        name for name in here.model_fields if len(key) >= 3 and name.startswith(key)
    ]
    if near:
        return f"did you mean {near[0]}?"
    for place, section in away:
        near = get_close_matches(key, section.model_fields, 1, 0.9)
        if near:
            return f"did you mean {near[0]}? it belongs in {place}"
    return None


def _known(root: type[BaseModel], loc: Loc) -> str:
    here = _section_at(root, loc[:-1])
    return "" if here is None else f"known keys: {', '.join(here.model_fields)}"


def _unknown_key(root: type[BaseModel], loc: Loc, *, hinted: bool) -> tuple[str, str]:
    """The path and message. Beside secrets, what looks like no setting may be one (`keys: [{sk-1234: bob}]`)."""
    here = _section_at(root, loc[:-1])
    secrets = here is not None and any(SecretStr in _types(f.annotation) for f in here.model_fields.values())
    if secrets and not hinted and not re.fullmatch(r"[a-z]+(_[a-z]+)*", str(loc[-1])):
        return dotted((*loc[:-1], "?")), "unknown key (not shown, as it may be a secret)"
    return dotted(loc), "unknown key"


def _one_level_away(root: type[BaseModel], at: Loc, here: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections inside the one at `at`, the one around it, and those beside it, each with its path."""
    yield from _inside(at, here)
    if not at:
        return
    around = at[:-2] if isinstance(at[-1], int) else at[:-1]
    outer = _section_at(root, around)
    if outer is not None:
        yield dotted(around) or "the top level", outer
        yield from ((place, section) for place, section in _inside(around, outer) if section is not here)


def _inside(at: Loc, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in section.model_fields.items():
        child = _section_in(field.annotation)
        if child is not None:
            yield dotted((*at, name)) + ("[]" if tuple in _types(field.annotation) else ""), child


def _section_at(root: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    section: type[BaseModel] | None = root
    for part in loc:
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        section = _section_in(section.model_fields[part].annotation)
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    return next((t for t in _types(annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)


def _types(annotation: Any) -> list[Any]:
    """`tuple[KeySettings, ...] | None` as [tuple, KeySettings, NoneType]."""
    arguments = [inner for argument in get_args(annotation) for inner in _types(argument)]
    origin = getattr(annotation, "__origin__", None)
    return [annotation if origin is None else origin, *arguments]
