"""What people see of a run of `evaluate`: progress with the cost so far, then a table and what is left to do.

Text only. Decides nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evaluation.benchmark import Ending

__all__ = ["ProgressView", "render_ending", "render_figures"]

LINE_EVERY_S: Final = 10.0
PLAIN_WIDTH: Final = 400


class ProgressView:
    """A bar in a terminal, a line every LINE_EVERY_S elsewhere; a context."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._said_at_s = console, total, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[cost]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("asking", total=total, cost="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, done: int, spent_usd: float, failing: Mapping[str, str]) -> None:
        """`done` of all, the known cost so far, and the models given up."""
        note = f" · given up: {', '.join(failing)}" if failing else ""
        cost = f"{_usd(spent_usd)} USD{note}"
        self._bar.update(self._task, completed=done, cost=escape(cost))
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s - self._said_at_s >= LINE_EVERY_S:
            self._said_at_s = now_s
            self._console.print(f"{done} of {self._total} · {cost}", markup=False)

    def say(self, text: str) -> None:
        """A line of its own, beside the bar."""
        self._console.print(text, markup=False)


def render_figures(models: Sequence[Mapping[str, Any]], console: Console, *, by_category: bool) -> None:
    """The table: a row per model, and with `by_category` one per category below it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for heading in ("n", "accuracy", "95 % interval", "p50 s", "p95 s", "USD a call", "errors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in models:
        table.add_row(escape(entry["model"]), *_cells(entry))
        if by_category:
            for category in entry["categories"]:
                table.add_row(f"  {escape(category['category'])}", *_cells(category), style="dim")
    if not console.is_terminal:  # a file or pipe has no width: names stay whole there, for programs that look for them
        console = Console(file=console.file, width=PLAIN_WIDTH, highlight=False)
    console.print(table)


def render_ending(ending: Ending, console: Console, *, spent_usd: float, judging_usd: float, resume: str) -> None:
    """What it cost, what is left out and why, and how to go on."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    judged = f", {_usd(judging_usd)} of it for judges" if judging_usd else ""
    say(f"known cost: {_usd(spent_usd)} USD{judged}")
    for model, why in ending.failing.items():
        say(f"{model} could not be evaluated: {why}")
    if ending.trouble is not None:
        say(f"ended early: {ending.trouble}")
    if ending.reason == "budget":
        say(f"stopped by --budget-usd; {ending.left_out} answers are left out, the models equally far")
    elif ending.left_out:
        say(f"{ending.left_out} answers are left out")
    if ending.unposted:
        say(f"{ending.unposted} results are not with the service yet: {ending.post_problem or 'it refused them'}")
    if ending.left_out or ending.unposted or ending.failing:
        say(f"go on with: {resume}")


def _cells(entry: Mapping[str, Any]) -> list[str]:
    accuracy, latency, cost = entry["accuracy"], entry["latency_s"], entry["cost_usd_per_call"]
    known = accuracy["mean"] is not None
    return [
        str(accuracy["samples"]),
        f"{accuracy['mean']:.3f}" if known else "–",
        f"{accuracy['low']:.3f} – {accuracy['high']:.3f}" if known else "–",
        *("–" if latency[q] is None else f"{latency[q]:.2f}" for q in ("p50", "p95")),
        "unknown" if cost["mean"] is None else _usd(cost["mean"]),
        str(sum(entry["errors"].values())),
    ]


def _usd(amount: float) -> str:
    """To four significant digits, without an exponent."""
    if amount == 0.0:
        return "0"
    decimals = 3 - math.floor(math.log10(amount))
    return f"{amount:.{min(max(decimals, 2), 9)}f}"
