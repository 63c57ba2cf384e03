"""A sweep over one setting: its values, which results are worth having, and how they look as cost against quality.

Knows neither what the setting is nor how a result came about. Draws with matplotlib, imported only when it draws.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np

from bandit.errors import InvalidInput

__all__ = ["Point", "efficient", "plot", "sweep_values"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER}):(\d+)(:log)?")
MOST_VALUES = 200


@dataclass(frozen=True, slots=True)
class Point:
    """One result: USD per 1,000 calls and quality, with the standard errors of their means (NaN: not known)."""

    label: str
    usd_per_1000: float
    quality: float
    usd_per_1000_se: float = float("nan")
    quality_se: float = float("nan")


def sweep_values(text: str) -> tuple[str, ...]:
    """The values `v1,v2,…` or `lo:hi:n[:log]` stands for: n from lo to hi, evenly spaced, or evenly in their logarithm.

    Values are text as a file would have them; a comma inside brackets belongs to its value. Raises InvalidInput.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        values = tuple(value.strip() for value in _listed(text))
        if not all(values):
            raise InvalidInput("--sweep", f"{text!r} has an empty value; write PATH=v1,v2,… or PATH=lo:hi:n[:log]")
    else:
        low, high, n, logarithmic = float(found[1]), float(found[2]), int(found[3]), found[4] is not None
        if n < 2 or (logarithmic and not (low > 0 and high > 0)):
            raise InvalidInput("--sweep", f"{text!r} needs at least 2 values, and bounds above 0 for log")
        if n <= MOST_VALUES:
            spaced = np.geomspace(low, high, n) if logarithmic else np.linspace(low, high, n)
            values = tuple(f"{value:.4g}" for value in spaced)
        else:
            values = ("",) * n
    if len(values) > MOST_VALUES:
        raise InvalidInput("--sweep", f"has {len(values)} values; at most {MOST_VALUES} are run")
    return values


def _listed(text: str) -> list[str]:
    """What stands between the commas that are in no bracket."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return values


def efficient(points: Sequence[Point]) -> tuple[bool, ...]:
    """Whether each point is Pareto-efficient: no other costs at most as much and is at least as good, one strictly.

    A point with an unknown cost or quality is not.
    """

    def beats(other: Point, one: Point) -> bool:
        no_worse = other.usd_per_1000 <= one.usd_per_1000 and other.quality >= one.quality
        return no_worse and (other.usd_per_1000 < one.usd_per_1000 or other.quality > one.quality)

    known = [not (isnan(point.usd_per_1000) or isnan(point.quality)) for point in points]
    return tuple(
        sound and not any(beats(other, one) for other in points) for one, sound in zip(points, known, strict=True)
    )


def plot(path: Path, title: str, points: Sequence[Point], beside: Sequence[Point]) -> None:
    """Draw cost against quality into an SVG or PNG file: `points` with their frontier, `beside` them fixed models.

    Raises InvalidInput for another kind of file or without matplotlib, OSError.
    """
    if path.suffix not in (".svg", ".png"):
        raise InvalidInput("--plot", f"{path.name} must end in .svg or .png")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidInput("--plot", "needs matplotlib: pip install 'pointsman[report]'") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for point in beside:
        axes.plot(point.usd_per_1000, point.quality, marker="x", color="0.55", linestyle="none")
        _label(axes, point, "0.45")
    for point, worth in zip(points, efficient(points), strict=True):
        axes.errorbar(
            point.usd_per_1000,
            point.quality,
            xerr=_bar(point.usd_per_1000_se),
            yerr=_bar(point.quality_se),
            marker="o",
            color="tab:blue",
            markerfacecolor="tab:blue" if worth else "white",
            capsize=2,
        )
        _label(axes, point, "black")
    best = sorted((p for p, worth in zip(points, efficient(points), strict=True) if worth), key=_cost)
    axes.plot([p.usd_per_1000 for p in best], [p.quality for p in best], color="tab:blue", linewidth=1)
    costs = [p.usd_per_1000 for p in (*points, *beside) if p.usd_per_1000 > 0]
    if costs and max(costs) > 20 * min(costs):
        axes.set_xscale("log")
    axes.set(title=title, xlabel="USD per 1,000 calls", ylabel="quality")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=144)


def _cost(point: Point) -> float:
    return point.usd_per_1000


def _bar(error: float) -> float | None:
    return None if isnan(error) else error


def _label(axes: object, point: Point, color: str) -> None:
    axes.annotate(  # type: ignore[attr-defined]
        point.label, (point.usd_per_1000, point.quality), (4, 4), textcoords="offset points", fontsize=7, color=color
    )
