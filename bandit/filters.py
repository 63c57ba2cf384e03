"""Hard limits: the states that the evidence on each arm and limit leads to, and the shares of traffic they allow.

Every limit is put as "the rate of bad calls is at most r0" (p95 ≤ L: at most 5 % slower than L), so one test
(`bandit.evidence`) serves all. Knows nothing of utilities or policies: it takes bad-call indicators and says who may be
chosen and how often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log, prod
from typing import Any, Literal

import numpy as np

from bandit._mixing import shaped
from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.evidence import RateTest
from bandit.types import BoolArray, FloatArray

__all__ = ["FilterSettings", "Filters", "State", "Transition"]

State = Literal["unknown", "admitted", "filtered", "probing"]
_HOPELESS = 0.8
_TRIED = 5  # calls on each limit before an arm can be given up
_PROBED_AT_MOST = 0.25  # of the traffic, all probes together
_RECOVERED = 100.0  # an arm still at the boundary is tried again about once in this many probes


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """How sure the tests must be, and how much traffic arms without a certificate get.

    `alpha`: error probability of each proof, at any time. `calls_between_false_alarms`: mean run length of the change
    detector on an arm exactly at its limit. `probe_share`: share of a filtered arm, times R/4 (at least ¼, at most 4),
    where R is the evidence that it recovered (`Filters`): a relapse costs little, a recovery shows quickly.
    `unknown_share`: most that one arm without a certificate gets once another arm has one.
    """

    alpha: float = 0.01
    calls_between_false_alarms: float = 1e6
    probe_share: float = 0.02
    unknown_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise InvalidInput("filters.alpha", "must be between 0 and 0.5")
        if not self.calls_between_false_alarms >= 100:
            raise InvalidInput("filters.calls_between_false_alarms", "must be at least 100")
        if not 0 < self.probe_share <= 0.2:
            raise InvalidInput("filters.probe_share", "must be above 0 and at most 0.2")
        if not 0 < self.unknown_share <= 1:
            raise InvalidInput("filters.unknown_share", "must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Transition:
    """An arm's change of state: on which limit, after how many calls at what bad rate, with what evidence (e-value)."""

    arm: int
    limit: str
    from_state: State
    to_state: State
    reason: str
    calls: int
    rate: float
    limit_rate: float
    evidence: float


@dataclass(slots=True)
class _ArmState:
    state: State
    tests: list[RateTest]
    certified: list[bool]
    broken: int = -1  # index of the limit that filtered it
    recovery: float = 0.0  # e-detector of a return to the limit, while filtered


@dataclass(slots=True)
class Filters:
    """States of all arms of a pool under its limits.

    `limits` names each limit and its rate r0, in the order of the bad-call values passed to `observe`.

    - `unknown`: no proof either way; at most `unknown_share` each, once some arm is admitted.
    - `admitted`: proved compliant on every limit that has a test.
    - `filtered`: proved violating on one limit; gets only its probe share.
    - `probing`: its probes show that it came back (hysteresis: an e-detector of the rate r0 against r0 + min(2·r0, 0.1)
      Shiryaev-Roberts as in `RateTest`; 22 good probes in a row do for a p95); its evidence starts anew, and it is
      treated as unknown until it is proved compliant or violating.
    """

    n_arms: int
    limits: tuple[tuple[str, float], ...]
    settings: FilterSettings = field(default_factory=FilterSettings)
    _arms: list[_ArmState] = field(init=False)
    _unseen: set[int] = field(init=False)  # arms that changed since the last decision looked at them
    _compliance: FloatArray = field(init=False)  # these five say of each arm what a decision needs to know
    _doubt: list[float] = field(init=False)
    _refuge: BoolArray = field(init=False)
    _capped: BoolArray = field(init=False)
    _probes: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self._arms = [
            _ArmState(
                state="unknown" if self.limits else "admitted",
                tests=[RateTest(rate) for _, rate in self.limits],
                certified=[False] * len(self.limits),
            )
            for _ in range(self.n_arms)
        ]
        self._compliance = np.ones(self.n_arms)
        self._doubt = [0.0] * self.n_arms
        self._refuge = np.zeros(self.n_arms, dtype=np.bool_)
        self._capped = np.zeros(self.n_arms, dtype=np.bool_)
        self._probes = np.zeros(self.n_arms)
        self._unseen = set(range(self.n_arms))

    @property
    def states(self) -> tuple[State, ...]:
        """Each arm's state."""
        return tuple(arm.state for arm in self._arms)

    def evidence(self, arm: int, limit: int) -> RateTest:
        """The evidence on one arm's limit, for display."""
        return self._arms[arm].tests[limit]

    def compliance(self) -> FloatArray:
        """Belief that each arm keeps all limits, shape (n_arms,): 0 for a filtered arm, else in (0, 1]."""
        self._look()
        return self._compliance.copy()

    @property
    def hopeless(self) -> bool:
        """Whether with 80 % probability no arm keeps all limits, by the beliefs as if independent.

        Proof may take hundreds of calls where an arm misses its limits by little. An arm hardly tried is hope.
        """
        self._look()
        return bool(self.limits) and prod(self._doubt) > _HOPELESS

    def observe(self, arm: int, limit: int, bad: float) -> list[Transition]:
        """Add one call's indicator for one limit; returns the changes of state it proves."""
        self._arms[arm].tests[limit].add(bad)
        self._unseen.add(arm)
        return self._prove(arm, limit, bad)

    def _prove(self, arm: int, limit: int, bad: float) -> list[Transition]:
        entry = self._arms[arm]
        test = entry.tests[limit]
        worse = bad > test.limit_rate
        if entry.state == "filtered":
            return self._observe_probe(arm, limit, bad)
        if worse:
            log_e = test.log_evidence("violating")
            if log_e >= -log(self.settings.alpha):
                return self._filter(arm, limit, "proved violating", log_e)
            if test.change >= self.settings.calls_between_false_alarms:
                return self._filter(arm, limit, "change detected", log(test.change))
        elif not entry.certified[limit]:
            log_e = test.log_evidence("compliant")
            if log_e >= -log(self.settings.alpha):
                entry.certified[limit] = True
                if all(entry.certified):
                    return [self._move(arm, limit, "admitted", "proved compliant", log_e)]
        return []

    def restart(self, arm: int, limit: int, reason: str) -> list[Transition]:
        """Drop one limit's evidence after drift; an admitted arm must prove itself again."""
        entry = self._arms[arm]
        transitions = []
        if entry.state == "admitted":
            transitions = [self._move(arm, limit, "unknown", reason, 0.0)]
        entry.tests[limit].restart()
        entry.certified[limit] = False
        self._unseen.add(arm)
        return transitions

    def shape(self, p: FloatArray, allowed: BoolArray | None = None) -> FloatArray:
        """Apply caps and probe shares to a policy's probabilities (zero for filtered arms); sums to 1 again.

        Arms that this request may not use (`allowed` False) get nothing: no share that others lose, no probe.
        """
        if not self.limits:
            return p
        self._look()
        capped, share = self._capped, self.settings.unknown_share
        return shaped(p, capped, self._refuge, share, self._probes, _PROBED_AT_MOST, allowed)

    def probed(self, p: FloatArray, allowed: BoolArray | None = None) -> FloatArray:
        """Probabilities with the filtered arms' probe shares mixed in; `allowed` as in `shape`."""
        if not self.limits:
            return p
        self._look()
        return shaped(p, None, self._refuge, 1.0, self._probes, _PROBED_AT_MOST, allowed)

    def state(self) -> dict[str, Any]:
        """Everything as plain data; `load` is its inverse."""
        return {
            "limits": [list(limit) for limit in self.limits],
            "arms": [
                {
                    "state": a.state,
                    "tests": [t.state() for t in a.tests],
                    "certified": a.certified.copy(),
                    "broken": a.broken,
                    "recovery": a.recovery,
                }
                for a in self._arms
            ],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state of the same arms and limits; with other limits the evidence starts anew."""
        if len(state["arms"]) != self.n_arms:
            raise SnapshotMismatch("the filters' state has another number of arms")
        if [list(limit) for limit in self.limits] != state["limits"]:
            return
        for entry, saved in zip(self._arms, state["arms"], strict=True):
            for test, numbers in zip(entry.tests, saved["tests"], strict=True):
                test.load(numbers)
            entry.state, entry.certified = saved["state"], list(saved["certified"])
            entry.broken, entry.recovery = saved["broken"], saved["recovery"]
        self._unseen = set(range(self.n_arms))

    def rearranged(self, state: dict[str, Any], rows: Sequence[int | None]) -> dict[str, Any]:
        """A state for other arms: arm i is entry `rows[i]` of `state`, or without evidence where that is None."""
        (fresh,) = Filters(1, self.limits, self.settings).state()["arms"]
        return {**state, "arms": [fresh if row is None else state["arms"][row] for row in rows]}

    def _look(self) -> None:
        """Note what changed: once a decision rather than once an observation."""
        while self._unseen:
            self._note(self._unseen.pop())

    def _note(self, arm: int) -> None:
        entry = self._arms[arm]
        compliance = prod(test.compliance for test in entry.tests)
        filtered = entry.state == "filtered"
        self._compliance[arm] = 0.0 if filtered else compliance
        tried = filtered or all(test.calls >= _TRIED for test in entry.tests)
        self._doubt[arm] = (1.0 if filtered else 1.0 - compliance) if tried else 0.0
        # A certificate that recent calls speak against protects nobody: such an arm is no refuge for others' share.
        self._refuge[arm] = entry.state == "admitted" and compliance >= 0.5
        self._capped[arm] = entry.state in ("unknown", "probing")
        growth = min(4.0, max(0.25, entry.recovery / 4.0))
        self._probes[arm] = self.settings.probe_share * growth if filtered else 0.0

    def _observe_probe(self, arm: int, limit: int, bad: float) -> list[Transition]:
        entry = self._arms[arm]
        test = entry.tests[limit]
        if limit != entry.broken:
            return []
        r0 = test.limit_rate
        boundary = r0 + min(2 * r0, 0.1, (1 - r0) / 2)
        ratio = (r0 / boundary) ** bad * ((1 - r0) / (1 - boundary)) ** (1 - bad)
        entry.recovery = min((1.0 + entry.recovery) * ratio, 1e30)
        if entry.recovery < _RECOVERED:
            return []
        transition = self._move(arm, limit, "probing", "probes comply", log(entry.recovery))
        test.restart()  # its bad days are not held against it twice
        return [transition]

    def _filter(self, arm: int, limit: int, reason: str, log_e: float) -> list[Transition]:
        entry = self._arms[arm]
        transition = self._move(arm, limit, "filtered", reason, log_e)
        entry.broken = limit
        entry.certified[limit] = False
        entry.recovery = 0.0
        entry.tests[limit].restart()
        return [transition]

    def _move(self, arm: int, limit: int, to_state: State, reason: str, log_e: float) -> Transition:
        entry, test = self._arms[arm], self._arms[arm].tests[limit]
        transition = Transition(
            arm=arm,
            limit=self.limits[limit][0],
            from_state=entry.state,
            to_state=to_state,
            reason=reason,
            calls=test.calls,
            rate=test.rate,
            limit_rate=test.limit_rate,
            evidence=exp(min(log_e, 700.0)),
        )
        entry.state = to_state
        return transition
