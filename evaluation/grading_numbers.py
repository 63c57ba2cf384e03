r"""The grader numeric: the number an answer states, against the one expected.

Pure; linear in the text. What is read: 1,234.5 · −3 · .5 · 3/4 · 1 1/2 · \frac{3}{4} · 12 % · 1.5e3 · 1.5 × 10^3 ·
10^{-3} · $5. The power of a unit, as in 12 m^2, is no number of its own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field

from bandit.errors import InvalidInput
from evaluation.grades import Grade, GraderOptions, Grading, Message

__all__ = ["Numeric", "Stated", "last_number"]

_TAIL: Final = 20_000
_PLAIN: Final = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER: Final = re.compile(
    rf"(?<![\w.])(?P<sign>[-+\u2212\u2013])?(?:[$€£¥][ ]?)?(?P<value>{_PLAIN})"
    r"(?:[eE](?P<exponent>[-+]?\d{1,4})(?!\w))?"
    r"(?:\^(?:\{(?P<braced>[-+\u2212]?\d{1,4})\}|(?P<raised>[-+\u2212]?\d{1,4})(?!\w)))?"
    r"(?:[ ]?(?:×|x|\*|\\times|\\cdot)[ ]?10[ ]?\^[ ]?\{?(?P<power>[-+\u2212]?\d{1,4})\}?)?"
    r"(?:[ ](?P<top>\d{1,6})/(?P<bottom>\d{1,6})(?![\d/]))?"
    rf"(?:[ ]?/[ ]?(?P<over>{_PLAIN})(?![\d/]))?"
    r"(?P<percent>[ ]?\\?%)?"
)
_UNIT_POWER: Final = re.compile(r"(?<=[A-Za-z)}\]])\^(?:\{[^{}]{0,40}\}|[-+\u2212]?\d{1,4})")
_FRACTION: Final = re.compile(r"(\d[ ]?)?\\[dt]?frac[ ]?\{([^{}]{1,40})\}[ ]?\{([^{}]{1,40})\}")
_NO_SEPARATORS: Final = str.maketrans("", "", ",\u00a0\u2009\u202f")
_MINUS: Final = str.maketrans("\u2212\u2013", "--")
_BOX: Final = "\\boxed{"


@dataclass(frozen=True, slots=True)
class Stated:
    """A number as somebody wrote it: its value without a percent sign, and whether one follows."""

    value: float
    percent: bool


class Numeric(GraderOptions):
    r"""The last number of the text is the expected one, give or take a tolerance.

    A number in the last `\boxed{…}` comes first, then one behind the last `####`, then the last of all. It is right
    within `tolerance`, or within `relative_tolerance` times the expected one. A percent sign on both sides: 12 % is
    12 %. On one side only: 12 % is 12 and is 0.12.
    """

    kind: Literal["numeric"] = "numeric"
    tolerance: float = Field(default=1e-9, ge=0.0, allow_inf_nan=False)
    relative_tolerance: float = Field(default=1e-9, ge=0.0, lt=1.0)

    def prepare(self, answer: Any) -> Grading:
        """`answer`: a number, or a text that is one."""
        wanted = _expected(answer)

        def graded(message: Message) -> Grade:
            stated = last_number(message.text)
            if stated is None:
                return Grade.of(good=False, reason="states no number")
            good = any(self._close(a, b) for a, b in _readings(stated, wanted))
            return Grade.of(good, f"stated {stated.value:g}{'%' if stated.percent else ''}")

        return graded

    def _close(self, value: float, wanted: float) -> bool:
        return abs(value - wanted) <= max(self.tolerance, self.relative_tolerance * abs(wanted))


def last_number(text: str) -> Stated | None:
    """The number a text states, by the rules of `Numeric`; None where there is none."""
    text = text[-_TAIL:].replace("{,}", ",").replace("\\,", "").replace("\\$", "$")
    text = _UNIT_POWER.sub("", text)
    text = _FRACTION.sub(lambda m: f"{m[1] or ''}{' ' if m[1] and m[1][-1] != ' ' else ''}{m[2]}/{m[3]}", text)
    boxed = _last_box(text)
    if boxed is not None and (found := _last(boxed)) is not None:
        return found
    _, mark, behind = text.rpartition("####")
    if mark and (found := _first(behind)) is not None:
        return found
    return _last(text)


def _expected(answer: Any) -> Stated:
    if isinstance(answer, str):
        match = _NUMBER.fullmatch(answer.strip())
        stated = None if match is None else _value(match)
        if stated is not None:
            return stated
    elif isinstance(answer, int | float) and not isinstance(answer, bool):
        try:
            if math.isfinite(answer):
                return Stated(float(answer), percent=False)
        except OverflowError:
            pass
    raise InvalidInput("answer", f"must be a number, or a text such as '1,234.5', '3/4' or '12%', not {answer!r:.60}")


def _readings(stated: Stated, wanted: Stated) -> list[tuple[float, float]]:
    """Pairs to compare: (stated, wanted)."""
    pairs = [(stated.value, wanted.value)]
    if stated.percent and not wanted.percent:
        pairs.append((stated.value / 100.0, wanted.value))
    if wanted.percent and not stated.percent:
        pairs.append((stated.value, wanted.value / 100.0))
    return pairs


def _last_box(text: str) -> str | None:
    r"""What the last `\boxed{…}` holds, braces inside it balanced."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOX)
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return text[begin:]


def _last(text: str) -> Stated | None:
    found = None
    for match in _NUMBER.finditer(text):
        found = _value(match) or found
    return found


def _first(text: str) -> Stated | None:
    match = _NUMBER.search(text)
    return None if match is None else _value(match)


def _value(match: re.Match[str]) -> Stated | None:
    """None for what is written like a number and is none: a division by zero, or beyond what a float holds."""
    try:
        value = _float(match["value"])
        if (raised := match["braced"] or match["raised"]) is not None:
            value **= int(raised.translate(_MINUS))
        if match["exponent"]:
            value *= 10.0 ** int(match["exponent"])
        if match["power"]:
            value *= 10.0 ** int(match["power"].translate(_MINUS))
        if match["top"]:
            value += int(match["top"]) / int(match["bottom"])
        if match["over"]:
            value /= _float(match["over"])
    except (OverflowError, ZeroDivisionError):
        return None
    if (match["sign"] or "+").translate(_MINUS) == "-":
        value = -value
    return Stated(value, bool(match["percent"])) if math.isfinite(value) else None


def _float(text: str) -> float:
    return float(text.translate(_NO_SEPARATORS))
