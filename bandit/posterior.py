"""The heads: one Bayesian linear regression per arm for quality, output tokens and latency.

Owns everything that is learned from outcomes and feedback, as sufficient statistics that forget. Knows nothing of
policies, prices, limits or requests: it sees vectors, numbers and a step count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Literal

import numpy as np

from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.types import FloatArray

__all__ = ["HEADS", "LATENCY", "QUALITY", "TOKENS", "HeadPrior", "Heads", "rearranged"]

QUALITY, TOKENS, LATENCY = 0, 1, 2
HEADS = ("quality", "output_tokens", "latency")
_RESET_KEEPS = 0.1  # what a reset leaves of the evidence: a little, so that a false alarm is not a full loss
_NOISE_EVERY = 8  # requests between two looks at the noise
# What makes an arm's cached inverse stale: new observations as a share of those known, at most so many, or forgetting
# down to so much. The first of each pair where slopes are used, the second where only the evidence for them is wanted.
_REBUILD_SHARE = (1 / 16, 1 / 4)
_REBUILD_AT_MOST = (32, 128)
_REBUILD_DECAY = (0.98, 0.9)
_RESCALE_AT = 20.0  # nats of decay after which the stored sums are scaled down, long before they overflow
_GATE_NATS = 2.0


@dataclass(frozen=True, slots=True)
class HeadPrior:
    """Prior of one head: intercept `mean`, noise standard deviation, and precisions in units of one observation.

    `intercept_precision` p means the prior mean weighs as much as p observations. `slope_precision` is strong
    (20 to 100): with weak slopes a contextual sampler does worse than a context-free one on real outcomes.
    """

    mean: float
    noise_sd: float
    intercept_precision: float = 1.0
    slope_precision: float = 50.0
    noise_observations: float = 4.0


class Heads:
    """Stacked conjugate regressions `y ~ N(θᵀx, σ²)`, shape (n_heads, n_arms), with stabilised forgetting.

    For one head and arm, with observations i made at steps t_i and `w_i = γ^(t − t_i)`, at step t

        A = Λ₀ + Σ w_i x_i x_iᵀ,   b = Λ₀μ₀ + Σ w_i x_i y_i,   θ | data ~ N(A⁻¹b, σ²A⁻¹)

    which is the fold `A ← γ^Δt·A + (1 − γ^Δt)·Λ₀` (likewise b) followed by rank-1 updates: forgetting fades to the
    prior, never to a singular matrix. Its fixed point under one observation x a step is `Λ₀ + xxᵀ/(1 − γ)`.
    Observations are discounted from the step of their *decision*, so late feedback arrives already aged and the
    order of arrival does not matter. σ² is the scale b/a of an inverse-gamma posterior IG(a, b), the inverse of the
    mean precision, with prior `noise_sd²` worth `noise_observations` (Bishop, PRML, 2006, section 3.3;
    normal-inverse-gamma, Murphy 2007); it fades to its prior like the rest. The Student tails of θ are replaced by
    normal ones, which is slightly narrow below about ten observations.

    Whether a head uses its slopes is decided by evidence: the log marginal likelihood of the regression over that of
    the intercept alone, summed over arms, must exceed 2 nats; it falls back when the sum drops below 0. With
    `slopes="never"` the model is context-free. x[0] must be 1.

    Exact state, as of step `origin` (later observations weigh more than 1 in it, so nothing needs ageing in between):
    `gram` (n_heads, n_arms, d, d) = Σ w x xᵀ, `moment` (…, d) = Σ w x (y − μ₀), `square` Σ w (y − μ₀)², `weight` Σ w.
    Everything else is a cache. Intercepts are always exact. Inverse and θ of the regression are rebuilt when an arm
    has a sixteenth more observations than at the last time, 32 more, or 2 % less by forgetting (less often while the
    slopes are not used): a rank-1 update for each costs more than it is worth when feedback is late anyway. `settle`
    rebuilds them at once.
    """

    def __init__(
        self,
        n_arms: int,
        dimension: int,
        priors: tuple[HeadPrior, ...],
        *,
        half_life_requests: float | None = None,
        slopes: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        if n_arms < 1 or dimension < 1:
            raise InvalidInput("heads", "needs at least one arm and one feature")
        if half_life_requests is not None and not half_life_requests > 0:
            raise InvalidInput("half_life_requests", "must be above 0, or None to never forget")
        self.n_arms, self.dimension, self.slopes = n_arms, dimension, slopes
        self._log_gamma = 0.0 if half_life_requests is None else -log(2.0) / half_life_requests
        n_heads = len(priors)
        self._center = np.array([p.mean for p in priors])[:, None]
        self._noise_weight = np.array([p.noise_observations for p in priors])[:, None]
        self._noise_floor = self._noise_weight * np.array([p.noise_sd**2 for p in priors])[:, None]
        self._intercept_precision = np.array([p.intercept_precision for p in priors])[:, None]
        self._prior_diagonal = np.empty((n_heads, dimension))
        for h, prior in enumerate(priors):
            self._prior_diagonal[h] = prior.slope_precision
            self._prior_diagonal[h, 0] = prior.intercept_precision
        shape = (n_heads, n_arms)
        self.origin = 0
        self.gram = np.zeros((*shape, dimension, dimension))
        self.moment = np.zeros((*shape, dimension))
        self.square = np.zeros(shape)
        self.weight = np.zeros(shape)
        self.resets: dict[tuple[int, int], list[int]] = {}
        self.uses_slopes = np.full(n_heads, slopes == "always")
        self._intercept_sum = np.zeros(shape)  # contiguous copies of gram[…, 0, 0] and moment[…, 0]
        self._intercept_moment = np.zeros(shape)
        self._inverse = np.empty((*shape, dimension, dimension))
        self._theta = np.zeros((*shape, dimension))  # of the regression, relative to the prior mean
        self._noise = np.empty((2, *shape))  # rows: intercept only, with slopes
        self.log_evidence = np.zeros(shape)  # of slopes over intercept only
        self._stale = np.zeros(shape, dtype=np.int64)  # observations since the last rebuild
        self._allowed = np.zeros(shape, dtype=np.int64)  # … and how many of them make a rebuild due
        self._rebuilt_at = np.zeros(shape, dtype=np.int64)
        self.settle(0)

    def observe(self, arm: int, x: FloatArray, values: Mapping[int, float], *, made_at: int, now: int) -> None:
        """Learn that a decision made at step `made_at` for `arm` in context x yielded `values` (by head); O(d²)."""
        outer: FloatArray | None = None
        for head, y in values.items():
            weight = self._weight_of(head, arm, made_at)
            if outer is None:
                outer = x[:, None] * x
            y -= self._center[head, 0]  # noqa: PLW2901
            self.gram[head, arm] += outer if weight == 1.0 else weight * outer
            self.moment[head, arm] += (weight * y) * x
            self.square[head, arm] += weight * y * y
            self.weight[head, arm] += weight
            self._intercept_sum[head, arm] += weight
            self._intercept_moment[head, arm] += weight * y
            self._stale[head, arm] += 1
            if self._stale[head, arm] > self._allowed[head, arm]:
                self._rebuild(head, arm, now)

    def revise(self, head: int, arm: int, x: FloatArray, *, old: float, new: float, made_at: int, now: int) -> None:
        """Replace an observation's value; the state afterwards equals having learned `new` at first."""
        old, new = old - self._center[head, 0], new - self._center[head, 0]
        weight = self._weight_of(head, arm, made_at)
        self.moment[head, arm] += (weight * (new - old)) * x
        self.square[head, arm] += weight * (new * new - old * old)
        self._intercept_moment[head, arm] += weight * (new - old)
        self._rebuild(head, arm, now)

    def reset(self, head: int, arm: int, now: int) -> None:
        """Pull an arm's head towards its prior after drift: evidence from decisions before `now` keeps a tenth."""
        for array in self._sums:
            array[head, arm] *= _RESET_KEEPS
        # Beyond eight resets an older observation weighs under 1e-8 and its exact count is noise.
        self.resets.setdefault((head, arm), []).append(now)
        del self.resets[head, arm][:-8]
        self._rebuild(head, arm, now)

    def predict(self, x: FloatArray, now: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(mean, variance of that mean, noise variance) at x, each of shape (n_heads, n_arms)."""
        decay = self._decay(now)
        precision = self._intercept_precision + decay * self._intercept_sum
        mean = self._center + decay * self._intercept_moment / precision
        noise = self._noise[0].copy()
        variance = noise / precision
        if self.uses_slopes.any():
            for head in np.flatnonzero(self.uses_slopes):
                projected = (self._inverse[head].reshape(-1, self.dimension) @ x).reshape(self.n_arms, -1)
                mean[head] = self._center[head, 0] + self._theta[head] @ x
                noise[head] = self._noise[1, head]
                variance[head] = noise[head] * np.maximum(projected @ x, 1e-12)
        return mean, variance, noise

    def expect(self, head: int, arm: int, x: FloatArray, now: int) -> float:
        """Posterior mean of one head of one arm at x."""
        if self.uses_slopes[head]:
            return float(self._center[head, 0] + self._theta[head, arm] @ x)
        decay = self._decay(now)
        precision = self._intercept_precision[head, 0] + decay * self._intercept_sum[head, arm]
        return float(self._center[head, 0] + decay * self._intercept_moment[head, arm] / precision)

    def averages(self, head: int, now: int) -> FloatArray:
        """Posterior mean of the intercept-only model per arm: the average over the contexts it met, shape (n_arms,)."""
        decay = self._decay(now)
        precision = self._intercept_precision[head] + decay * self._intercept_sum[head]
        return np.asarray(self._center[head] + decay * self._intercept_moment[head] / precision)

    def counts(self, head: int, now: int) -> FloatArray:
        """Discounted number of observations per arm, shape (n_arms,)."""
        return np.asarray(self._decay(now) * self.weight[head])

    def refresh(self, now: int) -> None:
        """Called once a request: rebuilds at most one stale cache, so that no single request pays for all."""
        if self._log_gamma * (self.origin - now) > _RESCALE_AT:
            decay = self._decay(now)
            for array in self._sums:
                np.multiply(array, decay, out=array)
            self.origin = now
        if now % _NOISE_EVERY == 0:
            self._look_at_noise(now)
        if self.slopes != "never":
            head, arm = divmod(now % self.weight.size, self.n_arms)
            aged = self._log_gamma * (now - self._rebuilt_at[head, arm]) < log(_REBUILD_DECAY[self._idle(head)])
            if aged and self.weight[head, arm] > 0.0:
                self._rebuild(head, arm, now)
            if head == arm == 0:
                self._weigh_evidence(now)

    def settle(self, now: int) -> None:
        """Rebuild every cache from the exact state."""
        self._intercept_sum[...] = self.gram[:, :, 0, 0]
        self._intercept_moment[...] = self.moment[:, :, 0]
        self._look_at_noise(now)
        for head in range(self.weight.shape[0]):
            for arm in range(self.n_arms):
                self._rebuild(head, arm, now)

    def state(self) -> dict[str, np.ndarray]:
        """The exact learned state as named arrays; `load` is its inverse."""
        resets = [(h, a, t) for (h, a), steps in sorted(self.resets.items()) for t in steps]
        return {
            "gram": self.gram.copy(),
            "moment": self.moment.copy(),
            "square": self.square.copy(),
            "weight": self.weight.copy(),
            "origin": np.array(self.origin),
            "uses_slopes": self.uses_slopes.copy(),
            "resets": np.array(resets, dtype=np.int64).reshape(-1, 3),
        }

    def load(self, state: dict[str, np.ndarray], now: int) -> None:
        """Take over a state of the same shape, or raise `SnapshotMismatch` and change nothing."""
        for name, array in self.state().items():
            skip = name == "resets"  # as many rows as there were resets
            if name not in state or state[name].shape[skip:] != array.shape[skip:]:
                raise SnapshotMismatch(
                    f"learned state has no fitting {name!r} for {self.n_arms} arms, d={self.dimension}"
                )
        for name in ("gram", "moment", "square", "weight", "uses_slopes"):
            getattr(self, name)[...] = state[name]
        self.origin = int(state["origin"])
        self.resets = {}
        for head, arm, step in state["resets"].tolist():
            self.resets.setdefault((head, arm), []).append(step)
        if self.slopes != "auto":
            self.uses_slopes[:] = self.slopes == "always"
        self.settle(now)

    @property
    def _sums(self) -> tuple[FloatArray, ...]:
        return self.gram, self.moment, self.square, self.weight, self._intercept_sum, self._intercept_moment

    def _idle(self, head: int) -> int:
        return 0 if self.uses_slopes[head] else 1

    def _decay(self, now: int) -> float:
        return exp(self._log_gamma * (now - self.origin))

    def _weight_of(self, head: int, arm: int, made_at: int) -> float:
        """What an observation of a decision at `made_at` weighs in the sums, which are as of `origin`."""
        weight = exp(self._log_gamma * (self.origin - made_at))
        for step in self.resets.get((head, arm), ()):
            if made_at < step:
                weight *= _RESET_KEEPS
        return weight

    def _look_at_noise(self, now: int) -> None:
        """Noise variance of the intercept-only models."""
        decay = self._decay(now)
        precision = self._intercept_precision + decay * self._intercept_sum
        residual = decay * self.square - (decay * self._intercept_moment) ** 2 / precision
        observations = self._noise_weight + decay * self.weight
        self._noise[0] = (np.maximum(residual, 0.0) + self._noise_floor) / observations

    def _rebuild(self, head: int, arm: int, now: int) -> None:
        """Inverse, θ, noise and evidence of one arm's regression from its exact sums."""
        self._stale[head, arm] = 0
        self._rebuilt_at[head, arm] = now
        decay = self._decay(now)
        weight = decay * float(self.weight[head, arm])
        idle = self._idle(head)
        self._allowed[head, arm] = min(int(weight * _REBUILD_SHARE[idle]), _REBUILD_AT_MOST[idle])
        if self.slopes == "never":
            return
        moment = decay * self.moment[head, arm]
        prior = self._prior_diagonal[head]
        precision = decay * self.gram[head, arm]
        intercept_precision = float(precision[0, 0] + prior[0])
        precision.flat[:: self.dimension + 1] += prior
        inverse = np.linalg.inv(precision)
        self._inverse[head, arm] = inverse
        self._theta[head, arm] = inverse @ moment
        square, floor = decay * float(self.square[head, arm]), float(self._noise_floor[head, 0])
        residual = max(0.0, square - float(self._theta[head, arm] @ moment)) + floor
        residual_0 = max(0.0, square - float(moment[0]) ** 2 / intercept_precision) + floor
        observations = float(self._noise_weight[head, 0]) + weight
        self._noise[1, head, arm] = residual / observations
        # Bishop (2006) eq. 3.86 with the noise integrated out; constants shared by both models cancel.
        log_det = float(np.linalg.slogdet(precision)[1] - np.log(prior).sum())
        log_det_0 = log(intercept_precision / prior[0])
        self.log_evidence[head, arm] = 0.5 * (log_det_0 - log_det + observations * log(residual_0 / residual))

    def _weigh_evidence(self, now: int) -> None:
        if self.slopes != "auto":
            return
        for head, nats in enumerate(self.log_evidence.sum(axis=1)):
            if self.uses_slopes[head]:
                self.uses_slopes[head] = nats > 0.0
            elif nats > _GATE_NATS:
                self.uses_slopes[head] = True
                for arm in range(self.n_arms):
                    self._rebuild(head, arm, now)


def rearranged(state: Mapping[str, np.ndarray], rows: Sequence[int | None]) -> dict[str, np.ndarray]:
    """A state of `Heads` for other arms: arm i is row `rows[i]` of `state`, or the prior where that is None."""
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
