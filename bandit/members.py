"""The arms of a pool and everything there is one of per arm; arms may join and leave while the pool runs.

Owns how a pool is put together, and its learned state as plain data. Decides nothing and learns nothing: that is
`bandit.pool`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any

from bandit.baselines import for_other_arms
from bandit.bounds import Bounds
from bandit.drift import DriftDetectors
from bandit.errors import InvalidInput, SnapshotMismatch, UnknownArm
from bandit.features import Features
from bandit.filters import Filters, FilterSettings
from bandit.logistic_heads import LogisticHeads, rearranged
from bandit.newcomers import Newcomers
from bandit.pacing import Pacer
from bandit.policy import Policy
from bandit.posterior import HEADS, QUALITY, HeadPrior, Heads
from bandit.scorer import Scorer
from bandit.standing import Standing
from bandit.thompson import Thompson
from bandit.types import Arm, Constraints, Objective, Price

__all__ = ["Members"]

_DRIFT_SPANS = (1.0, 4.0, 4.0)  # residuals of quality, log tokens, log latency are clipped to ± these
_FORMAT = 2


class Members:
    """The arms with their heads, limits, detectors and bounds, a budget, a policy, and a clock of requests (`step`).

    `slope_precision`: how many observations' worth of evidence it takes before the context counts, for (quality, log
    tokens, log latency), or one number for all.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        name: str = "pool",
        objective: Objective | None = None,
        constraints: Constraints | None = None,
        policy: Policy | None = None,
        features: Features | None = None,
        filters: FilterSettings | None = None,
        usd_per_request: float | None = None,
        half_life_requests: float | None = 10_000.0,
        slope_precision: float | tuple[float, float, float] = 75.0,
        newcomers: Newcomers | None = None,
    ) -> None:
        self.name = name
        self.objective = objective or Objective()
        self.constraints = constraints or Constraints()
        self.policy: Policy = policy or Thompson()
        self.features = features or Features()
        self.step = 0
        self.pacer = None if usd_per_request is None else Pacer(usd_per_request)
        self.newcomers = newcomers or Newcomers()
        self._filter_settings = filters or FilterSettings()
        self._half_life_requests = half_life_requests
        same = slope_precision if isinstance(slope_precision, tuple) else (slope_precision,) * 3
        self._slope_precision: tuple[float, float, float] = same
        self.arms: tuple[Arm, ...]
        self.names: tuple[str, ...]
        self._seat(arms)

    @property
    def filters(self) -> Filters:
        """The states of the arms under the limits."""
        return self.standing.filters

    def set_prices(self, prices: Mapping[str, Price | None]) -> None:
        """Change some prices (name → Price, or None for unknown); they count from the next decision on."""
        for name in prices:
            if name not in self._index:
                raise UnknownArm(name, self.names)
        self.arms = tuple([replace(arm, price=prices.get(arm.name, arm.price)) for arm in self.arms])
        self._price()

    def add_arm(self, arm: Arm, *, accuracy: float | None = None, samples: int = 0) -> None:
        """Let one more arm take part from the next decision on.

        It starts from the mean of the others with hardly less uncertainty than the prior's, or from `samples` graded
        answers of mean `accuracy`, and gets a capped share until it has evidence of its own (`bandit.newcomers`).
        """
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise InvalidInput("accuracy", "must be between 0 and 1")
        if arm.name in self._index:
            raise InvalidInput("arms", f"names must be distinct; there is a {arm.name!r}")
        state, others = self.state(), len(self.arms)
        self.policy = for_other_arms(self.policy, [*range(others), None])
        self._seat((*self.arms, arm))
        self.load(state)
        self.heads.introduce(others, self.step)
        if accuracy is not None and samples > 0:
            self.heads.introduce(others, self.step, quality=accuracy, samples=float(samples))

    def remove_arm(self, name: str) -> None:
        """Take an arm out of the pool; what was learned of it is lost. The last one cannot leave."""
        if name not in self._index:
            raise UnknownArm(name, self.names)
        if len(self.arms) == 1:
            raise InvalidInput("arms", f"{name!r} is the pool's last model")
        state, staying = self.state(), [i for i, arm in enumerate(self.arms) if arm.name != name]
        self.policy = for_other_arms(self.policy, staying)
        self._seat([self.arms[i] for i in staying])
        self.load(state)

    def excess(self) -> dict[str, float]:
        """By how much each arm is over its limits, relative to the limit, the worst one; ≤ 0 means within all."""
        return dict(zip(self.names, self.standing.excess(self.heads.averages(QUALITY, self.step)), strict=True))

    def state(self) -> dict[str, Any]:
        """All learned state, for `bandit.snapshot`; `load` is its inverse."""
        return {
            "format": _FORMAT,
            "arms": list(self.names),
            "features": self.features.version,
            "step": self.step,
            "heads": self.heads.state(),
            "standing": self.standing.state(),
            "drift": self.drift.state(),
            "bounds": self.bounds.state(),
            "newcomers": sorted(self.newcomers.names),
            "pacer": None if self.pacer is None else self.pacer.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over learned state with the same features, or raise `SnapshotMismatch` and change nothing.

        Arms are matched by name: one that is new here starts from its prior as a newcomer, what was learned of one that
        left is lost.
        """
        for key, mine in (("format", _FORMAT), ("features", self.features.version)):
            if state.get(key) != mine:
                raise SnapshotMismatch(f"pool {self.name!r}: learned state has {key} {state.get(key)!r}, not {mine!r}")
        row_of = {name: row for row, name in enumerate(state["arms"])}
        rows = [row_of.get(name) for name in self.names]
        if all(row is None for row in rows):
            raise SnapshotMismatch(f"pool {self.name!r}: learned state has none of its arms")
        self.heads.load(rearranged(state["heads"], rows), state["step"])
        self.standing.load(state["standing"], rows)
        for part, saved in ((self.drift, state["drift"]), (self.bounds, state["bounds"])):
            part.load([[[] if row is None else values[row] for row in rows] for values in saved])
        self.step = state["step"]
        new = {name for name, row in zip(self.names, rows, strict=True) if row is None}
        self.newcomers.replace(new | (set(state["newcomers"]) & set(self.names)))
        if self.pacer is not None and state["pacer"] is not None:
            self.pacer.load(state["pacer"])

    def _seat(self, arms: Sequence[Arm]) -> None:
        """Make everything that there is one of per arm, knowing nothing yet."""
        names = tuple(arm.name for arm in arms)
        if len(set(names)) != len(names):
            raise InvalidInput("arms", "names must be distinct")
        self.arms, self.names = tuple(arms), names
        self._index: dict[str, int] = {name: i for i, name in enumerate(names)}
        # Priors: quality unknown around one half; 1 to e^10 output tokens; latency around its reference.
        means, noises = (0.5, 5.0, log(self.objective.latency_reference_s)), (0.4, 1.0, 0.7)
        kind = LogisticHeads if getattr(self.policy, "quality_likelihood", "normal") == "logistic" else Heads
        self.heads: Heads = kind(
            len(names),
            self.features.dimension,
            tuple(
                HeadPrior(mean, noise_sd=noise, slope_precision=slope)
                for mean, noise, slope in zip(means, noises, self._slope_precision, strict=True)
            ),
            half_life_requests=self._half_life_requests,
            slopes=self.policy.slopes,
            precision_scale=self.features.precision_scale,
        )
        self.standing = Standing(len(names), self.constraints, self._filter_settings)
        self.drift = DriftDetectors(len(HEADS), len(names), _DRIFT_SPANS)
        self.bounds = Bounds(len(names))
        self._price()

    def _price(self) -> None:
        self._prices = [arm.price for arm in self.arms]
        self._scorer = Scorer(self.objective, self._prices)
