"""The forms of answers to operators about pools, canaries, experiments, events and decisions. For the document.

Held to it by tests. Where a part's figures are its own matter (a canary's evidence) they are told as an object.
"""

from __future__ import annotations

from typing import Any, Literal

from serving.api.answers import Told

__all__ = [
    "CacheDropped",
    "Canaries",
    "CanaryAnswer",
    "Configuration",
    "DecisionList",
    "DecisionWhy",
    "DrainState",
    "EndedExperiment",
    "EventPage",
    "ExperimentState",
    "Experiments",
    "FaultList",
    "FaultState",
    "FaultsEnded",
    "PoolState",
    "Pools",
]

Values = dict[str, Any]


class PoolModel(Told):
    """A model of a pool: its share of the last calls, its state, and its endpoints' breakers."""

    name: str
    share: float | None
    weight: float | None
    state: str
    disabled: bool
    endpoints: dict[str, str]


class VariantState(Told):
    """A variant of an experiment."""

    name: str
    share: float
    weights: dict[str, float]
    calls: int


class ExperimentState(Told):
    """What an experiment has found so far; intervals hold however often one looks."""

    name: str
    unit: str
    metric: str
    started: float | None
    units: int
    full: bool
    variants: list[VariantState]
    comparisons: list[Values]


class EndedExperiment(ExperimentState):
    """What an experiment had found when it ended."""

    ended: float


class PoolExperiment(ExperimentState):
    """An experiment and its pool."""

    pool: str


class Experiments(Told):
    """Every pool's experiments."""

    experiments: list[PoolExperiment]


class CanaryState(Told):
    """A canary: where it stands, what it was seen to do, and what happened to it."""

    model: str
    phase: str
    step: int
    share: float
    steps: list[float]
    compare_to: str | None
    held: str | None
    kept_out: bool
    needs: list[str]
    guardrails: list[Values]
    evidence: Values
    history: list[Values]


class PoolCanary(CanaryState):
    """A canary and its pool."""

    pool: str


class Canaries(Told):
    """The canary of every pool that has or had one."""

    canaries: list[PoolCanary]


class CanaryAnswer(Told):
    """A pool's canary; null where there never was one."""

    canary: CanaryState | None


class PoolState(Told):
    """What is set about a pool's traffic, and how its models are."""

    name: str
    learning: Literal["apply", "observe", "bypass"]
    weights: dict[str, float] | None
    disabled: list[str]
    models: list[PoolModel]
    canary: Values | None
    experiments: list[ExperimentState]
    sessions: int
    shadow: Values | None


class Pools(Told):
    """Every pool."""

    pools: list[PoolState]


class CacheDropped(Told):
    """How many kept answers were dropped."""

    dropped: int


class Configuration(Told):
    """Every setting in force, secrets as ***, and what was changed since the start of the service's log."""

    settings: Values
    changed: Values
    draining: bool


class DrainState(Told):
    """Whether new calls are refused, since when, and how many run."""

    draining: bool
    since: float | None
    under_way: int


class FaultState(Told):
    """A fault on purpose: its rule, since when, until when, by whom, and how often it has happened."""

    id: str
    kind: str
    model: str | None
    endpoint: str | None
    share: float
    latency_s: float | None
    status: int | None
    for_s: float | None
    since: float
    ends_at: float | None
    by: str | None
    injected: int


class FaultList(Told):
    """The faults that stand."""

    faults: list[FaultState]


class FaultsEnded(Told):
    """Those that have ended."""

    ended: list[FaultState]


class Reloaded(Told):
    """What became of it (applied or unchanged), the file's digests, and the settings that changed."""

    status: str
    before: str
    after: str
    changed: list[str]


class EventEntry(Told):
    """An event. A change has `subject`, `what`, `before`, `after`; a filter its figures; a breaker its state `to`."""

    seq: int
    ts: float
    kind: str
    pool: str | None
    model: str | None
    title: str
    detail: str
    by: str | None
    subject: str | None = None
    what: str | None = None
    before: Any = None
    after: Any = None
    reason: str | None = None
    to: str | None = None
    constraint_name: str | None = None
    from_state: str | None = None
    to_state: str | None = None
    calls: int | None = None
    rate: float | None = None
    limit_rate: float | None = None
    evidence: float | None = None


class EventPage(Told):
    """Events, newest first; next_cursor is null on the last page."""

    events: list[EventEntry]
    next_cursor: str | None


class Predicted(Told):
    """What was expected of a model; null where nothing was."""

    quality: float | None
    cost_usd: float | None
    latency_s: float | None


class DecisionBrief(Told):
    """A decision in one line; what is not known yet is null."""

    decision_id: str
    ts: float
    pool: str
    mode: str
    category: str | None
    chosen: str
    served_by: str
    propensity: float
    feasible: int
    infeasible: bool
    status: str | None
    latency_s: float | None
    cost_usd: float | None
    quality: float | None
    predicted: Predicted | None


class DecisionList(Told):
    """The last decisions, newest first."""

    decisions: list[DecisionBrief]


class Considered(Told):
    """One model of a decision: whether it could be chosen, how likely, what was expected, what kept it out."""

    model: str
    feasible: bool
    probability: float
    chosen: bool
    predicted: Predicted
    left_out: str | None


class DecisionWhy(DecisionBrief):
    """Why one call went where it did, and what came of it."""

    step: int
    policy_version: str
    input_tokens: int
    pacer_multiplier: float
    withheld_usd: float
    user: str | None
    team: str | None
    tier: str | None
    tags: dict[str, str]
    session: bool
    experiment: str | None
    origin: str | None
    models: list[Considered]
    attempts: list[Values]
    reward: float | None
    feedback: Values | None
    expires_at: float
