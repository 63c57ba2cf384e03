"""How the demo looks: a live table, one line at a time where there is no terminal, and the summary at the end.

Turns what was counted into rich renderables and text. Counts nothing, decides nothing, and marks what is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from evaluation.demo_pool import DemoPool
from evaluation.demo_tally import Comparison, Episode, Event, ModelRow, Tally

__all__ = ["RECENT_S", "Scene", "event_line", "live_view", "progress_line", "summary"]

RECENT_S = 5.0
_EVENTS_SHOWN = 8
_BAR_FROM_WIDTH = 110
_BAR = 12
_WIDE = 100  # from this width on there is room between the columns
_STYLES = {"admitted": "green", "filtered": "red", "probing": "yellow", "unknown": "dim"}
_NONE = "–"


@dataclass(slots=True)
class Scene:
    """All there is to show. `states`: each model's, as the service's /metrics has it; `events` in order of time."""

    pool: DemoPool
    tally: Tally
    states: Mapping[str, str]
    events: Sequence[Event]
    episode: Episode | None
    elapsed_s: float
    seconds: float


def live_view(scene: Scene, size: ConsoleDimensions) -> RenderableType:
    """The screen while it runs; as many of the last events as fit."""
    tally, now_s = scene.tally, scene.elapsed_s
    recent = tally.rows(now_s - RECENT_S)
    columns = (f"share {RECENT_S:.0f} s", "share all", "quality", "$/1,000", f"p95 {RECENT_S:.0f} s", "state")
    table = _table(size.width, *columns)
    limit_s = scene.pool.p95_latency_s
    for new, old in zip(recent, tally.rows(), strict=True):
        share = f"{new.share:.0%}"
        if size.width >= _BAR_FROM_WIDTH:
            share = f"{'━' * round(_BAR * new.share):<{_BAR}} {share:>4}"
        slow = limit_s is not None and new.p95_s is not None and new.p95_s > limit_s
        p95 = Text(_seconds(new.p95_s), style="red" if slow else "")
        table.add_row(
            old.name, share, f"{old.share:.0%}", _number(old.quality), _usd(old), p95, _state(scene, old.name)
        )
    head = Text(f"Pointsman demo · {_what(scene)} · {now_s:.0f} of {scene.seconds:.0f} s", style="bold")
    parts: list[RenderableType] = [head, _line(_limits(scene.pool), "dim"), table, _line(_counts(scene))]
    compared = tally.compared()
    if compared is not None:
        parts.append(_line(f"against the same calls on {compared.single} alone (expected, {scene.pool.kind}):"))
        parts.append(_line(f"  {_difference(compared)}"))
    room = max(1, size.height - len(recent) - len(parts) - 2)
    for event in scene.events[-min(room, _EVENTS_SHOWN) :]:
        text = _event(event)
        text.no_wrap, text.overflow = True, "ellipsis"
        parts.append(text)
    return Group(*parts)


def progress_line(scene: Scene) -> str:
    """One line for a log: counts and shares of the last seconds."""
    recent = scene.tally.rows(scene.elapsed_s - RECENT_S)
    shares = ", ".join(
        f"{row.name} {row.share:.0%}" for row in sorted(recent, key=lambda row: -row.share)[:4] if row.calls
    )
    compared = scene.tally.compared()
    against = "" if compared is None else f" | {_difference(compared)}"
    return f"{scene.elapsed_s:5.1f} s  {scene.tally.calls:,} calls, {scene.tally.failures} errors | {shares}{against}"


def event_line(event: Event) -> str:
    """One event for a log."""
    return f"{event.at_s:5.1f} s  {event.model}{': ' if event.model else ''}{event.text}"


def summary(scene: Scene, console: Console) -> None:
    """Print what the run came to."""
    tally, end_s = scene.tally, scene.elapsed_s
    console.print(Text(f"\nPointsman demo · {_what(scene)} · ran {end_s:.0f} s", style="bold"))
    console.print(Text(_limits(scene.pool), style="dim"))
    console.print(Text(f"first and last {RECENT_S:.0f} s: share of the calls then", style="dim"))
    window = f"{RECENT_S:.0f} s"
    table = _table(console.width, "calls", f"first {window}", f"last {window}", "quality", "$/1,000", "p95", "state")
    first, last = tally.rows(until_s=RECENT_S), tally.rows(end_s - RECENT_S)
    for row, early, late in zip(tally.rows(), first, last, strict=True):
        cells = (f"{row.calls:,}", f"{early.share:.0%}", f"{late.share:.0%}", _number(row.quality), _usd(row))
        table.add_row(row.name, *cells, _seconds(row.p95_s), _state(scene, row.name))
    console.print(table)
    console.print(Text(_counts(scene)))
    for line in _whole_run(scene):
        console.print(Text(line))
    console.print(Text("Events", style="bold"))
    for event in scene.events:
        console.print(_event(event))
    for line in _episode(scene):
        console.print(Text(line))


def _whole_run(scene: Scene) -> Iterator[str]:
    tally, limit_s = scene.tally, scene.pool.p95_latency_s
    p95_s, compared = tally.p95_s(), tally.compared()
    if p95_s is None or compared is None:
        yield "No call was answered."
        return
    if limit_s is not None:
        verdict = "kept" if p95_s <= limit_s else "NOT kept"
        yield f"p95 of all calls as their callers saw them: {p95_s:.3f} s, limit {limit_s:g} s: {verdict}"
    verdict = "kept" if compared.quality >= scene.pool.min_accuracy else "NOT kept"
    yield f"mean quality of all calls: {compared.quality:.3f}, limit {scene.pool.min_accuracy:g}: {verdict}"
    origin = "expected by the simulated table" if scene.pool.kind == "simulated" else "as recorded"
    reason = "the most accurate single model that keeps the limits over this run"
    if not compared.keeps:
        reason = "the most accurate single model; none keeps the limits over this run"
    yield f"Against {compared.single} alone on the same calls ({reason}; {origin}):"
    late_s = scene.elapsed_s / 6
    parts = {
        f"first {RECENT_S:.0f} s": tally.compared(until_s=RECENT_S),
        "whole run": compared,
        f"last {late_s:.0f} s": tally.compared(since_s=scene.elapsed_s - late_s),
    }
    for name, part in parts.items():
        if part is not None:
            yield f"  {name:<11}{_difference(part)}"


def _episode(scene: Scene) -> Iterator[str]:
    """The drift episode, step by step: what happened and not what should have."""
    episode, tally = scene.episode, scene.tally
    if episode is None:
        return
    model, start_s, end_s = episode.model, episode.start_s, episode.end_s
    until = f"until {end_s:.1f} s" if end_s is not None else "until the end"
    yield f"Drift (simulated): latency of {model} × {episode.factor:g} from {start_s:.1f} s {until}"
    moves = [e for e in scene.events if e.model == model and e.to_state and e.at_s >= start_s]
    filtered = next((e for e in moves if e.to_state == "filtered"), None)
    if filtered is None:
        yield "  it was not filtered"
        return
    at_s = filtered.at_s
    sent, back = tally.sent_to(model, start_s, at_s), tally.back_from(model, start_s, at_s)
    yield (
        f"  filtered at {at_s:.1f} s, {at_s - start_s:.1f} s after the jump, when {back} of its calls since then "
        f"were back and {sent - back} more under way"
    )
    after = [e for e in moves if e.at_s > at_s]
    stages = [(at_s, "filtered"), *((e.at_s, e.to_state) for e in after)]
    for (since_s, state), (until_s, reached) in pairwise(stages):
        calls = tally.sent_to(model, since_s, until_s)
        when = f", {until_s - end_s:.1f} s after it recovered" if end_s is not None and until_s >= end_s else ""
        what = "admitted again" if reached == "admitted" else reached
        yield f"  {what} at {until_s:.1f} s{when}, after {calls} calls as {state}"
    since_s, state = stages[-1]
    if state != "admitted":
        calls = tally.sent_to(model, since_s, float("inf"))
        yield f"  still {state} when the run ended, with {calls} calls since {since_s:.1f} s"
    shares = [
        next(row.share for row in tally.rows(*window) if row.name == model)
        for window in (
            (start_s - RECENT_S, start_s),
            (at_s + 1.0, end_s or scene.elapsed_s),
            (scene.elapsed_s - RECENT_S,),
        )
    ]
    yield f"  its share: {shares[0]:.0%} before, {shares[1]:.0%} while filtered and slow, {shares[2]:.0%} at the end"


def _table(width: int, *columns: str) -> Table:
    narrow = width < _WIDE
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=narrow, header_style="dim")
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=max(12, width - (60 if narrow else 68)))
    for column in columns[:-1]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(columns[-1], no_wrap=True)
    return table


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _event(event: Event) -> Text:
    text = Text(f"{event.at_s:5.1f} s  ", style="dim")
    text.append(event.model, style=_STYLES.get(event.to_state, "bold" if not event.to_state else ""))
    text.append(f" {event.text}" if event.model else event.text)
    return text


def _what(scene: Scene) -> str:
    if scene.pool.kind == "simulated":
        return "simulated pool"
    run = scene.tally.run
    return f"recorded outcomes, run {run}" if run else "recorded outcomes"


def _limits(pool: DemoPool) -> str:
    limits = "" if pool.p95_latency_s is None else f"p95 ≤ {pool.p95_latency_s:g} s, "
    scaled = f" ({pool.kind} latencies × {pool.time_scale:g}, limit too)" if limits else ""
    return f"limits: {limits}accuracy ≥ {pool.min_accuracy:g}{scaled}"


def _counts(scene: Scene) -> str:
    tally, cost = scene.tally, scene.tally.cost_usd()
    rate = tally.calls / scene.elapsed_s if scene.elapsed_s > 0 else 0.0
    spent = "unknown" if cost is None else f"${cost:.2f}"
    text = f"{tally.calls:,} calls · {rate:.0f} a second · {tally.failures} errors · cost {spent} ({scene.pool.kind})"
    return f"{text} · last error: {tally.last_failure}" if tally.failures else text


def _difference(compared: Comparison) -> str:
    cost = "cost unknown"
    if compared.saving is not None:
        cost = f"cost {-compared.saving:+.0%} (${compared.cost_usd:.2f} / ${compared.single_cost_usd:.2f})"
    quality = compared.quality - compared.single_quality
    return f"{cost}, quality {quality:+.3f} ({compared.quality:.3f} / {compared.single_quality:.3f})"


def _state(scene: Scene, model: str) -> Text:
    state = scene.states.get(model, _NONE)
    return Text(state, style=_STYLES.get(state, ""))


def _usd(row: ModelRow) -> str:
    return _NONE if row.cost_per_1000_usd is None else f"{row.cost_per_1000_usd:.2f}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f} s"
