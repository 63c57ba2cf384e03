"""Why one call went where it did: what could be chosen and how likely, what was expected, what came of it.

Puts a decision's own record beside the time line. It decides nothing again: what it says of a model that was left out
is what is known to have held at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from bandit.types import Decision
from serving.dashboard.live import Live
from serving.dashboard.series import known
from serving.errors import UnknownDecision
from serving.learner import Learner
from serving.records import Record, made_at_s, reward_of
from serving.store import Store

__all__ = ["Decisions", "brief"]


class Decisions:
    """Answers `GET /admin/decisions` and `/admin/decisions/{id}`, of decisions of the last `horizon_s` seconds."""

    def __init__(self, live: Live, learner: Learner, store: Store, horizon_s: float) -> None:
        self._live, self._learner, self._store, self._horizon_s = live, learner, store, horizon_s

    def preload(self) -> None:
        """Know the last decisions of an earlier life; once, before the first call."""
        if self._live.decisions:
            return
        kept = self._live.decisions.maxlen or 0
        events = self._store.read(max(0, self._store.position - 4 * kept), 4 * kept)
        for decision_id in [event.decision_id for event in events if event.kind == "decision"][-kept:]:
            record = self._learner.find(decision_id)
            if record is not None:
                self._live.decisions.append(record)

    def last(self, limit: int, pool: str | None = None) -> list[dict[str, Any]]:
        """The last decisions, newest first."""
        found = [r for r in reversed(self._live.decisions) if pool is None or r.decision.pool == pool]
        return [brief(record) for record in found[:limit]]

    def why(self, decision_id: str, now: float) -> dict[str, Any]:
        """Everything known of one decision at unix time `now`; raises UnknownDecision, also past its horizon."""
        made_at = made_at_s(decision_id)
        record = None if made_at is None or now - made_at > self._horizon_s else self._learner.find(decision_id)
        if record is None:
            raise UnknownDecision(decision_id)
        decision, labels = record.decision, record.labels
        principal = labels.principal
        return brief(record) | {
            "step": decision.step,
            "policy_version": decision.policy_version,
            "input_tokens": decision.context.input_tokens,
            "pacer_multiplier": decision.pacer_multiplier,
            "withheld_usd": decision.withheld_usd,
            "user": principal.user,
            "team": principal.team,
            "tier": principal.tier,
            "tags": dict(labels.tags),
            "session": labels.session is not None,
            "experiment": labels.experiment,
            "origin": labels.origin,
            "models": [self._model(record, arm) for arm in range(len(decision.arms))],
            "attempts": self._attempts(record),
            "reward": self._reward(record),
            "feedback": None if record.feedback is None else {"metrics": dict(record.feedback.metrics)},
            "expires_at": decision.ts + self._horizon_s,
        }

    def _model(self, record: Record, arm: int) -> dict[str, Any]:
        decision = record.decision
        name, feasible = decision.arms[arm], bool(decision.feasible[arm])
        return {
            "model": name,
            "feasible": feasible,
            "probability": float(decision.probabilities[arm]),
            "chosen": name == decision.chosen,
            "predicted": _predicted(decision, arm),
            "left_out": None if feasible else self._left_out(decision, name),
        }

    def _left_out(self, decision: Decision, model: str) -> str:
        """What kept a model out of the feasible set."""
        pool, ts, line = decision.pool, decision.ts, self._live.timeline
        if line.disabled(pool, model, ts):
            return "switched off by an operator"
        standing = line.standing(pool, model, ts)
        if standing is not None and standing["to_state"] == "filtered":
            return f"filtered: {standing['detail']}"
        if line.broken(model, ts):
            return "its endpoints' breakers were open"
        return "not open to this call: the request's limits, a budget, a session, a canary, or no endpoint was free"

    def _attempts(self, record: Record) -> list[dict[str, Any]]:
        """All attempts: those that are durable, or the last one where none is yet."""
        events = self._store.find(record.decision.decision_id)
        rows = [orjson.loads(event.payload) for event in events if event.kind == "outcome"]
        if not rows and record.outcome is not None:
            rows = [{name: getattr(record.outcome, name) for name in record.outcome.__slots__}]
        return [{name: row.get(name) for name in _OF_AN_ATTEMPT} for row in rows]

    def _reward(self, record: Record) -> float | None:
        pool = self._learner.pools.get(record.decision.pool)
        return None if record.feedback is None else reward_of(pool, record, record.feedback)


_OF_AN_ATTEMPT: Sequence[str] = (
    "attempt",
    "model",
    "endpoint",
    "status",
    "http_status",
    "error",
    "latency_s",
    "time_to_first_token_s",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "stream",
)


def brief(record: Record) -> dict[str, Any]:
    """A decision in one line; what is not known yet is None."""
    decision, outcome, feedback = record.decision, record.outcome, record.feedback
    chosen = decision.arms.index(decision.chosen) if decision.chosen in decision.arms else None
    return {
        "decision_id": decision.decision_id,
        "ts": decision.ts,
        "pool": decision.pool,
        "mode": decision.mode,
        "category": decision.context.category,
        "chosen": decision.chosen,
        "served_by": record.served_by,
        "propensity": decision.propensity,
        "feasible": int(decision.feasible.sum()),
        "infeasible": decision.infeasible,
        "status": None if outcome is None else outcome.status,
        "latency_s": None if outcome is None else outcome.latency_s,
        "cost_usd": None if outcome is None else outcome.cost_usd,
        "quality": None if feedback is None else feedback.quality,
        "predicted": None if chosen is None else _predicted(decision, chosen),
    }


def _predicted(decision: Decision, arm: int) -> dict[str, float | None]:
    return {
        "quality": known(float(decision.predicted_quality[arm])),
        "cost_usd": known(float(decision.predicted_cost_usd[arm])),
        "latency_s": known(float(decision.predicted_latency_s[arm])),
    }
