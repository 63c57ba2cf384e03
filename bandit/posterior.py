"""The heads: one Bayesian linear regression per arm for quality, output tokens and latency.

Owns everything that is learned from outcomes and feedback, as sufficient statistics that forget. Knows nothing of
policies, prices, limits or requests: it sees vectors, numbers and a step count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.types import FloatArray

__all__ = ["HEADS", "LATENCY", "QUALITY", "TOKENS", "HeadPrior", "Heads"]

QUALITY, TOKENS, LATENCY = 0, 1, 2
HEADS = ("quality", "output_tokens", "latency")
_RESET_KEEPS = 0.1  # what a reset leaves of the evidence: a little, so that a false alarm is not a full loss
_REFRESH_UPDATES = 32
_REFRESH_DECAY = 0.98
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

    Exact state: `gram` (n_heads, n_arms, d, d) = Σ w x xᵀ, `moment` (…, d) = Σ w x (y − μ₀), `square` Σ w (y − μ₀)²,
    `weight` Σ w, each as of `as_of` (…). The intercept-only model is read off it; everything else is a cache of it:
    inverse and θ get a rank-1 update per observation, and are rebuilt with the noise and the evidence of the slopes
    after 32 of them or when decay since the last rebuild passes 2 %.
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
        self._log_gamma = 0.0 if half_life_requests is None else -np.log(2.0) / half_life_requests
        n_heads = len(priors)
        self._center = np.array([p.mean for p in priors])
        self._noise_weight = np.array([p.noise_observations for p in priors])
        self._noise_floor = self._noise_weight * np.array([p.noise_sd**2 for p in priors])
        self._intercept_precision = np.array([p.intercept_precision for p in priors])
        self._prior_diagonal = np.empty((n_heads, dimension))
        for h, prior in enumerate(priors):
            self._prior_diagonal[h] = prior.slope_precision
            self._prior_diagonal[h, 0] = prior.intercept_precision
        shape = (n_heads, n_arms)
        self.gram = np.zeros((*shape, dimension, dimension))
        self.moment = np.zeros((*shape, dimension))
        self.square = np.zeros(shape)
        self.weight = np.zeros(shape)
        self.as_of = np.zeros(shape, dtype=np.int64)
        self.resets: dict[tuple[int, int], list[int]] = {}
        self.uses_slopes = np.full(n_heads, slopes == "always")
        self._inverse = np.empty((*shape, dimension, dimension))
        self._theta = np.zeros((*shape, dimension))  # of the slopes model, relative to the prior mean
        self._noise = np.empty(shape)  # of the slopes model
        self.log_evidence = np.zeros(shape)  # of slopes over intercept only
        self._stale_updates = np.zeros(shape, dtype=np.int64)
        self._rebuilt_at = np.zeros(shape, dtype=np.int64)
        self._rebuild_all(0)

    def observe(self, head: int, arm: int, x: FloatArray, y: float, *, made_at: int, now: int) -> None:
        """Learn that a decision made at step `made_at` for `arm` in context x yielded y; O(d²)."""
        self._add(head, arm, x, y - self._center[head], made_at=made_at, now=now)

    def revise(self, head: int, arm: int, x: FloatArray, *, old: float, new: float, made_at: int, now: int) -> None:
        """Replace an observation's value; the state afterwards equals having learned `new` at first."""
        old, new = old - self._center[head], new - self._center[head]
        self._age(head, arm, now)
        weight = self._discount(head, arm, made_at, now)
        self.moment[head, arm] += (weight * (new - old)) * x
        self.square[head, arm] += weight * (new * new - old * old)
        self._rebuild(head, arm, now)

    def reset(self, head: int, arm: int, now: int) -> None:
        """Pull an arm's head towards its prior after drift: evidence from decisions before `now` keeps a tenth."""
        self._age(head, arm, now)
        for array in (self.gram, self.moment, self.square, self.weight):
            array[head, arm] *= _RESET_KEEPS
        # Beyond eight resets an older observation weighs under 1e-8 and its exact count is noise.
        self.resets.setdefault((head, arm), []).append(now)
        del self.resets[head, arm][:-8]
        self._rebuild(head, arm, now)

    def predict(self, x: FloatArray, now: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(mean, variance of that mean, noise variance) at x, each of shape (n_heads, n_arms)."""
        decay = np.exp(self._log_gamma * (now - self.as_of))
        precision = self._intercept_precision[:, None] + decay * self.gram[:, :, 0, 0]
        moment = decay * self.moment[:, :, 0]
        offset = moment / precision
        mean = self._center[:, None] + offset
        residual = self._noise_floor[:, None] + np.maximum(decay * self.square - offset * moment, 0.0)
        noise = residual / (self._noise_weight[:, None] + decay * self.weight)
        variance = noise / precision
        for head in np.flatnonzero(self.uses_slopes):
            projected = (self._inverse[head].reshape(-1, self.dimension) @ x).reshape(self.n_arms, -1)  # one product
            mean[head] = self._center[head] + self._theta[head] @ x
            noise[head] = self._noise[head]
            variance[head] = noise[head] * np.maximum(projected @ x, 1e-12)
        return mean, variance, noise

    def averages(self, head: int, now: int) -> FloatArray:
        """Posterior mean of the intercept-only model per arm: the average over the contexts it met, shape (n_arms,)."""
        decay = np.exp(self._log_gamma * (now - self.as_of[head]))
        precision = self._intercept_precision[head] + decay * self.gram[head, :, 0, 0]
        return np.asarray(self._center[head] + decay * self.moment[head, :, 0] / precision)

    def counts(self, head: int, now: int) -> FloatArray:
        """Discounted number of observations per arm, shape (n_arms,)."""
        return np.asarray(np.exp(self._log_gamma * (now - self.as_of[head])) * self.weight[head])

    def refresh(self, now: int) -> None:
        """Rebuild at most one stale cache; called once a request so that no single request pays for all."""
        if self.slopes == "never":
            return
        head, arm = divmod(now % self.weight.size, self.n_arms)
        if head == arm == 0:
            self._weigh_evidence(now)
        if self.weight[head, arm] == 0.0:
            return
        aged = self._log_gamma * (now - self._rebuilt_at[head, arm]) < np.log(_REFRESH_DECAY)
        if aged or self._stale_updates[head, arm] >= _REFRESH_UPDATES:
            self._rebuild(head, arm, now)

    def state(self) -> dict[str, np.ndarray]:
        """The exact learned state as named arrays; `load` is its inverse."""
        resets = [(h, a, t) for (h, a), steps in sorted(self.resets.items()) for t in steps]
        return {
            "gram": self.gram.copy(),
            "moment": self.moment.copy(),
            "square": self.square.copy(),
            "weight": self.weight.copy(),
            "as_of": self.as_of.copy(),
            "uses_slopes": self.uses_slopes.copy(),
            "resets": np.array(resets, dtype=np.int64).reshape(-1, 3),
        }

    def load(self, state: dict[str, np.ndarray], now: int) -> None:
        """Take over a state of the same shape, or raise `SnapshotMismatch` and change nothing."""
        current = self.state()
        for name, array in current.items():
            skip = name == "resets"  # as many rows as there were resets
            if name not in state or state[name].shape[skip:] != array.shape[skip:]:
                raise SnapshotMismatch(
                    f"learned state has no fitting {name!r} for {self.n_arms} arms, d={self.dimension}"
                )
        for name in ("gram", "moment", "square", "weight", "as_of", "uses_slopes"):
            getattr(self, name)[...] = state[name]
        self.resets = {}
        for head, arm, step in state["resets"].tolist():
            self.resets.setdefault((head, arm), []).append(step)
        if self.slopes != "auto":
            self.uses_slopes[:] = self.slopes == "always"
        self._rebuild_all(now)

    def _add(self, head: int, arm: int, x: FloatArray, y: float, *, made_at: int, now: int) -> None:
        self._age(head, arm, now)
        weight = self._discount(head, arm, made_at, now)
        weighted = weight * x
        self.gram[head, arm] += weighted[:, None] * x
        self.moment[head, arm] += y * weighted
        self.square[head, arm] += weight * y * y
        self.weight[head, arm] += weight
        self._stale_updates[head, arm] += 1
        if self._stale_updates[head, arm] >= 4 * _REFRESH_UPDATES:  # bursts of feedback between two requests
            self._rebuild(head, arm, now)
        elif self.uses_slopes[head]:
            gain = self._inverse[head, arm] @ x  # Sherman & Morrison (1950)
            scale = weight / (1.0 + weight * float(gain @ x))
            self._theta[head, arm] += (scale * (y - float(self._theta[head, arm] @ x))) * gain
            self._inverse[head, arm] -= (scale * gain)[:, None] * gain

    def _age(self, head: int, arm: int, now: int) -> None:
        elapsed = now - self.as_of[head, arm]
        if elapsed > 0:
            decay = np.exp(self._log_gamma * elapsed)
            for array in (self.gram, self.moment, self.square, self.weight):
                array[head, arm] *= decay
            self.as_of[head, arm] = now

    def _discount(self, head: int, arm: int, made_at: int, now: int) -> float:
        weight = float(np.exp(self._log_gamma * max(0, now - made_at)))
        for step in self.resets.get((head, arm), ()):
            if made_at < step:
                weight *= _RESET_KEEPS
        return weight

    def _rebuild_all(self, now: int) -> None:
        for head in range(self.weight.shape[0]):
            for arm in range(self.n_arms):
                self._rebuild(head, arm, now)

    def _rebuild(self, head: int, arm: int, now: int) -> None:
        self._stale_updates[head, arm] = 0
        self._rebuilt_at[head, arm] = now
        if self.slopes == "never":
            return
        decay = float(np.exp(self._log_gamma * (now - self.as_of[head, arm])))
        gram = decay * self.gram[head, arm]
        moment = decay * self.moment[head, arm]
        square = decay * self.square[head, arm]
        prior = self._prior_diagonal[head]
        precision = gram.copy()
        precision.flat[:: self.dimension + 1] += prior
        self._inverse[head, arm] = np.linalg.inv(precision)
        self._theta[head, arm] = self._inverse[head, arm] @ moment
        floor = self._noise_floor[head]
        residual = max(0.0, square - float(self._theta[head, arm] @ moment)) + floor
        residual_0 = max(0.0, square - moment[0] ** 2 / precision[0, 0]) + floor
        observations = self._noise_weight[head] + decay * self.weight[head, arm]
        self._noise[head, arm] = residual / observations
        # Bishop (2006) eq. 3.86 with the noise integrated out; constants shared by both models cancel.
        log_det = np.linalg.slogdet(precision)[1] - np.log(prior).sum()
        log_det_0 = np.log(precision[0, 0] / prior[0])
        self.log_evidence[head, arm] = 0.5 * (log_det_0 - log_det + observations * np.log(residual_0 / residual))

    def _weigh_evidence(self, now: int) -> None:
        if self.slopes != "auto":
            return
        total = self.log_evidence.sum(axis=1)
        for head, sum_nats in enumerate(total):
            if self.uses_slopes[head]:
                self.uses_slopes[head] = sum_nats > 0.0
            elif sum_nats > _GATE_NATS:
                self.uses_slopes[head] = True
                for arm in range(self.n_arms):
                    self._rebuild(head, arm, now)
