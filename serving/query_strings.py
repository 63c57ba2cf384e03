"""Query strings of our own routes: which names there are, and how a number or a time is written.

Knows no particular route. What is wrong is an InvalidRequest that names the parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite

from multidict import MultiMapping

from serving.errors import InvalidRequest

__all__ = ["count_of", "moment_of", "number_of", "parameters_of"]

_DATE_DIGITS = 8  # 20261125: a date, as for the commands, and no day of 1970


def parameters_of(query: MultiMapping[str], *names: str) -> dict[str, str]:
    """The parameters that are given; any but `names`, or one given twice, is refused."""
    for name in query:
        if name not in names:
            raise InvalidRequest(f"unknown; there is only {', '.join(names)}", name)
        if len(query.getall(name)) > 1:
            raise InvalidRequest("is given twice", name)
    return dict(query)


def number_of(given: Mapping[str, str], name: str, *, default: float, above: float, at_most: float) -> float:
    """A number in (above, at_most]."""
    if name not in given:
        return default
    try:
        value = float(given[name])
    except ValueError:
        value = above
    if not above < value <= at_most:  # also NaN
        raise InvalidRequest(f"must be a number above {above:g} and at most {at_most:g}", name)
    return value


def count_of(given: Mapping[str, str], name: str, *, default: int, at_most: int) -> int:
    """A whole number from 1 to `at_most`, in plain digits."""
    text = given.get(name, str(default))
    plain = text.isascii() and text.isdigit() and len(text) <= len(str(at_most))
    if not plain or not 1 <= int(text) <= at_most:
        raise InvalidRequest(f"must be a whole number from 1 to {at_most}", name)
    return int(text)


def moment_of(given: Mapping[str, str], name: str) -> float | None:
    """A time in unix seconds, given as such or by ISO 8601 (UTC without an offset); None where it is not given."""
    if name not in given:
        return None
    text = given[name].strip()
    try:
        value = _iso(text, name) if len(text) == _DATE_DIGITS and text.isdecimal() else float(text)
    except ValueError:
        value = _iso(text, name)
    if not isfinite(value):
        raise InvalidRequest("must be a time", name)
    return value


def _iso(text: str, name: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        message = "must be unix seconds or ISO 8601, such as 2026-11-25T06:00:00Z (a + is written %2B in a URL)"
        raise InvalidRequest(message, name) from None
