"""Runs the repetitions and values that `pointsman simulate` was asked for; prints, writes and draws what came of it.

Means over repetitions come with standard errors. Knows nothing of how a single run is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from math import isnan, sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bandit.errors import BanditError, InvalidInput
from evaluation.frontier import Point, efficient, plot, sweep_values
from evaluation.simulation_figures import Figures
from serving.commands.simulation_job import Job, Result, notes_of, run_job, settings_of
from serving.config_overrides import split_override
from serving.settings import ConfigError

__all__ = ["Options", "report"]

_UNKNOWN = "—"
_COLUMNS = {  # head of a column: the figures in it, and how they are written
    "quality": (("quality",), ".4f"),
    "USD/1k": (("usd_per_1000",), ".4g"),
    "p50/p95 s": (("p50_latency_s", "p95_latency_s"), ".2f"),
    "reward": (("reward",), ".4f"),
    "slow": (("slow_share",), ".1%"),  # share of calls slower than the p95 limit
    "over": (("breaking_share",), ".1%"),  # share of calls to models that break a limit on these calls
}
_Columns = Mapping[str, tuple[tuple[str, ...], str]]
_EVENTS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Options:
    """What to repeat, and where results go: `sweep` is PATH=VALUES."""

    seeds: int
    sweep: str | None
    workers: int
    json_out: Path | None
    plot: Path | None


@dataclass(frozen=True, slots=True)
class _Summary:
    """The repetitions of one configuration; figures by name as (mean, standard error)."""

    label: str
    results: tuple[Result, ...]

    @property
    def figures(self) -> dict[str, tuple[float, float]]:
        return _means([result.figures for result in self.results])

    @property
    def beside(self) -> dict[str, dict[str, tuple[float, float]]]:
        return {name: _means([r.beside[name] for r in self.results]) for name in self.results[0].beside}

    def decisions_per_s(self, took: str) -> float:
        """Of one process: calls over what deciding and learning took, `took_s` or `took_cpu_s` of a Result."""
        return sum(r.calls for r in self.results) / max(sum(float(getattr(r, took)) for r in self.results), 1e-9)

    @property
    def shares(self) -> dict[str, float]:
        return {name: _mean([r.shares[name] for r in self.results]) for name in self.results[0].shares}

    def point(self) -> Point:
        usd, quality = self.figures["usd_per_1000"], self.figures["quality"]
        return Point(self.label, usd[0], quality[0], usd[1], quality[1])


def report(job: Job, options: Options) -> None:
    """Run everything and tell of it. Raises ConfigError, InvalidInput, WarmStartUnusable, OSError."""
    _check_places(options)
    path, values = _swept(options.sweep)
    variants = {value: replace(job, overrides=(*job.overrides, f"{path}={value}")) for value in values}
    variants = variants or {"": job}
    for variant in variants.values():
        settings_of(variant)  # a mistake in the last value must not be found after the others have run
    console = Console(highlight=False)
    _, pool = settings_of(next(iter(variants.values())))
    notes = notes_of(next(iter(variants.values())))
    console.print(Text(f"Pool {pool.name}", style="bold"))
    for note in notes:
        console.print(Text(f"  {note}"), soft_wrap=True)
    summaries = []
    with _runner(options.workers, options.seeds * len(variants)) as runner:
        jobs = [replace(v, seed=v.seed + k) for v in variants.values() for k in range(options.seeds)]
        results = map(_attempt, jobs) if runner is None else runner.map(_attempt, jobs)
        for value in variants:
            summary = _Summary(value or pool.name, tuple(_sound(next(results)) for _ in range(options.seeds)))
            summaries.append(summary)
            if values:
                console.print(Text(_line(path, summary)), soft_wrap=True)
    _show(console, summaries, path)
    if options.json_out is not None:
        options.json_out.write_text(json.dumps(_as_data(job, pool.name, path, summaries), indent=1) + "\n")
    if options.plot is not None:
        title = f"Pool {pool.name}" + (f", by {path}" if path else "")
        plot(options.plot, title, [s.point() for s in summaries], list(_fixed_points(summaries[0])))
        console.print(Text(f"drawn in {options.plot}"), soft_wrap=True)


def _check_places(options: Options) -> None:
    """What can be known to go wrong at the end is said at the beginning."""
    for path in (options.json_out, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidInput(str(path), "its folder does not exist")
    if options.plot is not None:
        if options.plot.suffix not in (".svg", ".png"):
            raise InvalidInput("--plot", f"{options.plot.name} must end in .svg or .png")
        try:
            import matplotlib  # noqa: F401, ICN001
        except ImportError:
            raise InvalidInput("--plot", "needs matplotlib: pip install 'pointsman[report]'") from None


def _swept(sweep: str | None) -> tuple[str, tuple[str, ...]]:
    if sweep is None:
        return "", ()
    path, values = split_override(sweep)
    return path, tuple(dict.fromkeys(sweep_values(values)))


@contextmanager
def _runner(workers: int, jobs: int) -> Iterator[Executor | None]:
    """Processes to share several jobs; None for a single one, which runs here."""
    if min(workers, jobs) < 2:
        yield None
        return
    executor = ProcessPoolExecutor(min(workers, jobs), mp_context=get_context("spawn"))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _attempt(job: Job) -> Result | str:
    """The result, or what went wrong: errors that carry data do not survive the way between processes."""
    try:
        return run_job(job)
    except (BanditError, ConfigError, OSError) as error:
        return str(error)


def _sound(result: Result | str) -> Result:
    if isinstance(result, str):
        raise InvalidInput("simulation", result)
    return result


# --- means


def _means(several: Sequence[Figures]) -> dict[str, tuple[float, float]]:
    return {f.name: _mean_se([getattr(figures, f.name) for figures in several]) for f in fields(Figures)}


def _mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error (NaN of fewer than two)."""
    error = float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return _mean(values), error


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


# --- for people


def _show(console: Console, summaries: Sequence[_Summary], path: str) -> None:
    first = summaries[0]
    shown = {head: column for head, column in _COLUMNS.items() if not isnan(first.figures[column[0][-1]][0])}
    worth = efficient([summary.point() for summary in summaries])
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("value" if path else "chosen by", overflow="fold")
    for head in shown:
        table.add_column(head, justify="right")
    for summary, best in zip(summaries, worth, strict=True):
        mark = " *" if path and best else ""
        table.add_row(Text(f"{summary.label}{mark}"), *_cells(summary.figures, shown), style="bold")
        if len(summary.results) > 1:
            table.add_row("± its error", *_cells(summary.figures, shown, of=1), style="dim")
    for name, figures in first.beside.items():
        table.add_row(Text(name), *_cells(figures, shown))
    console.print(table)
    if "over" in shown:
        console.print(Text("  over: calls to models that break a limit on these calls"))
    if path:
        console.print(Text("  * no other value is both as cheap and as good"))
    else:
        for line in _lines(first):
            console.print(Text(f"  {line}"), soft_wrap=True)
    calls, took_s = (sum(getattr(r, name) for s in summaries for r in s.results) for name in ("calls", "took_s"))
    lived_s = sum(r.simulated_s for s in summaries for r in s.results)
    console.print(
        Text(
            f"  {calls:,} decisions, {calls / took_s:,.0f} a second in each process:"
            f" {lived_s / took_s:,.0f} times as fast as real time"
        ),
        soft_wrap=True,
    )


def _cells(figures: Mapping[str, tuple[float, float]], shown: _Columns, of: int = 0) -> Iterator[str]:
    """A row's means, or (`of` 1) their standard errors."""
    for names, form in shown.values():
        values = (figures[name][of] for name in names)
        yield "/".join(_UNKNOWN if isnan(value) else f"{value:{form}}" for value in values)


def _line(path: str, summary: _Summary) -> str:
    quality, usd = summary.figures["quality"][0], summary.figures["usd_per_1000"][0]
    return f"  {path}={summary.label}: quality {quality:.4f}, {usd:.4g} USD per 1,000"


def _lines(summary: _Summary) -> Iterator[str]:
    shares = sorted(summary.shares.items(), key=lambda entry: -entry[1])
    yield "calls by model: " + ", ".join(f"{name} {share:.1%}" for name, share in shares)
    uses = [r.budget_use for r in summary.results if r.budget_use is not None]
    if uses:
        yield f"budget used: {_mean(uses):.1%}" + (f", at most {max(uses):.1%}" if len(uses) > 1 else "")
    flagged, refused = (_mean([getattr(r, name) for r in summary.results]) for name in ("flagged", "refused"))
    if flagged > 0:
        yield f"calls for which no model kept the limits: {flagged:.1%}"
    if refused > 0:
        yield f"calls refused, as no model was feasible: {refused:.1%}"
    changes = summary.results[0].changes
    if changes:
        which = " (first repetition)" if len(summary.results) > 1 else ""
        yield f"changes of standing{which}: {len(changes)}"
        for change in changes[:_EVENTS_SHOWN]:
            yield "  " + _event(change)
        if len(changes) > _EVENTS_SHOWN:
            yield f"  … and {len(changes) - _EVENTS_SHOWN} more; --json has all"


def _event(change: Mapping[str, Any]) -> str:
    if change["reason"] == "drift":
        return f"call {change['call'] + 1:,}: {change['model']}: drift in {change['head']}, by {change['change']:+.2g}"
    return (
        f"call {change['call'] + 1:,}: {change['model']}: {change['from']} → {change['to']}"
        f" ({change['limit']}, {change['reason']}; {change['rate']:.1%} bad of its {change['calls']:,} calls)"
    )


def _fixed_points(summary: _Summary) -> Iterator[Point]:
    for name, figures in summary.beside.items():
        yield Point(name, figures["usd_per_1000"][0], figures["quality"][0])


# --- for scripts


def _as_data(job: Job, pool: str, path: str, summaries: Sequence[_Summary]) -> dict[str, Any]:
    worth = efficient([summary.point() for summary in summaries])
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(job).items()}
    variants = [_variant(s, path, best) for s, best in zip(summaries, worth, strict=True)]
    found: dict[str, Any] = _without_nan({"pool": pool, "asked": asked, "sweep": path or None, "variants": variants})
    return found


def _variant(summary: _Summary, path: str, best: bool) -> dict[str, Any]:  # noqa: FBT001
    return {
        "value": summary.label if path else None,
        "pareto_efficient": best,
        "figures": {name: {"mean": m, "se": se} for name, (m, se) in summary.figures.items()},
        "beside": {who: {name: mean for name, (mean, _) in of.items()} for who, of in summary.beside.items()},
        "shares": summary.shares,
        "decisions_per_s": summary.decisions_per_s("took_s"),
        "decisions_per_cpu_s": summary.decisions_per_s("took_cpu_s"),
        "seeds": [asdict(result) for result in summary.results],
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value
