"""How judgements look: tables for people, plain data for programs.

Decides nothing: what cannot be told has no number in either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from evaluation.intervals import ASSUMES
from evaluation.judgement import BIASED, Estimate, GroupJudgement, Judgement, MetricJudgement
from evaluation.selection import LEFT_OUT, SelectedRounds

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["judgement_data", "render_judgement", "render_selection", "selection_data"]

_NONE = "—"
_TITLES = {"quality": "quality", "cost_usd": "cost, USD per 1,000", "slow": "slow calls", "reward": "reward"}
_IN_GROUPS = {"quality": "quality", "cost_usd": "USD/1,000", "reward": "reward"}
_SCALES = {"cost_usd": 1000.0}


def selection_data(rounds: SelectedRounds, logs: Sequence[str]) -> dict[str, Any]:
    """What was judged, as plain data; times in unix seconds."""
    return {
        "logs": list(logs),
        "pool": rounds.selection.pool,
        "decisions": rounds.selected,
        "decisions_of_pool": rounds.count,
        "left_out_by_mode": dict(rounds.left_out),
        "left_out_because": {kind: LEFT_OUT.get(kind, kind) for kind in rounds.left_out},
        "fallbacks": rounds.fallbacks,
        "fallback_usd": rounds.fallback_usd,
        "from_ts": rounds.from_ts,
        "to_ts": rounds.to_ts,
        "where": rounds.selection.where,
        "models": list(rounds.arms),
        "context_version": rounds.version,
    }


def judgement_data(judgement: Judgement) -> dict[str, Any]:
    """A judgement as plain data: NaN and infinity become None, and each interval says what it assumes."""
    return {
        "policy": judgement.spec,
        "cannot_tell": judgement.cannot_tell,
        "decisions": judgement.rounds,
        "effective_samples": judgement.effective_samples,
        "largest_weight": judgement.largest_weight,
        "mean_weight": judgement.mean_weight,
        "gap_share": judgement.gap_share,
        "gaps": dict(judgement.gaps),
        "notes": list(judgement.notes),
        "metrics": {name: _metric_data(metric) for name, metric in judgement.metrics.items()},
    }


def _metric_data(metric: MetricJudgement) -> dict[str, Any]:
    return {
        "cannot_tell": metric.cannot_tell,
        "observed": metric.observed,
        "effective_samples": metric.effective_samples,
        "largest_weight": metric.largest_weight,
        "logged": _estimate_data(metric.logged),
        "headline": None if metric.headline is None else metric.headline.estimator,
        "estimates": [_estimate_data(estimate) for estimate in metric.estimates],
        "difference": None if metric.difference is None else _estimate_data(metric.difference),
        "groups": {kind: [_group_data(group) for group in groups] for kind, groups in metric.groups.items()},
    }


def _estimate_data(estimate: Estimate) -> dict[str, Any]:
    biased = estimate.estimator in BIASED
    data: dict[str, Any] = {"estimator": estimate.estimator, "value": _finite(estimate.value), "biased": biased}
    if estimate.threshold is not None:
        data["threshold"] = _finite(estimate.threshold)
    if estimate.rounds is not None:
        data["rounds"] = estimate.rounds
    data["intervals"] = [
        {"kind": i.kind, "low": _finite(i.low), "high": _finite(i.high), "assumes": ASSUMES[i.kind]}
        for i in estimate.intervals
    ]
    return data


def _group_data(group: GroupJudgement) -> dict[str, Any]:
    difference = group.difference
    return {
        "group": group.group,
        "decisions": group.rounds,
        "effective_samples": group.effective_samples,
        "logged": _finite(group.logged),
        "estimate": None if group.estimate is None else _estimate_data(group.estimate),
        "difference": None if difference is None else [_finite(difference.low), _finite(difference.high)],
        "cannot_tell": group.cannot_tell,
    }


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def render_selection(rounds: SelectedRounds, logs: Sequence[str], console: Console) -> None:
    """Say what is judged."""
    span = " to ".join(
        datetime.fromtimestamp(ts, UTC).isoformat(sep=" ", timespec="minutes") for ts in (rounds.from_ts, rounds.to_ts)
    )
    console.print(f"{rounds.selected:,} decisions of pool {rounds.selection.pool!r}, {span}", markup=False)
    console.print(f"  from {', '.join(logs)}", markup=False, soft_wrap=True)
    for kind, count in rounds.left_out.items():
        console.print(f"  left out: {count:,} {kind} ({LEFT_OUT.get(kind, 'not drawn')})", markup=False, soft_wrap=True)
    if rounds.fallbacks:
        console.print(
            f"  {rounds.fallbacks:,} were answered by another model: judged as the chosen one's failure, without the"
            f" {rounds.fallback_usd:.4g} USD of the other",
            markup=False,
            soft_wrap=True,
        )


def render_judgement(judgement: Judgement, console: Console, *, by_group: bool = True) -> None:
    """Print one candidate: its support, each metric, and the headline by category and tier."""
    console.print()
    console.print(f"policy {judgement.spec}", style="bold", markup=False)
    console.print(
        f"  effective sample size {judgement.effective_samples:,.0f} of {judgement.rounds:,}; weights: largest"
        f" {judgement.largest_weight:,.3g}, mean {judgement.mean_weight:.3f} (1 if propensities are right)",
        markup=False,
        soft_wrap=True,
    )
    if judgement.gaps:
        named = ", ".join(f"{arm} {share:.2%}" for arm, share in _largest(judgement.gaps.items()))
        console.print(
            f"  support gaps: {judgement.gap_share:.2%} of its choices could not be drawn there: {named}",
            markup=False,
            soft_wrap=True,
        )
    for note in judgement.notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)
    for metric in judgement.metrics.values():
        _render_metric(metric, console)
    if by_group:
        _render_groups(judgement, console)


def _render_metric(metric: MetricJudgement, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    scale = _SCALES.get(metric.metric, 1.0)
    title = _TITLES[metric.metric]
    if metric.cannot_tell is not None:
        console.print(f"  {title}: cannot tell, because {metric.cannot_tell}", markup=False, soft_wrap=True)
        return
    table = Table(
        title=Text(f"  {title}"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    table.add_column("estimator", no_wrap=True)
    for column in ("value", "bootstrap", "Bernstein", "anytime"):
        table.add_column(column, justify="right", no_wrap=True)
    for estimate in (metric.logged, *metric.estimates, *((metric.difference,) if metric.difference else ())):
        name = estimate.estimator
        if estimate.threshold is not None:
            name += f" (at {estimate.threshold:g})"
        if estimate.estimator in BIASED:
            name += " †"
        if estimate.rounds is not None:
            name += f" ({estimate.rounds:,} rounds)"
        by_kind = {i.kind: i for i in estimate.intervals}
        cells = [
            _interval(by_kind[kind].low * scale, by_kind[kind].high * scale) if kind in by_kind else ""
            for kind in ("bootstrap", "bernstein", "anytime")
        ]
        style = "bold" if metric.headline is estimate else None
        table.add_row(Text(name), _number(estimate.value * scale), *cells, style=style)
    console.print(table)
    if any(estimate.estimator in BIASED for estimate in metric.estimates):
        console.print("  † traded bias for variance: its intervals are around its own expectation", markup=False)


def _render_groups(judgement: Judgement, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for kind in ("category", "tier"):
        names = list(dict.fromkeys(g.group for m in judgement.metrics.values() for g in m.groups.get(kind, ())))
        if len(names) < 2:
            continue
        title = Text(f"  by {kind}: logged → DR, ± half its interval; {_NONE} cannot tell")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column(kind)
        table.add_column("decisions", justify="right")
        for column in _IN_GROUPS.values():
            table.add_column(column, justify="right", no_wrap=True)
        for name in names:
            row, count = [], 0
            for metric in _IN_GROUPS:
                groups = judgement.metrics[metric].groups.get(kind, ()) if metric in judgement.metrics else ()
                group = next((g for g in groups if g.group == name), None)
                count = max(count, 0 if group is None else group.rounds)
                row.append(_NONE if group is None else _group_cell(group, _SCALES.get(metric, 1.0)))
            table.add_row(Text(name), f"{count:,}", *row)
        console.print(table)


def _group_cell(group: GroupJudgement, scale: float) -> str:
    if group.estimate is None:
        return _NONE
    interval = group.estimate.intervals[0]
    half = 0.5 * (interval.high - interval.low) * scale
    return f"{group.logged * scale:.3f}→{group.estimate.value * scale:.3f}±{half:.3f}".replace("0.", ".")


def _largest(items: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(items, key=lambda item: -item[1])[:5]


def _interval(low: float, high: float) -> str:
    return f"{_number(low)}..{_number(high)}"


def _number(value: float) -> str:
    if not isfinite(value):
        return _NONE
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"
