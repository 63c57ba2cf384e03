"""The charts of a report, each an SVG element from plain rows; every series has a marker or pattern beside its colour.

Draws what it is given, in bounded size; knows no log and decides nothing but how a thing looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite, nan, sqrt
from typing import Any, Final

from evaluation.report_svg import INK, MUTED, PAPER, SERIES, canvas, inline_svg
from evaluation.report_text import printable

__all__ = ["Dot", "Line", "diagonal", "dots", "lines", "scatter", "shown", "timeline"]

WIDTH_IN: Final = 5.2
_LONGEST: Final = 30
_MARKERS: Final = "osD^vPX*"
_STYLES: Final = ("-", "--", "-.", ":")
_FACES: Final = {  # of a state: colour, pattern
    "admitted": (SERIES[2], ""),
    "filtered": (SERIES[1], "////"),
    "probing": (SERIES[5], "...."),
    "unknown": (SERIES[7], ""),
    "removed": (PAPER, ""),
}
_NARROW: Final = 0.07  # of the axis: a span below it has no room for its label


@dataclass(frozen=True, slots=True)
class Dot:
    """A value with its interval, None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A series over time: unix seconds and values, None for a gap."""

    label: str
    ts: Sequence[float]
    values: Sequence[float | None]


def shown(name: str, longest: int = _LONGEST) -> str:
    """A name as a chart can hold it: not too long, and nothing that is no text or has a meaning for matplotlib."""
    text = printable(name)
    if len(text) > longest:
        text = f"{text[: longest - 11]}…{text[-10:]}"
    return f"\u200b{text}" if text.startswith("_") else text  # else a legend leaves it out


def dots(
    name: str,
    label: str,
    rows: Sequence[tuple[str, Sequence[Dot]]],
    series: Sequence[str],
    axis: str,
    *,
    reference: tuple[float, str] | None = None,
    scale: float = 1.0,
    apart: bool = True,
) -> str:
    """A row a thing, a mark a series in it with its interval; `reference`: a vertical line and its meaning.

    `apart`: the series one below the other within a row.
    """
    spread = 0.24 if apart else 0.0
    height = 0.9 + 0.27 * len(rows) * (1 + spread * (len(series) - 1))
    with canvas(WIDTH_IN, height) as figure:
        axes = figure.add_subplot()
        n = len(series)
        handles = [
            _series_of_dots(axes, [row[1][i] for row in rows], i, spread * (i - (n - 1) / 2), scale) for i in range(n)
        ]
        if reference is not None:
            line = axes.axvline(reference[0] * scale, color=INK, linewidth=1.0, linestyle="--")
            handles.append(line)
        axes.set_yticks(range(len(rows)), [shown(row[0]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(axis)
        named = [*series, *([] if reference is None else [reference[1]])]
        if len(named) > 1:
            labels = [shown(text, 40) for text in named]
            figure.legend(handles, labels, loc="outside lower left", ncols=2)
        return inline_svg(figure, name, label)


def _series_of_dots(axes: Any, of: Sequence[Dot], i: int, offset: float, scale: float) -> Any:
    for at, dot in enumerate(of):
        if dot.low is not None and dot.high is not None and isfinite(dot.low) and isfinite(dot.high):
            axes.plot([dot.low * scale, dot.high * scale], [at + offset] * 2, color=SERIES[i], linewidth=1.6)
    values = [nan if dot.value is None else dot.value * scale for dot in of]
    hollow = {} if i == 0 else {"markerfacecolor": PAPER}
    (handle,) = axes.plot(
        values, [at + offset for at in range(len(of))], _MARKERS[i], color=SERIES[i], markersize=5, **hollow
    )
    return handle


def lines(
    name: str,
    label: str,
    series: Sequence[Line],
    axis: str,
    *,
    limit: tuple[float, str] | None = None,
    title: str | None = None,
    height_in: float = 2.6,
    from_zero: bool = True,
) -> str:
    """Series over time (UTC); `limit`: a horizontal line and its meaning."""
    with canvas(WIDTH_IN, height_in + 0.16 * ((len(series) + 1) // 2)) as figure:
        axes = figure.add_subplot()
        handles, labels = [], []
        for i, line in enumerate(series):
            (handle,) = axes.plot(
                [_moment(ts) for ts in line.ts],
                [nan if value is None else value for value in line.values],
                color=SERIES[i % len(SERIES)],
                marker=_MARKERS[i % len(_MARKERS)],
                linestyle=_STYLES[(i // 2) % len(_STYLES)],
                markevery=max(1, len(line.ts) // 16),
            )
            handles.append(handle)
            labels.append(shown(line.label))
        if limit is not None:
            handles.append(axes.axhline(limit[0], color=INK, linewidth=1.1, linestyle="--"))
            labels.append(limit[1])
        _time_axis(axes)
        axes.set_ylabel(axis)
        if from_zero:
            axes.set_ylim(bottom=0.0)
        if title is not None:
            axes.set_title(shown(title, 60))
        axes.grid()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower left", ncols=2)
        return inline_svg(figure, name, label)


def scatter(
    name: str,
    label: str,
    points: Sequence[tuple[str, Dot, Dot]],
    series: Sequence[tuple[str, Sequence[bool]]],
    axis: tuple[str, str],
) -> str:
    """Points (label, x, y) with intervals both ways; `series`: names, each with which of the points it has."""
    with canvas(WIDTH_IN * 1.45, 4.0) as figure:
        axes = figure.add_subplot()
        for i, (title, has) in enumerate(series):
            of = [point for point, mine in zip(points, has, strict=True) if mine]
            if not of:
                continue
            hollow = {"markerfacecolor": PAPER} if i == 2 else {}
            for _, x, y in of:
                for across, along in ((_pair(x), [y.value] * 2), ([x.value] * 2, _pair(y))):
                    if across is not None and along is not None:
                        axes.plot(across, along, color=SERIES[i], linewidth=1.2)
            xs, ys = [x.value for _, x, _ in of], [y.value for _, _, y in of]
            size = 11 if i == 0 else 5
            axes.plot(xs, ys, "*osD"[i], color=SERIES[i], markersize=size, label=title, **hollow)
        axes.set_xlabel(axis[0])
        axes.set_ylabel(axis[1])
        costs = [x.value for _, x, _ in points if x.value is not None and x.value > 0]
        if costs and max(costs) > 30 * min(costs):
            _log_axis(axes.xaxis, axes)
        axes.margins(0.08)
        figure.draw_without_rendering()  # so that places are known
        _labels(axes, points)
        axes.grid()
        figure.legend(loc="outside lower left", ncols=2)
        return inline_svg(figure, name, label)


def _log_axis(axis: Any, axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the scale's own is mathematical markup
    axis.set_minor_formatter(NullFormatter())


def _labels(axes: Any, points: Sequence[tuple[str, Dot, Dot]]) -> None:
    """Names beside their points where they cover no earlier one; none where there is no such place."""
    taken: list[tuple[float, float, float, float]] = []
    left, right = (edge * 72.0 / axes.figure.dpi for edge in (axes.bbox.x0, axes.bbox.x1))
    top = axes.bbox.y1 * 72.0 / axes.figure.dpi
    for text, x, y in points:
        name = shown(text, 24)
        at_x, at_y = axes.transData.transform((x.value, y.value)) * 72.0 / axes.figure.dpi
        width, height = 4.2 * len(name), 8.0
        places = [(side, down) for down in (3.0, -9.0, 11.0, -17.0, 19.0) for side in (6.0, -6.0)]
        boxes = {
            (side, down): (at_x + (side if side > 0 else side - width), at_y + down, width, height)
            for side, down in places
        }
        inside = (p for p in places if left <= boxes[p][0] <= right - width and boxes[p][1] <= top - height)
        place = next((p for p in inside if not any(_overlap(boxes[p], other) for other in taken)), None)
        if place is None:
            continue
        taken.append(boxes[place])
        axes.annotate(
            name,
            (x.value, y.value),
            place,
            textcoords="offset points",
            ha="left" if place[0] > 0 else "right",
            fontsize=7.5,
            color=MUTED,
        ).set_in_layout(False)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return (
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
    )


def _pair(dot: Dot) -> list[float] | None:
    return None if dot.low is None or dot.high is None else [dot.low, dot.high]


def diagonal(name: str, label: str, points: Sequence[tuple[float, Dot]], axis: tuple[str, str]) -> str:
    """Shares against probabilities, both on a square-root scale, which gives small ones room; the diagonal is right."""
    with canvas(WIDTH_IN * 0.8, 3.6) as figure:
        axes = figure.add_subplot()
        for way in (axes.set_xscale, axes.set_yscale):
            way("function", functions=(_root, _square))
        axes.plot([0.0, 1.0], [0.0, 1.0], color=MUTED, linestyle="--", linewidth=1.0)
        for x, dot in points:
            if dot.low is not None and dot.high is not None:
                axes.plot([x, x], [dot.low, dot.high], color=SERIES[0], linewidth=1.4)
        axes.plot([x for x, _ in points], [dot.value for _, dot in points], "o", color=SERIES[0])
        ticks = [0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.0)
        axes.set_xlabel(axis[0])
        axes.set_ylabel(axis[1])
        axes.grid()
        return inline_svg(figure, name, label)


def _root(values: Any) -> Any:
    import numpy as np

    return np.sqrt(np.clip(values, 0.0, None))


def _square(values: Any) -> Any:
    return values**2


def timeline(name: str, label: str, rows: Sequence[Mapping[str, Any]], from_ts: float, to_ts: float) -> str:
    """A bar a model, coloured, patterned and labelled by its state; a mark where drift reset a head.

    `rows`: {model, spans: [{state, from_ts, to_ts}], resets: [{ts}]}.
    """
    span = max(to_ts - from_ts, 1.0)
    with canvas(WIDTH_IN * 1.45, 0.9 + 0.3 * len(rows)) as figure:
        axes = figure.add_subplot()
        states: dict[str, Any] = {}
        for at, row in enumerate(rows):
            for part in row["spans"]:
                _span(axes, at, part, span, states)
            for reset in row["resets"]:
                (states["drift: reset"],) = axes.plot(
                    _moment(reset["ts"]), at, "v", color=INK, markerfacecolor=PAPER, markersize=7
                )
        axes.set_yticks(range(len(rows)), [shown(row["model"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(_moment(from_ts), _moment(from_ts + span))
        _time_axis(axes)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        if states:
            figure.legend(list(states.values()), list(states), loc="outside lower left", ncols=6)
        return inline_svg(figure, name, label)


def _span(axes: Any, at: int, part: Mapping[str, Any], span: float, states: dict[str, Any]) -> None:
    state = part["state"]
    if state is None:
        axes.plot([_moment(part["from_ts"]), _moment(part["to_ts"])], [at, at], color=MUTED, linewidth=1, linestyle=":")
        return
    colour, pattern = _FACES.get(state, (SERIES[4], "xx"))
    start, end = _moment(part["from_ts"]), _moment(part["to_ts"])
    bar = axes.barh(
        at, end - start, left=start, height=0.62, color=colour, hatch=pattern, edgecolor=PAPER, linewidth=0.6
    )
    states.setdefault(state, bar)
    if (part["to_ts"] - part["from_ts"]) / span > _NARROW * sqrt(len(state) / 8):
        axes.text(
            start + (end - start) / 2, at, state, ha="center", va="center", fontsize=7.5, color=INK,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
        )  # fmt: skip


def _time_axis(axes: Any) -> None:
    import matplotlib.dates

    dates: Any = matplotlib.dates  # only partly typed
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _moment(ts: float) -> datetime:
    return datetime.fromtimestamp(ts, UTC)
