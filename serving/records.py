"""Decisions as the service keeps them: the decision, what is known of its outcome and feedback, and their JSON.

The only place that turns the library's values into log payloads and back. Does not learn, store or answer.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import orjson

from bandit.pool import Change, DriftReset, Pool
from bandit.scorer import reward
from bandit.types import Decision, Feedback, Outcome
from serving.admission import Principal
from serving.store import Event
from serving.telemetry.about import About

__all__ = [
    "BenchmarkResult",
    "Caller",
    "DecisionIds",
    "Labels",
    "Record",
    "benchmark_event",
    "change_event",
    "decision_event",
    "feedback_event",
    "filter_event",
    "first_id_at",
    "labels_from",
    "made_at_s",
    "model_event",
    "outcome_event",
    "record_from",
    "reward_of",
]

_PREFIX = "pm-"
_BENCHMARK_PREFIX = "bench-"
_ID = re.compile(r"pm-([0-9a-f]{12})[0-9a-f]{20}")


@dataclass(slots=True)
class Caller:
    """Who makes a call, and what goes with it beside the body.

    `session`: its hash. `deadline`, and `arrived`, from which the call's own deadline counts, are on the event loop's
    clock, in seconds. `headers`: what any part wants to tell the caller, on answers and on errors. `tokens`: that its
    attempts have taken, as far as is known. `about`: what its log lines and its trace say of it.
    """

    principal: Principal
    tags: Mapping[str, str] = field(default_factory=dict)
    session: str | None = None
    priority: int = 0
    deadline: float | None = None
    arrived: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    about: About = field(default_factory=About)


@dataclass(frozen=True, slots=True)
class Labels:
    """What is logged beside a decision.

    `experiment`: "name/variant". `origin`: of a cached answer the decision it was made for, of a shadow the one it
    accompanies. `outside`: the caller makes the call itself.
    """

    principal: Principal = field(default_factory=Principal)
    tags: Mapping[str, str] = field(default_factory=dict)
    session: str | None = None
    experiment: str | None = None
    origin: str | None = None
    outside: bool = False


NO_LABELS = Labels()


@dataclass(slots=True, weakref_slot=True)
class Record:
    """What is known of one decision: its last outcome, and the feedback in force.

    `in_flight`: the service itself, this process or another, is making the call, and will record its outcome. `ended`:
    the last attempt's outcome, of a call that this process makes, also while it has no place in the log.
    """

    decision: Decision
    outcome: Outcome | None = None
    feedback: Feedback | None = None
    in_flight: bool = False
    labels: Labels = NO_LABELS
    ended: Outcome | None = None

    @property
    def served_by(self) -> str:
        """The model whose answer feedback speaks of."""
        return self.decision.chosen if self.outcome is None else self.outcome.model

    @property
    def failed(self) -> bool:
        """Whether there is no answer that feedback could speak of."""
        return self.outcome is not None and self.outcome.status != "ok"


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What one model made of one item of a suite in one run: a quality in [0, 1], or the code of an error."""

    suite: str
    run: str
    item_id: str
    model: str
    category: str | None = None
    quality: float | None = None
    latency_s: float | None = None
    cost_usd: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        """The same for the same item, model, suite and run, whatever came of it: a result is recorded once."""
        named = orjson.dumps([self.suite, self.run, self.model, self.item_id])
        return f"{_BENCHMARK_PREFIX}{blake2b(named, digest_size=16).hexdigest()}"


class DecisionIds:
    """Makes ids: `pm-` and 32 hex digits, 48 bits of time in milliseconds, then 80 random bits (the layout of a ULID).

    They sort by time, which keeps the store's index small, and cannot be guessed. The random bits are read from the
    system's generator 2,000 digits at a time, since a system call costs 25 µs; never share a maker between processes.
    """

    def __init__(self) -> None:
        self._digits = ""

    def new(self, ts: float) -> str:
        """An id for a decision made at unix time `ts`."""
        if not self._digits:
            self._digits = secrets.token_hex(1_000)
        digits, self._digits = self._digits[:20], self._digits[20:]
        return first_id_at(ts) + digits


def made_at_s(decision_id: str) -> float | None:
    """When an id of ours was made, in unix seconds; None for one that is not of our form."""
    found = _ID.fullmatch(decision_id)  # not int(): that takes signs, underscores and other scripts' digits
    return None if found is None else int(found[1], 16) / 1000


def first_id_at(ts: float) -> str:
    """No id made at unix time `ts` or later sorts before it, and every earlier one does; by milliseconds."""
    return f"{_PREFIX}{int(ts * 1000):012x}"


def decision_event(decision: Decision, labels: Labels) -> Event:
    """The event of a decision."""
    row, principal = decision.to_row(), labels.principal
    row["user"], row["team"], row["tier"], row["key_id"] = (
        principal.user,
        principal.team,
        principal.tier,
        principal.key_id,
    )
    row["tags"], row["session"] = labels.tags, labels.session
    row["experiment"], row["origin"], row["outside"] = labels.experiment, labels.origin, labels.outside
    payload = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
    return Event("decision", decision.decision_id, decision.ts, payload)


def labels_from(row: Mapping[str, Any]) -> Labels:
    """The labels in a decision's row; rows of earlier versions have fewer."""
    principal = Principal(row.get("user"), row.get("team"), row.get("tier"), row.get("key_id"))
    more = (row.get("session"), row.get("experiment"), row.get("origin"), row.get("outside", False))
    return Labels(principal, row.get("tags") or {}, *more)


def change_event(row: Mapping[str, Any]) -> Event:
    """The event of a change (`serving.folds`)."""
    return Event("change", "", row["ts"], orjson.dumps(dict(row)))


def outcome_event(outcome: Outcome, nth: int | None = None) -> Event:
    """The event of an attempt's outcome."""
    return Event("outcome", outcome.decision_id, outcome.ts, orjson.dumps(_fields(outcome)), nth=nth)


def feedback_event(feedback: Feedback, reward: float | None) -> Event:
    """The event of feedback; `reward` is the scorer's value with it, where everything it needs is known."""
    payload = orjson.dumps(_fields(feedback) | {"reward": reward})
    return Event("feedback", feedback.decision_id, feedback.ts, payload, nth=feedback.revision)


def benchmark_event(result: BenchmarkResult, ts: float) -> Event:
    """The event of a benchmark result; it is found by the result's key."""
    return Event("benchmark_result", result.key, ts, orjson.dumps({"ts": ts} | asdict(result)), nth=0)


def _fields(value: Outcome | Feedback) -> dict[str, Any]:
    # dataclasses.asdict copies deeply, at ten times the cost.
    return {name: getattr(value, name) for name in value.__slots__}


def filter_event(pool: str, names: Sequence[str], change: Change, ts: float | None = None) -> Event:
    """The event of an arm's change of standing at `ts` (default: now): a filter's transition, or drift's reset."""
    row: dict[str, Any] = {"ts": time.time() if ts is None else ts, "pool": pool, "model": names[change.arm]}
    if isinstance(change, DriftReset):
        row |= {"constraint_name": change.head, "reason": "drift", "evidence": change.change}
    else:
        row |= {
            "constraint_name": change.limit,
            "from_state": change.from_state,
            "to_state": change.to_state,
            "reason": change.reason,
            "calls": change.calls,
            "rate": change.rate,
            "limit_rate": change.limit_rate,
            "evidence": change.evidence,
        }
    return Event("filter_event", "", row["ts"], orjson.dumps(row))


def model_event(kind: Literal["model_added", "model_removed"], pool: str | None, model: str, **more: Any) -> Event:
    """The event of a model that joins or leaves a pool, or (pool None) the service; `more` is what a replay needs."""
    row = {"ts": time.time(), "pool": pool, "model": model, "reason": kind.removeprefix("model_")} | more
    return Event(kind, "", row["ts"], orjson.dumps(row))


def reward_of(pool: Pool | None, record: Record, feedback: Feedback) -> float | None:
    """The scorer's value of what a decision yielded, with this feedback; None where something it needs is not known."""
    outcome = record.outcome or record.ended
    if pool is None or outcome is None:
        return None
    return reward(pool.objective, feedback.quality, outcome.cost_usd, outcome.latency_s)


def record_from(events: Sequence[Event]) -> Record | None:
    """The record of one decision from its events in order; None without a decision among them."""
    record: Record | None = None
    for event in events:
        row = orjson.loads(event.payload)
        if event.kind == "decision":
            record = Record(Decision.from_row(row), labels=labels_from(row))
        elif record is not None and event.kind == "outcome":
            record.outcome = Outcome(**row)
        elif record is not None and event.kind == "feedback":
            row.pop("reward", None)
            record.feedback = Feedback(**row)
    return record
