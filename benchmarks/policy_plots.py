"""The policy benchmark's pictures: quality against cost, and a newcomer's share over time.

Draws what it is given with matplotlib, of the extra `bench`; computes nothing but means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.policy_jobs import Result

__all__ = ["write_plots"]

_WINDOW = 100
_LINES = {"hull": "ks--", "oracle": "k^:"}


def write_plots(folder: Path, rows: Sequence[dict[str, Any]], results: Sequence[Result]) -> list[Path]:
    """PNG files for what there is to draw in `rows` (as in the JSON) and in the results' curves; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if any(row["cost_usd_per_call"] is not None for row in rows):
        written.append(_quality_against_cost(folder, rows))
    written += _curves(folder, rows, results)
    return written


def _quality_against_cost(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A line for each policy over its settings, by cost; single models as crosses."""
    axes, figure = _axes()
    points: dict[str, set[tuple[float, float]]] = {}
    for row in rows:
        if row["cost_usd_per_call"] is not None and row["quality"] is not None and "of the best" not in row["setting"]:
            points.setdefault(row["policy"], set()).add((row["cost_usd_per_call"], row["quality"]))
    for policy, found in points.items():
        cost, quality = np.array(sorted(found)).T
        if policy.startswith("single "):
            axes.plot(cost, quality, "x", color="grey")
            axes.annotate(policy.removeprefix("single "), (cost[0], quality[0]), fontsize=6, color="grey")
        else:
            axes.plot(cost, quality, _LINES.get(policy, "o-"), markersize=3, linewidth=1, label=policy)
    axes.set_xscale("log")
    axes.set_xlabel("USD a call")
    axes.set_ylabel("quality")
    return _written(axes, figure, rows, folder, "quality_cost")


def _curves(folder: Path, rows: Sequence[dict[str, Any]], results: Sequence[Result]) -> list[Path]:
    """For each kind of curve one file: a line for each setting and policy, the mean over the seeds."""
    written = []
    for kind in dict.fromkeys(name for result in results for name in result.curves):
        axes, figure = _axes()
        groups: dict[tuple[str, str], list[list[float]]] = {}
        for result in results:
            if kind in result.curves:
                groups.setdefault((result.setting, result.policy), []).append(result.curves[kind])
        for (setting, policy), curves in groups.items():
            mean = np.array(curves).mean(axis=0)
            axes.plot(_WINDOW * (np.arange(len(mean)) + 1), mean, linewidth=1, label=f"{policy}: {setting}")
        axes.set_xlabel("call")
        axes.set_ylabel(kind)
        written.append(_written(axes, figure, rows, folder, kind.replace("'", "").replace(" ", "_")))
    return written


def _axes() -> tuple[Any, Any]:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    return axes, figure


def _written(axes: Any, figure: Any, rows: Sequence[dict[str, Any]], folder: Path, kind: str) -> Path:
    axes.set_title(f"{rows[0]['set']}, {rows[0]['scenario']}")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(fontsize=6, loc="outside right upper")
    path = folder / f"{rows[0]['set']}_{rows[0]['scenario']}_{kind}.png"
    figure.savefig(path, dpi=150)
    return path
