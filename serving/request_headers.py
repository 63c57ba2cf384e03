"""What callers say about a request beside its body: the `x-pointsman-…` headers, read and checked.

`/v1/route` takes some of them in its body, too; that is read here as well. Knows nothing of pools: whether a vector
fits or a limit can be kept is for others to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import orjson

from bandit.errors import InvalidInput
from bandit.types import RequestLimits
from serving.errors import InvalidRequest

__all__ = ["NO_LIMITS", "Hints", "read_hints", "read_timeout", "with_fields"]

NO_LIMITS = RequestLimits()
_LIMITS = ("max_cost_usd", "max_latency_s")
_HEADERS = {"x-pointsman-max-cost-usd": "max_cost_usd", "x-pointsman-max-latency-s": "max_latency_s"}
_CONTEXT = "x-pointsman-context"
_SESSION, _TIMEOUT = "x-pointsman-session", "x-pointsman-timeout-s"
_MAX_SESSION = 256
_LONGEST_S = 3600.0
_MAX_LABEL = 64
_MAX_TAGS = 10
_MAX_VECTOR = 64
_MAX_NUMBER = 40  # characters
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float() takes nan, 1_000, other digits


@dataclass(frozen=True, slots=True)
class Hints:
    """What a caller said: a task label, tags, features of its own, what the call may cost and take, its session."""

    category: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    vector: tuple[float, ...] | None = None
    limits: RequestLimits = NO_LIMITS
    session: str | None = None
    timeout_s: float | None = None
    cache_control: str | None = None


def read_hints(headers: Mapping[str, str]) -> Hints:
    """The hints in a request's headers; raises InvalidRequest, whose `param` is the header."""
    given = {limit: _limit(headers[name], name) for name, limit in _HEADERS.items() if name in headers}
    return Hints(
        category=_category(headers.get("x-pointsman-category")),
        tags=_tags(headers.get("x-pointsman-tags")),
        vector=_header_vector(headers[_CONTEXT]) if _CONTEXT in headers else None,
        limits=_limits(given, {limit: name for name, limit in _HEADERS.items()}) if given else NO_LIMITS,
        session=_session(headers[_SESSION]) if _SESSION in headers else None,
        timeout_s=read_timeout(headers),
        cache_control=headers.get("Cache-Control"),
    )


def read_timeout(headers: Mapping[str, str]) -> float | None:
    """The seconds that a caller gives its call, read before all else: it waits for a place no longer than that."""
    return _seconds(headers[_TIMEOUT]) if _TIMEOUT in headers else None


def with_fields(hints: Hints, body: Mapping[str, Any]) -> Hints:
    """`hints` with what the body's fields `max_cost_usd`, `max_latency_s` and `context` add; null is as absent.

    Raises InvalidRequest, also for what both a header and a field say.
    """
    given = {name: body[name] for name in _LIMITS if body.get(name) is not None}
    for name, value in given.items():
        if getattr(hints.limits, name) is not None:
            raise InvalidRequest(f"is also given by the header x-pointsman-{name.replace('_', '-')}", name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest("must be a number above 0", name)
    vector = hints.vector
    if body.get("context") is not None:
        if vector is not None:
            raise InvalidRequest(f"is also given by the header {_CONTEXT}", "context")
        vector = _vector(body["context"], "context", "invalid_request")
    if not given and vector is hints.vector:
        return hints
    known = {name: getattr(hints.limits, name) for name in _LIMITS}
    limits = _limits(known | given, {name: name for name in _LIMITS})
    return replace(hints, vector=vector, limits=limits)


def _limits(values: Mapping[str, float | None], params: Mapping[str, str]) -> RequestLimits:
    for name, value in values.items():
        try:
            RequestLimits(**{name: value})
        except InvalidInput as error:
            param = params[name]
            code = "invalid_request" if param == name else "invalid_header"
            message = str(error).partition(": ")[2]
            raise InvalidRequest(f"{param} {message}", param, code) from None
    return RequestLimits(**values)


def _limit(text: str, header: str) -> float:
    text = text.strip()
    if len(text) > _MAX_NUMBER or not _NUMBER.fullmatch(text) or not 0 < float(text) < float("inf"):
        raise InvalidRequest(f"{header} must be a number above 0, such as 0.5", header, "invalid_header")
    return float(text)


def _header_vector(text: str) -> tuple[float, ...]:
    if text.lstrip().startswith("["):
        try:
            values = orjson.loads(text)
        except orjson.JSONDecodeError:
            values = None
        return _vector(values, _CONTEXT, "invalid_header")
    parts = [part.strip() for part in text.split(",")] if len(text) <= _MAX_VECTOR * (_MAX_NUMBER + 2) else []
    sound = all(len(part) <= _MAX_NUMBER and _NUMBER.fullmatch(part) for part in parts)
    return _vector([float(part) for part in parts] if sound else None, _CONTEXT, "invalid_header")


def _vector(values: Any, param: str, code: str) -> tuple[float, ...]:
    """Numbers as a tuple; how many, and how large they may be, is for the pool's features to say."""
    plain = isinstance(values, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not plain or not 1 <= len(values) <= _MAX_VECTOR or not all(map(isfinite, values)):
        raise InvalidRequest(f"{param} must be 1 to {_MAX_VECTOR} finite numbers", param, code)
    return tuple(map(float, values))


def _session(value: str) -> str:
    if not value or len(value) > _MAX_SESSION or not value.isprintable():
        raise InvalidRequest(f"must be 1 to {_MAX_SESSION} printable characters", _SESSION, "invalid_header")
    return value


def _seconds(value: str) -> float:
    sound = len(value) <= _MAX_NUMBER and _NUMBER.fullmatch(value.strip())
    if not sound or not 0.0 < float(value) <= _LONGEST_S:
        raise InvalidRequest(f"must be a number of seconds above 0, at most {_LONGEST_S:g}", _TIMEOUT, "invalid_header")
    return float(value)


def _category(value: str | None) -> str | None:
    if value is not None and (not value or len(value) > _MAX_LABEL or not value.isprintable()):
        raise InvalidRequest(
            f"must be 1 to {_MAX_LABEL} printable characters", "x-pointsman-category", "invalid_header"
        )
    return value


def _tags(value: str | None) -> dict[str, str]:
    """`x-pointsman-tags: team=search,experiment=b` as a dictionary."""
    if not value:
        return {}
    pairs = [pair.partition("=") for pair in value.split(",")]
    tags = {name.strip(): content.strip() for name, _, content in pairs}
    well_formed = value.isprintable() and all(
        separator and name.strip() and content.strip() for name, separator, content in pairs
    )
    short = all(len(name) <= _MAX_LABEL and len(content) <= _MAX_LABEL for name, content in tags.items())
    if not well_formed or not short or len(pairs) > _MAX_TAGS or len(tags) < len(pairs):
        message = (
            f"must be up to {_MAX_TAGS} distinct name=value pairs of at most {_MAX_LABEL} printable characters a side"
        )
        raise InvalidRequest(message, "x-pointsman-tags", "invalid_header")
    return tags
