"""The heads: one Bayesian linear regression per arm for quality, output tokens and latency.

Owns everything that is learned from outcomes and feedback, as sufficient statistics that forget. Knows nothing of
policies, prices, limits or requests: it sees vectors, numbers and a step count.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log, sqrt
from typing import Literal

import numpy as np

from bandit._regression import Regressions
from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.hierarchy import shared_slopes
from bandit.priors import HeadPrior
from bandit.types import FloatArray

__all__ = ["HEADS", "LATENCY", "QUALITY", "TOKENS", "HeadPrior", "Heads"]

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
_NEWCOMER_OBSERVATIONS = 0.25  # little: a start below its own mean is held against a better arm for long


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

    An arm's slopes deviate from those that all arms share (`bandit.hierarchy`). Whether a head uses slopes at all is
    decided by evidence: the log marginal likelihood of the regressions over that of the intercepts alone, summed over
    arms, less what the shared slopes cost, must exceed 2 nats; it falls back when the sum drops below 0. With
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
        precision_scale: FloatArray | None = None,
    ) -> None:
        """`precision_scale` (d,) multiplies the slopes' prior precision by column; its first entry is not used."""
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
        self._shared_precision = np.array([p.shared_precision for p in priors])
        self._prior_diagonal = np.empty((n_heads, dimension))
        for h, prior in enumerate(priors):
            self._prior_diagonal[h] = prior.slope_precision * (1.0 if precision_scale is None else precision_scale)
            self._prior_diagonal[h, 0] = prior.intercept_precision
        shape = (n_heads, n_arms)
        self.origin = 0
        self.gram = np.zeros((*shape, dimension, dimension))
        self.moment = np.zeros((*shape, dimension))
        self.square = np.zeros(shape)
        self.weight = np.zeros(shape)
        self.resets: dict[tuple[int, int], list[int]] = {}
        self.uses_slopes = np.full(n_heads, slopes == "always")
        self._intercept_moment = self.moment[:, :, 0]  # a view
        self._pooled_floor = np.empty((n_heads, 1))
        self.shared = np.zeros((n_heads, dimension))  # slopes that all arms share; entry 0 stays 0
        self._inverse = np.empty((*shape, dimension, dimension))
        # Per arm, as of its last rebuild: moment; then square, weight of its observations, log det A/Λ₀, residual
        # of the intercept alone and its log det.
        self._moment_then = np.zeros((*shape, dimension))
        self._then = np.zeros((5, *shape))
        self._price = np.zeros(n_heads)  # evidence that the shared slopes cost
        self._theta = np.zeros((*shape, dimension))  # of the regression, relative to the prior mean
        self._noise = np.empty((2, *shape))  # rows: intercept only, with slopes
        self.log_evidence = np.zeros(shape)  # of slopes over intercept only
        self._stale = np.zeros(shape, dtype=np.int64)  # observations since the last rebuild
        self._allowed = np.zeros(shape, dtype=np.int64)  # … and how many of them make a rebuild due
        self._rebuilt_at = np.zeros(shape, dtype=np.int64)
        self._arithmetic = Regressions(self)  # on these very arrays, which are written to and never replaced
        self.settle(0)

    def observe(self, arm: int, x: FloatArray, values: Mapping[int, float], *, made_at: int, now: int) -> None:
        """Learn that a decision made at step `made_at` for `arm` in context x yielded `values` (by head); O(d²)."""
        for head, y in values.items():
            weight = self._weight_of(head, arm, made_at)
            if self._arithmetic.add(head, arm, x, weight, y):
                self._rebuild(head, arm, now)

    def revise(self, head: int, arm: int, x: FloatArray, *, old: float, new: float, made_at: int, now: int) -> None:
        """Replace an observation's value; the state afterwards equals having learned `new` at first."""
        old, new = old - self._center[head, 0], new - self._center[head, 0]
        weight = self._weight_of(head, arm, made_at)
        self.moment[head, arm] += (weight * (new - old)) * x
        self.square[head, arm] += weight * (new * new - old * old)
        self._rebuild(head, arm, now)

    def reset(self, head: int, arm: int, now: int) -> None:
        """Pull an arm's head towards its prior after drift: evidence from decisions before `now` keeps a tenth."""
        for array in self._sums:
            array[head, arm] *= _RESET_KEEPS
        # Beyond eight resets an older observation weighs under 1e-8 and its exact count is noise.
        self.resets.setdefault((head, arm), []).append(now)
        del self.resets[head, arm][:-8]
        self._rebuild(head, arm, now)

    def absorb(self, head: int, arm: int, x: FloatArray, values: FloatArray, now: int) -> None:
        """Learn many observations at once: `x` (n, d), `values` (n,), as if made at step `now`."""
        y = values - self._center[head, 0]
        weight = self._weight_of(head, arm, now)
        self.gram[head, arm] += weight * (x.T @ x)
        self.moment[head, arm] += weight * (x.T @ y)
        self.square[head, arm] += weight * float(y @ y)
        self.weight[head, arm] += weight * len(y)
        self._rebuild(head, arm, now)

    def weaken(self, most: float, now: int) -> None:
        """Scale down what was learned so that no head of an arm counts for more than `most` observations."""
        scale = np.minimum(1.0, most / np.maximum(self._decay(now) * self.weight, 1e-12))
        for array in self._sums:
            np.multiply(array, scale.reshape(scale.shape + (1,) * (array.ndim - 2)), out=array)
        self.settle(now)

    def consider_slopes(self, now: int) -> None:
        """Decide at once whether slopes are used, from the evidence so far."""
        self.settle(now)
        self._weigh_evidence(now)

    def introduce(
        self, arm: int, now: int, *, quality: float | None = None, samples: float = _NEWCOMER_OBSERVATIONS
    ) -> None:
        """Let an arm without evidence start from the mean of the others, as if seen `samples` times; per head.

        With `quality`: from that mean quality instead, other heads untouched. Contexts are left out: what the others do
        with them says little about this one.
        """
        others = np.delete(np.arange(self.n_arms), arm)
        for head in range(self.weight.shape[0]) if quality is None else (QUALITY,):
            known = others[self.counts(head, now)[others] > 0.0]
            if quality is None and not known.size:
                continue
            mean = float(self.averages(head, now)[known].mean()) if quality is None else quality
            noise = float(self._noise[0, head, known].mean()) if known.size else float(self._noise[0, head, arm])
            # The prior and what is there count as observations of their own mean: shifted so that all have `mean`.
            decay, weight = self._decay(now), self._weight_of(head, arm, now)
            precision = float(self._intercept_precision[head, 0] + decay * self.weight[head, arm]) + samples
            level = precision * (mean - self._center[head, 0])
            square = max(0.0, level * level / precision - decay * float(self.square[head, arm])) + samples * noise
            level -= decay * float(self._intercept_moment[head, arm])
            self.gram[head, arm, 0, 0] += weight * samples
            self.moment[head, arm, 0] += weight * level
            self.square[head, arm] += weight * square
            self.weight[head, arm] += weight * samples
            self._rebuild(head, arm, now)
        self._arithmetic.look_at_noise(self._decay(now))

    def predict(self, x: FloatArray, now: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(mean, variance of that mean, noise variance) at x, each of shape (n_heads, n_arms)."""
        mean, variance, noise = self._arithmetic.predict(x, self._decay(now))
        return mean, variance, noise

    def expect(self, head: int, arm: int, x: FloatArray, now: int) -> float:
        """Posterior mean of one head of one arm at x."""
        return self._arithmetic.expect(head, arm, x, self._decay(now))

    def averages(self, head: int, now: int) -> FloatArray:
        """Posterior mean of the intercept-only model per arm: the average over the contexts it met, shape (n_arms,)."""
        decay = self._decay(now)
        precision = self._intercept_precision[head] + decay * self.weight[head]
        return np.asarray(self._center[head] + decay * self._intercept_moment[head] / precision)

    def noise_sd(self, head: int, arm: int) -> float:
        """Standard deviation of single observations of one head of one arm around their expectation."""
        return sqrt(self._noise[1 if self.uses_slopes[head] else 0, head, arm])

    def counts(self, head: int, now: int) -> FloatArray:
        """Discounted number of observations per arm, shape (n_arms,)."""
        return self._arithmetic.counts(head, self._decay(now))

    def refresh(self, now: int) -> None:
        """Called once a request: rebuilds at most one stale cache, so that no single request pays for all."""
        if self._log_gamma * (self.origin - now) > _RESCALE_AT:
            decay = self._decay(now)
            for array in self._sums:
                np.multiply(array, decay, out=array)
            self.origin = now
        if now % _NOISE_EVERY == 0:
            self._arithmetic.look_at_noise(self._decay(now))
        if self.slopes != "never":
            head, arm = divmod(now % self.weight.size, self.n_arms)
            aged = self._log_gamma * (now - self._rebuilt_at[head, arm]) < log(_REBUILD_DECAY[self._idle(head)])
            if aged and self.weight[head, arm] > 0.0:
                self._rebuild(head, arm, now)
            if head == arm == 0:
                self._weigh_evidence(now)

    def settle(self, now: int) -> None:
        """Rebuild every cache from the exact state."""
        self._arithmetic.look_at_noise(self._decay(now))
        for head in range(self.weight.shape[0]):
            for arm in range(self.n_arms):
                self._rebuild(head, arm, now)
            self._share(head)

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
        return self.gram, self.moment, self.square, self.weight

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
        self._arithmetic.rebuild(head, arm, decay)

    def _share(self, head: int) -> None:
        """Find the slopes that all arms share, and fit every arm to them."""
        if self.slopes == "never":
            return
        self.shared[head], self._price[head] = shared_slopes(
            self._inverse[head],
            self._moment_then[head],
            self._prior_diagonal[head],
            float(self._shared_precision[head]),
        )
        self._arithmetic.fit(head)

    def _weigh_evidence(self, now: int) -> None:
        if self.slopes == "never":
            return
        for head in range(self.weight.shape[0]):
            self._share(head)
            if self.slopes == "always":
                continue
            nats = float(self.log_evidence[head].sum()) - 0.5 * float(self._price[head])
            if self.uses_slopes[head]:
                self.uses_slopes[head] = nats > 0.0
            elif nats > _GATE_NATS:
                self.uses_slopes[head] = True
                for arm in range(self.n_arms):
                    self._rebuild(head, arm, now)
                self._share(head)
