"""A pool's canary as part of the traffic's fold: what it takes of the calls, what it has proved, and how it ended.

Turns what the trial proposes into rows of the log, and rows into the trial's moves. Starts nothing by itself but what
the configuration says; it must never know of HTTP, nor who may ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np
import orjson

from bandit.canary import Move, Plan, Trial
from bandit.pool import Pool
from bandit.types import BoolArray, Feedback, Outcome
from serving.imputation import is_imputed
from serving.records import Record
from serving.traffic.canary_settings import CanarySettings

__all__ = ["STARTED", "Canary", "taken_over"]

STARTED: Final = "canary_started"
_HISTORY: Final = 100
Row = dict[str, Any]


class Canary:
    """The canary of one pool, if there is or was one; `configured`: the one that the configuration asks for.

    What is asked for is started once: again only when the configuration asks for another one.
    """

    def __init__(self, pool: Pool, configured: CanarySettings | None = None) -> None:
        self._pool, self._configured = pool, configured
        self._digest = None if configured is None else _digest(configured)
        self._seen: str | None = None  # the digest of what was configured when one was last started
        self.trial: Trial | None = None
        self._history: deque[Row] = deque(maxlen=_HISTORY)

    @property
    def running(self) -> bool:
        """Whether one takes traffic."""
        return self.trial is not None and self.trial.running

    def steer(self, names: Sequence[str]) -> tuple[BoolArray, tuple[tuple[int, float], ...]]:
        """(which arms the policy must leave alone, shape (n_arms,); (arm, share) of what is mixed into its choice)."""
        held = np.zeros(len(names), dtype=np.bool_)
        trial = self.trial
        if trial is None or not trial.keeps_out or len(names) < 2:
            return held, ()
        if trial.plan.model in names:
            held[names.index(trial.plan.model)] = True
        return held, tuple((names.index(model), share) for model, share in trial.parts() if model in names)

    def outcome(self, record: Record, outcome: Outcome) -> Sequence[Row]:
        """An attempt of the pool ended; the row this calls for."""
        if self.trial is None or not self.trial.running:
            return ()
        move = self.trial.observe(record.decision, outcome)
        return self._rows(self._filtered() or move, outcome.ts)

    def feedback(self, record: Record, feedback: Feedback) -> Sequence[Row]:
        """Feedback came, `record` being as before it; the row this calls for.

        The first posted quality counts, as a test cannot take one back; and only of the model that was drawn.
        """
        first = feedback.revises is None or is_imputed(record.feedback)
        if self.trial is None or feedback.quality is None or is_imputed(feedback) or not first:
            return ()
        if record.failed or record.served_by != record.decision.chosen:
            return ()
        return self._rows(self.trial.grade(record.decision, feedback.quality), feedback.ts)

    def tick(self, now: float) -> Sequence[Row]:
        """What the passing of time calls for, at unix time `now`: the configuration's canary, a look, a report."""
        if self._configured is not None and self._digest != self._seen:
            return [self.start(self._configured.to_plan(), now, None, "the configuration asks for it")]
        return () if self.trial is None else self._rows(self._filtered() or self.trial.tick(now), now)

    def start(self, plan: Plan, now: float, by: str | None, reason: str | None = None) -> Row:
        """The row that starts a canary, in place of the one before."""
        before = None if self.trial is None else self.trial.place() | {"model": self.trial.plan.model}
        after = {"phase": "running", "step": 0, "share": plan.shares[0], "plan": plan.to_row()}
        change = {"before": before, "after": after, "reason": reason, "configured": self._digest}
        return self._row(STARTED, plan.model, now, by) | change

    def abort(self, now: float, by: str | None) -> Row | None:
        """The row that ends a running canary by an operator's will; None where none runs."""
        if self.trial is None or not self.trial.running:
            return None
        return self._of(self.trial.end("canary_aborted", "aborted by an operator"), now, by)

    def release(self, now: float, by: str | None) -> Row | None:
        """The row that lets a model in that a failed or aborted canary keeps out; None where none is kept out."""
        if self.trial is None or self.trial.running or not self.trial.keeps_out:
            return None
        return self._of(self.trial.end("canary_released", "released by an operator"), now, by)

    def changed(self, row: Mapping[str, Any]) -> None:
        """Act on a row of a canary."""
        what, after = row["what"], row["after"]
        if what == STARTED:
            self.trial, self._seen = Trial(Plan.from_row(after["plan"]), row["ts"]), row.get("configured")
            after = {name: value for name, value in after.items() if name != "plan"}
        elif self.trial is None or self.trial.plan.model != row["model"]:
            return
        else:
            self.trial.apply(what, after, row["ts"])
        shown = {name: row[name] for name in ("ts", "what", "model", "before", "reason", "by")}
        self._history.append(shown | {"after": after})

    def status(self) -> dict[str, Any] | None:
        """What there is to show of the canary, its evidence and its history; None where there never was one."""
        trial = self.trial
        if trial is None:
            return None
        plan = trial.plan
        return {
            "model": plan.model,
            "phase": trial.phase,
            "step": trial.step,
            "share": trial.share,
            "steps": list(plan.shares),
            "compare_to": plan.compare_to,
            "held": trial.held,
            "kept_out": trial.keeps_out and not trial.running,
            "needs": trial.needs(),
            "guardrails": [
                {"name": check.name, "verdict": check.verdict, "text": check.text} for check in trial.checks()
            ],
            "evidence": trial.summary(),
            "history": list(self._history),
        }

    def state(self) -> dict[str, Any]:
        """All of it as plain data; `load` is its inverse."""
        trial = None if self.trial is None else self.trial.state()
        return {"trial": trial, "seen": self._seen, "history": list(self._history)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.trial = None if state["trial"] is None else Trial.from_state(state["trial"])
        self._seen = state["seen"]
        self._history = deque(state["history"], maxlen=_HISTORY)

    def _filtered(self) -> Move | None:
        """The end of a canary that one of the pool's own limits has filtered."""
        trial = self.trial
        if trial is None or not trial.running or trial.plan.model not in self._pool.names:
            return None
        if self._pool.filters.states[self._pool.names.index(trial.plan.model)] != "filtered":
            return None
        return trial.end("canary_rolled_back", "filtered: it is proved to break a limit of the pool")

    def _rows(self, move: Move | None, ts: float) -> Sequence[Row]:
        return () if move is None else (self._of(move, ts, None),)

    def _of(self, move: Move, ts: float, by: str | None) -> Row:
        model = "" if self.trial is None else self.trial.plan.model
        change = {"before": move.before, "after": move.after, "reason": move.reason}
        return self._row(move.what, model, ts, by) | change

    def _row(self, what: str, model: str, ts: float, by: str | None) -> Row:
        return {"ts": ts, "subject": "traffic", "what": what, "pool": self._pool.name, "model": model, "by": by}


def taken_over(weights: Mapping[str, float], promoted: str, compare_to: str | None) -> dict[str, float]:
    """A pool's weights once a canary is promoted: it has its control's, or all where it had the whole pool's calls."""
    if compare_to is None or compare_to not in weights:
        return {promoted: _total(weights.values())}
    kept = {name: weight for name, weight in weights.items() if name not in (compare_to, promoted)}
    return kept | {promoted: weights[compare_to] + weights.get(promoted, 0.0)}


def _total(weights: Iterable[float]) -> float:
    return min(1e6, sum(weights))


def _digest(settings: CanarySettings) -> str:
    return sha256(orjson.dumps(settings.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
