"""The heads with a logistic regression for quality: what a pool has instead of `Heads` under `logistic_thompson`.

Owns only the joining: every observation goes to both parts, and predictions of quality come from the logistic one.
Like both of them it knows nothing of policies, prices, limits or requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from bandit.logistic import LogisticHead
from bandit.posterior import QUALITY, HeadPrior, Heads
from bandit.types import FloatArray

__all__ = ["LogisticHeads", "rearranged"]

_PREFIX = "logistic_"


class LogisticHeads(Heads):
    """`Heads` whose predicted quality is that of a `LogisticHead` with the same prior; all else is as in `Heads`.

    The linear quality head stays: averages, counts and residuals for drift are those of the linear one, whose noise is
    in units of quality. It costs what it costs in `Heads`.
    """

    def __init__(
        self,
        n_arms: int,
        dimension: int,
        priors: tuple[HeadPrior, ...],
        *,
        half_life_requests: float | None = None,
        slopes: Literal["auto", "always", "never"] = "auto",
        precision_scale: FloatArray | None = None,
    ) -> None:
        self._prior = priors[QUALITY]
        self._half_life_requests = half_life_requests
        self._precision_scale = precision_scale
        self.logistic = self._unlearned(n_arms, dimension, slopes)  # before super(), which settles
        super().__init__(
            n_arms,
            dimension,
            priors,
            half_life_requests=half_life_requests,
            slopes=slopes,
            precision_scale=precision_scale,
        )

    def observe(self, arm: int, x: FloatArray, values: Mapping[int, float], *, made_at: int, now: int) -> None:
        """See `Heads.observe`."""
        super().observe(arm, x, values, made_at=made_at, now=now)
        if QUALITY in values:
            self.logistic.observe(arm, x, values[QUALITY], made_at=made_at, now=now)

    def revise(self, head: int, arm: int, x: FloatArray, *, old: float, new: float, made_at: int, now: int) -> None:
        """See `Heads.revise`; what has left the logistic head's window is revised in the linear one only."""
        super().revise(head, arm, x, old=old, new=new, made_at=made_at, now=now)
        if head == QUALITY:
            self.logistic.revise(arm, x, old=old, new=new, made_at=made_at, now=now)

    def reset(self, head: int, arm: int, now: int) -> None:
        """See `Heads.reset`."""
        super().reset(head, arm, now)
        if head == QUALITY:
            self.logistic.reset(arm, now)

    def absorb(self, head: int, arm: int, x: FloatArray, values: FloatArray, now: int) -> None:
        """See `Heads.absorb`."""
        super().absorb(head, arm, x, values, now)
        if head == QUALITY:
            self.logistic.absorb(arm, x, values, 1.0, now)

    def weaken(self, most: float, now: int) -> None:
        """See `Heads.weaken`."""
        super().weaken(most, now)
        self.logistic.weaken(most, now)

    def introduce(self, arm: int, now: int, *, quality: float | None = None, samples: float = 2.0) -> None:
        """See `Heads.introduce`."""
        super().introduce(arm, now, quality=quality, samples=samples)
        self.logistic.introduce(arm, now, quality=quality, samples=samples)

    def predict(self, x: FloatArray, now: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """See `Heads.predict`."""
        mean, variance, noise = super().predict(x, now)
        mean[QUALITY], variance[QUALITY] = self.logistic.predict(x, now)
        return mean, variance, noise

    def refresh(self, now: int) -> None:
        """See `Heads.refresh`."""
        super().refresh(now)
        self.logistic.refresh(now)

    def settle(self, now: int) -> None:
        """See `Heads.settle`."""
        super().settle(now)
        self.logistic.settle(now)

    def state(self) -> dict[str, np.ndarray]:
        """See `Heads.state`."""
        return {**super().state(), **{f"{_PREFIX}{name}": array for name, array in self.logistic.state().items()}}

    def load(self, state: dict[str, np.ndarray], now: int) -> None:
        """See `Heads.load`; from a state of `Heads`, the logistic part starts at its prior."""
        logistic = self._unlearned(self.n_arms, self.dimension, self.slopes)
        saved = _logistic_part(state)
        if saved:
            logistic.load(saved, now)
        # `Heads.load` checks the shapes of all that `state()` names: those of the logistic part are its own affair.
        super().load({**state, **{name: array for name, array in self.state().items() if _PREFIX in name}}, now)
        self.logistic = logistic

    def _unlearned(self, n_arms: int, dimension: int, slopes: Literal["auto", "always", "never"]) -> LogisticHead:
        return LogisticHead(
            n_arms,
            dimension,
            slope_precision=self._prior.slope_precision,
            intercept_precision=self._prior.intercept_precision,
            half_life_requests=self._half_life_requests,
            prior_mean=self._prior.mean,
            slopes=slopes,
            precision_scale=self._precision_scale,
        )


def rearranged(state: Mapping[str, np.ndarray], rows: Sequence[int | None]) -> dict[str, np.ndarray]:
    """A state of `Heads` or `LogisticHeads` for other arms: arm i is row `rows[i]`, or the prior where that is None."""
    arranged = _linear_part(state, rows)
    saved = _logistic_part(state)
    if saved:
        part = LogisticHead.rearranged(saved, rows)
        arranged.update({f"{_PREFIX}{name}": array for name, array in part.items()})
    return arranged


def _logistic_part(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(_PREFIX): array for name, array in state.items() if name.startswith(_PREFIX)}


def _linear_part(state: Mapping[str, np.ndarray], rows: Sequence[int | None]) -> dict[str, np.ndarray]:
    """A state of `Heads` for other arms."""
    n_saved = state["weight"].shape[1]
    picked = [n_saved if row is None else row for row in rows]
    arranged = dict(state)
    for name in ("gram", "moment", "square", "weight"):
        array = state[name]
        arranged[name] = np.concatenate([array, np.zeros_like(array[:, :1])], axis=1)[:, picked]
    resets = [
        (head, i, step) for head, arm, step in state["resets"].tolist() for i, row in enumerate(rows) if row == arm
    ]
    arranged["resets"] = np.array(resets, dtype=np.int64).reshape(-1, 3)
    return arranged
