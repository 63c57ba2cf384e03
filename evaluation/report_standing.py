"""Filter events as a time line: which state each model was in and when, when drift reset it, and what happened.

From the table `events` of `evaluation.report_tables`; knows neither filters' arithmetic nor how it is drawn.
"""

from __future__ import annotations

from typing import Any, Final

from evaluation.logs import Log
from evaluation.report_tables import rows_of

__all__ = ["standing"]

MOST_EVENTS: Final = 200
MOST_SPANS: Final = 400  # of one model: the latest


def standing(log: Log, names: tuple[str, ...], from_ts: float, to_ts: float) -> dict[str, Any]:
    """By model its spans (state, from, to) and drift resets, and the latest 200 events of the time, newest last.

    A state is None as long as no event tells: the log has changes only.
    """
    state: dict[str, str | None] = dict.fromkeys(names)
    spans: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    resets: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    since = dict.fromkeys(names, from_ts)
    events: list[dict[str, Any]] = []
    total = 0
    for event in rows_of(log, "SELECT * FROM events"):
        model, ts = event["model"], event["ts"]
        if model not in spans:
            state[model], spans[model], resets[model], since[model] = None, [], [], from_ts
        inside = ts >= from_ts
        if inside:
            total += 1
            events = [*events[-(MOST_EVENTS - 1) :], _told(event)]
        if event["reason"] == "drift" and event["to_state"] is None:
            if inside:
                resets[model].append({"ts": ts, "head": event["constraint_name"], "change": event["evidence"]})
            continue
        to_state = event["to_state"] or {"added": "unknown", "removed": "removed"}.get(event["reason"])
        if to_state is None:
            continue
        if inside:
            before = state[model] or event["from_state"]
            _close(spans[model], before, since[model], ts)
            since[model] = ts
        state[model] = to_state
    for model, of_model in spans.items():
        _close(of_model, state[model], since[model], max(to_ts, since[model]))
    return {
        "from_ts": from_ts,
        "to_ts": to_ts,
        "events": total,
        "models": [
            {"model": model, "spans": of_model[-MOST_SPANS:], "resets": resets[model][-MOST_SPANS:]}
            for model, of_model in spans.items()
        ],
        "latest": events,
    }


def _close(spans: list[dict[str, Any]], state: str | None, from_ts: float, to_ts: float) -> None:
    if spans and spans[-1]["state"] == state:
        spans[-1]["to_ts"] = to_ts
    elif to_ts > from_ts or not spans:
        spans.append({"state": state, "from_ts": from_ts, "to_ts": to_ts})


def _told(event: dict[str, Any]) -> dict[str, Any]:
    return {
        name: event[name]
        for name in ("ts", "model", "constraint_name", "from_state", "to_state", "reason", "calls", "rate")
    }
