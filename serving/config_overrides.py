"""Changes to a configuration that are given beside its file: `pool.auto.constraints.p95_latency_s=1.5`.

Owns how such a path finds its place among the file's values, before they are checked as if they had stood there. It
must never know a particular setting's meaning, but for those that only a call to a model needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from serving.config_file import ConfigError, Document, Loc, Problem, dotted, read_value

__all__ = ["fill_secrets", "override", "split_override"]

_LISTS = {"pool": "pools", "model": "models"}  # lists whose entries are found by name
_KEYS = ("key", "admin_key", "api_key")
_NO_ENDPOINT = "http://not-set.invalid/v1"


def override(document: Document, overrides: Sequence[str], env: Mapping[str, str]) -> None:
    """Put each of `overrides`, PATH=VALUE, into the document, in their order.

    A path is `section.setting`, `pool.NAME.…` or `model.NAME.…`, a value is YAML (`1.5`, `null`, `{kind: uniform}`), in
    which `${VAR}` is read from `env`. A path to nothing known is put in as well: checking the document names it. Raises
    ConfigError for a text that is no override, and for a pool or model that is not there.
    """
    for text in overrides:
        path, value = split_override(text)
        loc = _found(document, path)
        _forget(document, loc)
        try:
            made = read_value(value, document, loc, env)
        except ConfigError as error:
            raise ConfigError(tuple(Problem(path, p.message, p.hint) for p in error.problems)) from None
        _put(document, loc, made, path)
        for depth in range(1, len(loc)):
            document.lines.setdefault(loc[:depth], 0)  # what is made for it stands on no line of the file
        for place in [place for place in document.lines if place[: len(loc)] == loc]:
            document.lines[place] = 0


def split_override(text: str) -> tuple[str, str]:
    """PATH=VALUE as (path, value); raises ConfigError for another form."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path or not all(path.split(".")):
        raise ConfigError((Problem(path, "is no PATH=VALUE", "write pool.auto.constraints.p95_latency_s=1.5"),))
    return path, value.strip()


def fill_secrets(document: Document) -> None:
    """Give placeholders to keys, headers and endpoints whose `${VAR}` is not set: whoever calls nobody needs none."""
    for number, loc in enumerate(sorted(document.unset, key=str)):
        if loc[-1] in _KEYS or "headers" in loc:
            placeholder = f"not-set-{number:08d}"  # keys must differ
        elif loc[-1] in ("endpoint", "url"):
            placeholder = _NO_ENDPOINT
        else:
            continue
        _forget(document, loc)
        _put(document, loc, placeholder, dotted(loc))


def _found(document: Document, path: str) -> Loc:
    """Where a path leads: the entry of a list by its name (the longest that fits: names may have dots), then keys."""
    head, _, rest = path.partition(".")
    section = _LISTS.get(head, head)
    entries = document.data.get(section)
    if section not in _LISTS.values() or not isinstance(entries, list | tuple):
        return tuple(path.split("."))
    names = {str(e["name"]): i for i, e in enumerate(entries) if isinstance(e, dict) and isinstance(e.get("name"), str)}
    name = max((name for name in names if f"{rest}.".startswith(f"{name}.")), key=len, default=None)
    if name is None:
        near = get_close_matches(rest.split(".", maxsplit=1)[0], names, 1, 0.5)
        hint = f"did you mean {head}.{near[0]}?" if near else f"there are {', '.join(names)}"
        raise ConfigError((Problem(path, f"names none of the {section}", hint),))
    setting = rest[len(name) + 1 :]
    if not setting:
        raise ConfigError((Problem(path, "names no setting", f"write {path}.SETTING=VALUE"),))
    return (section, names[name], *_keys(document, setting))


def _keys(document: Document, setting: str) -> Loc:
    """A setting's keys. One that ends in a model's name (a weight) ends in all of it, dots and all."""
    models = document.data.get("models")
    names = [str(m.get("name")) for m in models if isinstance(m, dict)] if isinstance(models, list | tuple) else []
    name = max((name for name in names if setting.endswith(f".{name}")), key=len, default=None)
    if name is None:
        return tuple(setting.split("."))
    return (*setting.removesuffix(f".{name}").split("."), name)


def _put(document: Document, loc: Loc, value: Any, path: str) -> None:
    """Set a value, making the sections on its way that are not there."""
    place: Any = document.data
    for depth, part in enumerate(loc[:-1]):
        if isinstance(part, str) and place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict) and not isinstance(loc[depth + 1], int):
            raise ConfigError((Problem(path, f"leads through {dotted(loc[: depth + 1])}, which is no section"),))
    place[loc[-1]] = value


def _forget(document: Document, loc: Loc) -> None:
    """Drop what was wrong with the value that is replaced."""

    def replaced(place: Loc) -> bool:
        return place[: len(loc)] == loc

    paths = {dotted(place) for place in document.broken if replaced(place)}
    document.problems = [problem for problem in document.problems if problem.path not in paths]
    document.broken = {place for place in document.broken if not replaced(place)}
    document.unset = {place for place in document.unset if not replaced(place)}
