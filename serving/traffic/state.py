"""What operators and canaries have set about the pools' traffic, and which conversation is on which model: a fold.

Every change is a row of the log with subject `traffic`, acted on by the same code when it is logged and when it is
replayed. A live change stands until the configuration's own value of that setting changes. Steers and sends nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import orjson

from bandit.types import Feedback, Outcome
from serving.pool_settings import PoolSettings
from serving.records import Record
from serving.traffic.canaries import Canary, taken_over
from serving.traffic.experiments import Experiment
from serving.traffic.sessions import Kept, Sessions
from serving.traffic.settings import ExperimentSettings, Learning

__all__ = ["PoolTraffic", "Traffic"]

Rows = Sequence[Mapping[str, Any]]
SUBJECT: Final = "traffic"
_OF_CALLERS = ("bandit", "weighted", "canary", "sticky")  # modes in which a session gets or keeps its model
_DAY_S = 86_400
_RECENT = 200


class PoolTraffic:
    """What is set about one pool's traffic. `configured` is what the configuration says; changes come as rows."""

    def __init__(self, settings: PoolSettings, canary: Canary) -> None:
        self.settings, self.canary = settings, canary
        self.sessions = Sessions(settings.sessions.limit, settings.sessions.ttl_s)
        self.experiments: dict[str, Experiment] = {}
        self.shadow_spent_usd = 0.0
        self._shadow_day = 0
        self.configured: dict[str, Any] = {
            "weights": settings.weights,
            "learning": settings.learning,
            "disabled": [],
            "experiments": [experiment.model_dump() for experiment in settings.experiments],
        }
        self._digests = {name: _digest(value) for name, value in self.configured.items()}
        self._live: dict[str, Any] = {}
        self.recent: deque[str] = deque(maxlen=_RECENT)  # models of the last calls, for display alone
        self._experiments_changed()

    @property
    def weights(self) -> dict[str, float] | None:
        """The operator's shares; None: the policy chooses."""
        found: dict[str, float] | None = self.value("weights")
        return found

    @property
    def learning(self) -> Learning:
        """Whether what is learned decides."""
        found: Learning = self.value("learning")
        return found

    @property
    def disabled(self) -> list[str]:
        """Models that get no call of this pool."""
        found: list[str] = self.value("disabled")
        return found

    def value(self, what: str) -> Any:
        """The value in force of `weights`, `learning`, `disabled` or `experiments`."""
        return self._live.get(what, self.configured[what])

    @property
    def live(self) -> dict[str, Any]:
        """What was changed while the service runs, and stands."""
        return dict(self._live)

    def row(self, what: str, after: Any, by: str | None, ts: float, reason: str | None = None) -> dict[str, Any]:
        """The row of a change to `after`; nothing has changed yet."""
        change = {"ts": ts, "subject": SUBJECT, "what": what, "pool": self.settings.name, "model": None}
        change |= {"before": self.value(what), "after": after, "reason": reason, "by": by}
        return change | {"configured": self._digests.get(what)}

    def changed(self, row: Mapping[str, Any]) -> None:
        """Act on a row; a change made under another configuration of its setting is void: that one is newer."""
        what = row["what"]
        if what.startswith("canary"):
            self.canary.changed(row)
            trial, weights = self.canary.trial, self.weights
            if what == "canary_promoted" and trial is not None and weights is not None:
                self._live["weights"] = taken_over(weights, trial.plan.model, trial.plan.compare_to)
        elif what in self.configured and row.get("configured", self._digests[what]) == self._digests[what]:
            self._live[what] = row["after"]
            if what == "experiments":
                self._experiments_changed(row["ts"])

    def decided(self, record: Record) -> None:
        """A session begins, goes on or moves; an experiment was seen."""
        decision, labels = record.decision, record.labels
        if decision.mode in _OF_CALLERS:
            self.recent.append(decision.chosen)
        if labels.session is not None and decision.mode in _OF_CALLERS:
            kept = self.sessions.find(labels.session, decision.ts)
            began_in = labels.experiment if kept is None or decision.mode != "sticky" else kept.experiment
            self.sessions.keep(labels.session, Kept(decision.chosen, decision.ts, began_in))
        if (experiment := self._experiment_of(record)) is not None:
            experiment.decided(record)

    def outcome(self, record: Record, outcome: Outcome) -> Rows:
        """A session follows its answer to the model that fell in; shadows' costs add up; canaries watch."""
        decision, session = record.decision, record.labels.session
        if decision.mode == "shadow":
            self._spent(outcome)
        elif session is not None and outcome.status == "ok" and decision.mode in _OF_CALLERS:
            kept = self.sessions.find(session, outcome.ts)
            if kept is not None and kept.model == decision.chosen != outcome.model:
                self.sessions.keep(session, Kept(outcome.model, outcome.ts, kept.experiment))
        if (experiment := self._experiment_of(record)) is not None:
            experiment.outcome(record, outcome)
        return self.canary.outcome(record, outcome)

    def feedback(self, record: Record, feedback: Feedback) -> Rows:
        """What answers were worth, for experiments and canaries."""
        if (experiment := self._experiment_of(record)) is not None:
            experiment.feedback(record, feedback)
        return self.canary.feedback(record, feedback)

    def shadow_left_usd(self, now: float) -> float:
        """What shadows may still spend today (UTC)."""
        if self.settings.shadow is None:
            return 0.0
        today = int(now // _DAY_S)
        return self.settings.shadow.max_usd_per_day - (self.shadow_spent_usd if today == self._shadow_day else 0.0)

    def state(self) -> dict[str, Any]:
        """All of it as plain data; `load` is its inverse."""
        return {
            "live": {what: {"value": value, "configured": self._digests[what]} for what, value in self._live.items()},
            "sessions": self.sessions.state(),
            "experiments": {name: experiment.state() for name, experiment in self.experiments.items()},
            "shadow": [self._shadow_day, self.shadow_spent_usd],
            "canary": self.canary.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state, but for changes of settings that the configuration has changed since."""
        self._live = {
            what: entry["value"]
            for what, entry in state["live"].items()
            if what in self.configured and entry["configured"] == self._digests[what]
        }
        self._experiments_changed()
        for name, saved in state["experiments"].items():
            if name in self.experiments:
                self.experiments[name].load(saved)
        self.sessions.load(state["sessions"])
        self._shadow_day, self.shadow_spent_usd = state["shadow"]
        self.canary.load(state["canary"])

    def _experiments_changed(self, ts: float | None = None) -> None:
        """Experiments that are there still go on with what they have counted; one that changed starts anew."""
        before, self.experiments = self.experiments, {}
        for values in self.value("experiments"):
            settings = ExperimentSettings.model_validate(values)
            known = before.get(settings.name)
            if known is None or known.settings != settings:
                known = Experiment(self.settings.name, settings, ts)
            self.experiments[settings.name] = known

    def _experiment_of(self, record: Record) -> Experiment | None:
        label = record.labels.experiment
        return None if label is None else self.experiments.get(label.partition("/")[0])

    def _spent(self, outcome: Outcome) -> None:
        day = int(outcome.ts // _DAY_S)
        if day > self._shadow_day:
            self._shadow_day, self.shadow_spent_usd = day, 0.0
        if day == self._shadow_day:
            self.shadow_spent_usd += outcome.cost_usd or 0.0


class Traffic:
    """The pools' traffic and the models that are disabled everywhere; `serving.folds.Fold`."""

    subject = SUBJECT

    def __init__(self, pools: Sequence[PoolSettings], canaries: Mapping[str, Canary]) -> None:
        self.pools = {pool.name: PoolTraffic(pool, canaries[pool.name]) for pool in pools}
        self.disabled: set[str] = set()

    def usable(self, pool: str, model: str) -> bool:
        """Whether operators let a pool's calls go to a model; any pool's name, or a model's own for a pinned call."""
        if model in self.disabled:
            return False
        return pool not in self.pools or model not in self.pools[pool].disabled

    def all_usable(self, pool: str) -> bool:
        """Whether operators have disabled no model, here or everywhere."""
        return not self.disabled and not self.pools[pool].disabled

    def row(self, model: str, *, disabled: bool, by: str | None, ts: float) -> dict[str, Any]:
        """The row that disables a model everywhere, or lets it serve again; nothing has changed yet."""
        change = {"ts": ts, "subject": SUBJECT, "what": "model_disabled", "pool": None, "model": model}
        return change | {"before": model in self.disabled, "after": disabled, "reason": None, "by": by}

    def changed(self, row: Mapping[str, Any]) -> None:
        """Act on a row."""
        if row.get("pool") in self.pools:
            self.pools[row["pool"]].changed(row)
        elif row["what"] == "model_disabled":
            (self.disabled.add if row["after"] else self.disabled.discard)(row["model"])

    def decided(self, record: Record) -> None:
        """A decision was recorded."""
        if record.decision.pool in self.pools:
            self.pools[record.decision.pool].decided(record)

    def outcome(self, record: Record, outcome: Outcome) -> Rows:
        """An attempt ended; rows that canaries propose."""
        pool = self.pools.get(record.decision.pool)
        return () if pool is None else pool.outcome(record, outcome)

    def feedback(self, record: Record, feedback: Feedback) -> Rows:
        """Feedback came; rows that canaries propose."""
        pool = self.pools.get(record.decision.pool)
        return () if pool is None else pool.feedback(record, feedback)

    def tick(self, now: float) -> list[Mapping[str, Any]]:
        """Rows that only the passing of time proposes."""
        return [row for pool in self.pools.values() for row in pool.canary.tick(now)]

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "disabled": sorted(self.disabled),
            "pools": {name: pool.state() for name, pool in self.pools.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state; pools that are no more are left out."""
        self.disabled = set(state["disabled"])
        for name, saved in state["pools"].items():
            if name in self.pools:
                self.pools[name].load(saved)


def _digest(value: Any) -> str:
    return sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
