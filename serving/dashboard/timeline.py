"""The time line: what happened to models and pools, newest last, each entry told in words for a person.

Keeps the last few hundred. Knows the form of the log's events, and neither who asks nor what follows from them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import orjson

from serving.store import Event

__all__ = ["TimeLine", "told"]

_KEPT: Final = 500
_LONGEST: Final = 300  # characters of a detail
_CANARY: Final = {
    "canary_started": "canary starts",
    "canary_step": "canary gets more calls",
    "canary_promoted": "canary is promoted",
    "canary_rolled_back": "canary is rolled back",
    "canary_held": "canary is held",
    "canary_aborted": "canary is aborted",
    "canary_released": "model is let in again",
}
_ACTIONS: Final = {
    "models": "model",
    "cache": "cache",
    "drain": "drain",
    "faults": "fault",
    "configuration": "configuration",
    "log": "log",
}  # subjects whose change says it all
_LIMITS: Final = {
    "p95_latency_s": "p95 latency",
    "p95_time_to_first_token_s": "p95 time to first token",
    "max_error_rate": "error rate",
    "min_accuracy": "accuracy",
}


class TimeLine:
    """The entries: `{ts, kind, pool, model, title, detail, by, …}`; those of filters keep their numbers, too."""

    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self.count = 0  # of all there ever were: a reader asks for what is newer than it has seen

    def witness(self, event: Event) -> None:
        """Note an event of the log that is of no decision."""
        row = orjson.loads(event.payload)
        # What became of pools stands there already; what left the log may be told every hour.
        if row.get("subject") not in ("models", "log"):
            self._add(told(row))

    def since(self, count: int) -> list[dict[str, Any]]:
        """The entries that came when `count` were there already, oldest first."""
        new = min(self.count - count, len(self._entries))
        return [] if new <= 0 else list(self._entries)[-new:]

    def last(self, limit: int, pool: str | None = None) -> list[dict[str, Any]]:
        """The newest entries, newest first; with `pool` only those of that pool and of no pool in particular."""
        found = [entry for entry in reversed(self._entries) if pool is None or entry["pool"] in (None, pool)]
        return found[:limit]

    def standing(self, pool: str, model: str, ts: float) -> dict[str, Any] | None:
        """The last filter's entry of a model up to unix time `ts`; None where none of those kept is that old."""
        return self._newest(ts, lambda e: e["kind"] == "filter" and e["model"] == model and e["pool"] == pool)

    def disabled(self, pool: str, model: str, ts: float) -> bool:
        """Whether an operator had last disabled a model, in the pool or everywhere, at `ts`."""
        here = self._newest(ts, lambda e: e.get("what") == "disabled" and e["pool"] == pool)
        everywhere = self._newest(ts, lambda e: e.get("what") == "model_disabled" and e["model"] == model)
        return (here is not None and model in (here["after"] or ())) or bool(everywhere and everywhere["after"])

    def broken(self, model: str, ts: float) -> bool:
        """Whether a breaker of the model was last seen open at `ts`."""
        found = self._newest(ts, lambda e: e["kind"] == "breaker" and e["model"] == model)
        return found is not None and found["to"] == "open"

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return {"entries": list(self._entries), "count": self.count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self._entries = deque(state["entries"], maxlen=_KEPT)
        self.count = state["count"]

    def _newest(self, ts: float, fits: Any) -> dict[str, Any] | None:
        return next((entry for entry in reversed(self._entries) if entry["ts"] <= ts and fits(entry)), None)

    def _add(self, entry: dict[str, Any]) -> None:
        self.count += 1
        self._entries.append(entry)


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a row of the log's `changes` or `filter_events`."""
    if "subject" in row:
        return _change(row)
    if row["reason"] in ("added", "removed"):
        place = "the service" if row.get("pool") is None else f"pool {row['pool']}"
        return _entry(row, "model", f"{'joins' if row['reason'] == 'added' else 'leaves'} {place}", "")
    return _standing(row)


def _entry(row: Mapping[str, Any], kind: str, title: str, detail: str) -> dict[str, Any]:
    return {
        "ts": row["ts"],
        "kind": kind,
        "pool": row.get("pool"),
        "model": row.get("model"),
        "title": title,
        "detail": detail[:_LONGEST],
        "by": row.get("by"),
    }


def _standing(row: Mapping[str, Any]) -> dict[str, Any]:
    """A filter's transition, or a drift's reset."""
    if row["reason"] == "drift":
        head = row["constraint_name"]
        text = f"what was learned of its {head} starts anew: it moved by {row['evidence']:.3g}"
        return _entry(row, "drift", f"drift in {head}", text)
    limit = _LIMITS.get(row["constraint_name"], row["constraint_name"])
    seen = f"{row['rate']:.1%} of {row['calls']} calls broke the limit on {limit}; {row['limit_rate']:.1%} are allowed"
    entry = _entry(row, "filter", f"{row['to_state']}: {limit}", f"{row['reason']}; {seen}")
    kept = ("constraint_name", "from_state", "to_state", "reason", "calls", "rate", "limit_rate", "evidence")
    return entry | {name: row.get(name) for name in kept}


def _change(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an operator, a canary or a budget changed."""
    subject, what = row["subject"], row["what"]
    if subject == "keys":  # whose key it is stands in the list of keys
        return _entry(row, "key", f"key {what.removeprefix('key_').replace('_', ' ')}", "")
    if subject == "breakers":
        title, detail = f"breaker {what.replace('_', ' ')}", f"endpoint {row['reason']}: {row['before']} before"
        return _entry(row, "breaker", title, detail) | {"to": what}
    if what in _CANARY or what.startswith("canary"):
        share = (row.get("after") or {}).get("share")
        given = [] if share is None else [f"{share:.0%} of the calls"]
        title = _CANARY.get(what, what.replace("_", " "))
        return _entry(row, "canary", title, "; ".join([row["reason"]] * bool(row.get("reason")) + given))
    if subject == "budgets" and what != "limit":
        name = row["after"]["budget"]
        return _entry(row, "budget", f"budget {what}", f"{name}: {row.get('reason') or ''}")
    if subject in _ACTIONS:
        after = row.get("after") or {}
        detail = ", ".join(after.get("changed", ())) if subject == "configuration" else ""
        detail = _short(after) if subject == "log" else detail
        return _entry(row, "change", f"{_ACTIONS[subject]} {what.replace('_', ' ')}", detail)
    titles = {"model_disabled": "switched off" if row.get("after") else "switched on", "limit": "budget changed"}
    detail = "" if what == "model_disabled" else f"{_short(row.get('before'))} → {_short(row.get('after'))}"
    entry = _entry(row, "change", titles.get(what, f"{what.replace('_', ' ')} changed"), detail)
    return entry | {"what": what, "after": row.get("after")}


def _short(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_short(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(str(item.get("name", item) if isinstance(item, Mapping) else item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
