"""How a report writes names, numbers, shares and times; what is unknown is a dash.

Knows nothing of pages: what it returns is text.
"""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["between", "moment", "number", "percent", "printable"]

NONE = "—"


def printable(text: str) -> str:
    """The text with a sign in place of what no page may hold (control characters, broken surrogates)."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def number(value: float | None, digits: int = 4) -> str:
    """A count with commas, any other number to so many significant digits, or a dash."""
    if value is None:
        return NONE
    if isinstance(value, int) or value == 0 or abs(value) >= 10**digits:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.{digits}g}".removesuffix(".")
    return text.replace("-", "\u2212", 1) if value < 0 else text


def percent(value: float | None) -> str:
    """A share in per cent, or a dash."""
    return NONE if value is None else f"{100 * value:.1f} %"


def between(low: str, high: str) -> str:
    """An interval of two texts."""
    return f"{low} to {high}"


def moment(ts: float | None) -> str:
    """A time, to the second, in UTC."""
    return NONE if ts is None else datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d %H:%M:%S")
