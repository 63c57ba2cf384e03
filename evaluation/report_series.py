"""Which series of many a chart shows: those of the busiest models, and the rest together.

Knows rows and names, not what they measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from evaluation.report_charts import Line

__all__ = ["MOST_SERIES", "busiest_over_time"]

MOST_SERIES: Final = 7


def busiest_over_time(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    value: Callable[[Mapping[str, Any]], float],
    ts: Sequence[float],
) -> list[Line]:
    """A line for each of the first seven of `names`, and one for the sum of all others, 0 where there is no row."""
    shown = list(names[:MOST_SERIES])
    sums: dict[str | None, dict[float, float]] = {name: {} for name in shown}
    for row in rows:
        key = row["model"] if row["model"] in sums else None
        of = sums.setdefault(key, {})
        of[row["ts"]] = of.get(row["ts"], 0.0) + value(row)
    rest = len(names) - len(shown)
    label = {None: f"{rest} others"}
    return [
        Line(label.get(None, "") if name is None else name, ts, [of.get(at, 0.0) for at in ts])
        for name, of in sums.items()
    ]
