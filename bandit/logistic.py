"""The quality head for answers that are right or wrong: one Bayesian logistic regression per arm, by Laplace.

Owns a bounded window of each arm's observations and the normal approximation fitted to it. Knows nothing of policies,
prices, limits or requests: like `bandit.posterior` it sees vectors, numbers and a step count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, pi
from typing import Literal

import numpy as np
from scipy.special import expit

from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.types import FloatArray

__all__ = ["LogisticHead"]

_RESET_KEEPS = 0.1  # as in `bandit.posterior`: a false alarm must not be a full loss
_REFIT_SHARE = 1 / 16  # new observations, as a share of those known, that make a refit due …
_REFIT_AT_MOST = 32  # … or so many
_REFIT_DECAY = 0.95  # … or forgetting down to so much since the last one
_STEPS = 3  # of Newton in a scheduled refit: it starts near the mode, where each step squares the error
_SETTLE_STEPS = 100
_HALVINGS = 30
_CONVERGED = 1e-20  # Newton decrement squared: θ is within 1e-10 posterior standard deviations of the mode
_GATE_NATS = 2.0
_NEWCOMER_OBSERVATIONS = 2.0
_COLUMNS = ("x", "y", "made_at", "weight")  # of the windows, as saved


class LogisticHead:
    """Per arm `P(y = 1 | x) = σ(θᵀx)` with `θ ~ N(μ₀, Λ₀⁻¹)`; y in [0, 1], a fraction by cross-entropy. x[0] must be 1.

    For one arm's observations i, made at steps t_i, with σ_i = σ(θᵀx_i) and `w_i = γ^(now − t_i)` (times a weight of
    their own, 1 but for what `absorb` and `introduce` bring), the posterior is approximated by a normal around its mode
    (Laplace; Chapelle & Li, 2011, algorithm 3, there with a diagonal):

        θ̂ = argmin ½(θ − μ₀)ᵀΛ₀(θ − μ₀) − Σ w_i [y_i ln σ_i + (1 − y_i) ln(1 − σ_i)]
        A = Λ₀ + Σ w_i σ_i(1 − σ_i) x_i x_iᵀ at θ̂,   θ | data ≈ N(θ̂, A⁻¹)

    μ₀ is logit(prior_mean) for the intercept (so prior_mean is a median: the mean of a wide prior is nearer to ½) and 0
    for slopes; unlike those of `Heads`, slopes are not shared between arms. Precisions are in units of one observation
    at the prior mean, whose information is m(1 − m): `Λ₀ = m(1 − m)·diag(intercept_precision, slope_precision, …)`, so
    that they mean what they mean in `HeadPrior`.

    Beliefs about quality at x, with `μ = θ̂ᵀx`, `s² = xᵀA⁻¹x`, `κ = 1/√(1 + πs²/8)`: the mean is `m = σ(κμ)` (MacKay,
    1992; Bishop, PRML, 2006, eq. 4.153) and the variance is the delta method on that mean, `(κ m(1 − m))² s²`. Against
    numerical integration over |μ| ≤ 4, s ≤ 3 the mean is within 0.01 and the standard deviation within 0.07.

    Nothing of this is conjugate, so each arm keeps its observations: the `window` newest by step of decision. An older
    one that comes late is not learned, a revision of one that has left changes nothing. Within the window the order of
    arrival does not matter, and a revised value is as if it had come first. `half_life_requests` thus never reaches
    further back than the window does. Observations from before a `reset` weigh a tenth.

    With `slopes="auto"` the intercept alone is used until the Laplace evidence for slopes (MacKay, 1992), summed over
    arms, exceeds 2 nats, and again once it drops below 0: the same gate as in `Heads`. Fractions of y make it a
    quasi-likelihood.

    Mode and A are caches. Scheduled refits start at the last mode and take at most 3 Newton steps: when an arm has a
    sixteenth more observations than at its last refit, or 32 more, or 5 % less by forgetting. `settle` iterates all
    arms to convergence. A step costs O(n·d²) for n ≤ `window`: about 0.6 ms at n = 2,000 and d = 32, once in 32
    observations. Memory is at most n_arms·window·(4d + 16) bytes.
    """

    def __init__(
        self,
        n_arms: int,
        dimension: int,
        *,
        slope_precision: float = 50.0,
        intercept_precision: float = 1.0,
        half_life_requests: float | None = None,
        window: int = 2000,
        prior_mean: float = 0.5,
        slopes: Literal["auto", "always", "never"] = "auto",
        precision_scale: FloatArray | None = None,
    ) -> None:
        if n_arms < 1 or dimension < 1 or window < 1:
            raise InvalidInput("logistic", "needs at least one arm, one feature and one observation in its window")
        if half_life_requests is not None and not half_life_requests > 0:
            raise InvalidInput("half_life_requests", "must be above 0, or None to never forget")
        if not 0 < prior_mean < 1:
            raise InvalidInput("prior_mean", "must be above 0 and below 1")
        if not (slope_precision > 0 and intercept_precision > 0):
            raise InvalidInput("precision", "must be above 0")
        self.n_arms, self.dimension, self.window, self.slopes = n_arms, dimension, window, slopes
        self._log_gamma = 0.0 if half_life_requests is None else -log(2.0) / half_life_requests
        self._prior_mode = np.zeros(dimension)
        self._prior_mode[0] = log(prior_mean / (1.0 - prior_mean))
        self._prior_precision = np.full(dimension, slope_precision * prior_mean * (1.0 - prior_mean))
        if precision_scale is not None:
            self._prior_precision *= precision_scale
        self._prior_precision[0] = intercept_precision * prior_mean * (1.0 - prior_mean)
        self.count = np.zeros(n_arms, dtype=np.int64)
        self._x = [np.empty((0, dimension), dtype=np.float32) for _ in range(n_arms)]  # rows beyond `count` are room
        self._y = [np.empty(0, dtype=np.float32) for _ in range(n_arms)]
        self._made_at = [np.empty(0, dtype=np.int64) for _ in range(n_arms)]
        self._weight = [np.empty(0, dtype=np.float32) for _ in range(n_arms)]
        self.resets: dict[int, list[int]] = {}
        self.uses_slopes = slopes == "always"
        self.log_evidence = np.zeros(n_arms)  # of slopes over intercept only
        self._mode = np.tile(self._prior_mode, (n_arms, 1))
        self._covariance = np.tile(np.diag(1.0 / self._prior_precision), (n_arms, 1, 1))
        self._intercept = np.full(n_arms, self._prior_mode[0])
        self._intercept_variance = np.full(n_arms, 1.0 / self._prior_precision[0])
        self._stale = np.zeros(n_arms, dtype=np.int64)  # observations since the last refit
        self._refitted_at = np.zeros(n_arms, dtype=np.int64)

    def observe(self, arm: int, x: FloatArray, y: float, *, made_at: int, now: int) -> None:
        """Learn that a decision made at step `made_at` for `arm` in context x, shape (d,), had quality y in [0, 1]."""
        if self._keep(arm, x, y, made_at, 1.0):
            self._changed(arm, now)

    def absorb(self, arm: int, x: FloatArray, values: FloatArray, weight: float, now: int) -> None:
        """Learn many observations at once: `x` (n, d), `values` (n,), each as `weight` of one made at step `now`.

        Beyond `window` of them the first ones are left out.
        """
        for row, y in zip(x[-self.window :], values[-self.window :], strict=True):
            self._keep(arm, row, float(y), now, weight)
        self._refit(arm, now, _SETTLE_STEPS)

    def weaken(self, most: float, now: int) -> None:
        """Scale down what was learned so that no arm's evidence counts for more than `most` observations."""
        for arm, total in enumerate(self.counts(now)):
            self._weight[arm] *= np.float32(min(1.0, most / max(float(total), 1e-12)))
        self.settle(now)

    def introduce(
        self, arm: int, now: int, *, quality: float | None = None, samples: float = _NEWCOMER_OBSERVATIONS
    ) -> None:
        """Let an arm without evidence start from the mean of the others, as if seen `samples` times.

        With `quality`: from that mean quality instead. It is one observation without slopes, and leaves the window in
        its turn.
        """
        known = (self.count > 0) & (np.arange(self.n_arms) != arm)
        if quality is None and not known.any():
            return
        mean = float(expit(self._intercept[known]).mean()) if quality is None else quality
        self._keep(arm, np.eye(1, self.dimension)[0], mean, now, samples)
        self._refit(arm, now, _SETTLE_STEPS)

    def revise(self, arm: int, x: FloatArray, *, old: float, new: float, made_at: int, now: int) -> None:
        """Replace an observation's value; after `settle` the state equals having learned `new` at first."""
        n = self.count[arm]
        same = (self._made_at[arm][:n] == made_at) & (self._y[arm][:n] == np.float32(old))
        for row in np.flatnonzero(same):
            if np.array_equal(self._x[arm][row], x.astype(np.float32)):
                self._y[arm][row] = new
                self._changed(arm, now)
                return

    def reset(self, arm: int, now: int) -> None:
        """Pull an arm towards its prior after drift: evidence from decisions before `now` keeps a tenth."""
        self.resets.setdefault(arm, []).append(now)
        del self.resets[arm][:-8]  # beyond eight an older observation weighs under 1e-8
        self._refit(arm, now, _SETTLE_STEPS)

    def predict(self, x: FloatArray, now: int) -> tuple[FloatArray, FloatArray]:  # noqa: ARG002  as in other heads
        """(mean, variance of that mean) of quality in [0, 1] at x, each of shape (n_arms,).

        As of each arm's last refit: between two of them neither new observations nor forgetting count, which is why
        `now` is not looked at.
        """
        if self.uses_slopes:
            mu = self._mode @ x
            projected = (self._covariance.reshape(-1, self.dimension) @ x).reshape(self.n_arms, -1)
            variance = np.maximum(projected @ x, 1e-12)
        else:
            mu, variance = self._intercept, self._intercept_variance
        kappa = 1.0 / np.sqrt(1.0 + (pi / 8.0) * variance)
        mean = expit(kappa * mu)
        return mean, (kappa * mean * (1.0 - mean)) ** 2 * variance

    def counts(self, now: int) -> FloatArray:
        """Discounted number of observations per arm in its window, shape (n_arms,)."""
        return np.array([self._weights(arm, now).sum() for arm in range(self.n_arms)])

    def refresh(self, now: int) -> None:
        """Called once a request: refits at most one arm that has aged, so that no single request pays for all."""
        arm = now % self.n_arms
        aged = self._log_gamma * (now - self._refitted_at[arm]) < log(_REFIT_DECAY)
        if aged and self.count[arm] > 0:
            self._refit(arm, now, _STEPS)
        if arm == 0:
            self._weigh_evidence()

    def settle(self, now: int) -> None:
        """Refit every arm to convergence."""
        for arm in range(self.n_arms):
            self._refit(arm, now, _SETTLE_STEPS)
        self._weigh_evidence()

    def state(self) -> dict[str, np.ndarray]:
        """The exact learned state as named arrays; `load` is its inverse. Rows of observations follow the arms."""
        resets = [(arm, step) for arm, steps in sorted(self.resets.items()) for step in steps]
        windows = (np.concatenate([part[:n] for part, n in zip(c, self.count, strict=True)]) for c in self._columns)
        return {
            **dict(zip(_COLUMNS, windows, strict=True)),
            "count": self.count.copy(),
            "uses_slopes": np.array(self.uses_slopes),
            "resets": np.array(resets, dtype=np.int64).reshape(-1, 2),
        }

    def load(self, state: Mapping[str, np.ndarray], now: int) -> None:
        """Take over a state of as many arms and features, or raise `SnapshotMismatch` and change nothing.

        Of a longer window the newest observations are kept.
        """
        if any(name not in state for name in self.state()) or not self._fits(state):
            raise SnapshotMismatch(f"learned state has no fitting window for {self.n_arms} arms, d={self.dimension}")
        ends = np.cumsum(state["count"])[:-1]
        steps = np.split(state["made_at"], ends)
        newest = [np.argsort(made_at, kind="stable")[-self.window :] for made_at in steps]
        for name, column in zip(_COLUMNS, self._columns, strict=True):
            for arm, saved in enumerate(np.split(state[name], ends)):
                column[arm] = saved[newest[arm]].astype(column[arm].dtype)
        self.count[:] = [kept.size for kept in newest]
        self.resets = {}
        for arm, step in state["resets"].tolist():
            self.resets.setdefault(arm, []).append(step)
        self.uses_slopes = bool(state["uses_slopes"]) if self.slopes == "auto" else self.slopes == "always"
        self._mode[...] = self._prior_mode
        self._intercept[...] = self._prior_mode[0]
        self.settle(now)

    @staticmethod
    def rearranged(state: Mapping[str, np.ndarray], rows: Sequence[int | None]) -> dict[str, np.ndarray]:
        """A state for other arms: arm i is row `rows[i]` of `state`, or the prior where that is None."""
        ends = np.cumsum(state["count"])
        starts = ends - state["count"]
        picked = [slice(0, 0) if row is None else slice(int(starts[row]), int(ends[row])) for row in rows]
        resets = [(i, step) for arm, step in state["resets"].tolist() for i, row in enumerate(rows) if row == arm]
        arranged = dict(state)
        for name in _COLUMNS:
            arranged[name] = np.concatenate([state[name][part] for part in picked])
        arranged["count"] = np.array([part.stop - part.start for part in picked], dtype=np.int64)
        arranged["resets"] = np.array(resets, dtype=np.int64).reshape(-1, 2)
        return arranged

    def _fits(self, state: Mapping[str, np.ndarray]) -> bool:
        total = int(state["count"].sum())
        return (
            state["count"].shape == (self.n_arms,)
            and state["x"].shape == (total, self.dimension)
            and all(state[name].shape == (total,) for name in _COLUMNS[1:])
            and state["resets"].shape[1:] == (2,)
        )

    @property
    def _columns(self) -> tuple[list[np.ndarray], ...]:
        return self._x, self._y, self._made_at, self._weight

    def _keep(self, arm: int, x: FloatArray, y: float, made_at: int, weight: float) -> bool:
        """Put an observation into a free row, or that of the oldest decision; False if it is no newer than that."""
        n = row = int(self.count[arm])
        if n == self.window:
            row = int(np.argmin(self._made_at[arm][:n]))
            if self._made_at[arm][row] >= made_at:
                return False
        else:
            if n == self._y[arm].shape[0]:
                room = min(self.window, max(16, 2 * n)) - n
                for column in self._columns:
                    empty = np.zeros((room, *column[arm].shape[1:]), dtype=column[arm].dtype)
                    column[arm] = np.concatenate([column[arm], empty])
            self.count[arm] = n + 1
        for column, value in zip(self._columns, (x, y, made_at, weight), strict=True):
            column[arm][row] = value
        return True

    def _changed(self, arm: int, now: int) -> None:
        self._stale[arm] += 1
        if self._stale[arm] > min(int(self.count[arm] * _REFIT_SHARE), _REFIT_AT_MOST):
            self._refit(arm, now, _STEPS)

    def _weights(self, arm: int, now: int) -> FloatArray:
        made_at = self._made_at[arm][: self.count[arm]]
        weights = self._weight[arm][: self.count[arm]] * np.exp(self._log_gamma * (now - made_at))
        for step in self.resets.get(arm, ()):
            weights[made_at < step] *= _RESET_KEEPS
        return np.asarray(weights)

    def _refit(self, arm: int, now: int, steps: int) -> None:
        """Modes, covariance and evidence of one arm from its window."""
        self._stale[arm] = 0
        self._refitted_at[arm] = now
        n = self.count[arm]
        data = self._y[arm][:n].astype(np.float64), self._weights(arm, now)
        prior = self._prior_mode, self._prior_precision
        ones, intercept = np.ones((n, 1)), self._intercept[arm : arm + 1]
        mode, precision, alone = _laplace(ones, data, (prior[0][:1], prior[1][:1]), start=intercept, steps=steps)
        self._intercept[arm], self._intercept_variance[arm] = mode[0], 1.0 / precision[0, 0]
        if self.slopes == "never":
            return
        x = self._x[arm][:n].astype(np.float64)
        mode, precision, full = _laplace(x, data, prior, start=self._mode[arm], steps=steps)
        self._mode[arm], self._covariance[arm] = mode, np.linalg.inv(precision)
        self.log_evidence[arm] = full - alone

    def _weigh_evidence(self) -> None:
        if self.slopes == "auto":
            nats = self.log_evidence.sum()
            self.uses_slopes = bool(nats > (0.0 if self.uses_slopes else _GATE_NATS))


def _laplace(
    x: FloatArray,
    data: tuple[FloatArray, FloatArray],
    prior: tuple[FloatArray, FloatArray],
    *,
    start: FloatArray,
    steps: int,
) -> tuple[FloatArray, FloatArray, float]:
    """(mode, precision there, log evidence) by at most `steps` Newton steps from `start`, halved where they overshoot.

    `x` (n, d); `data` = (y, weights), each (n,); `prior` = (mode, diagonal of the precision), each (d,). The evidence
    is Laplace's, exact in the factors that models of the same data differ by. When steps run out before the mode is
    reached, precision is that of one step earlier.
    """
    y, weights = data
    prior_mode, diagonal = prior

    def loss_of(theta: FloatArray, logits: FloatArray) -> float:
        misfit = weights @ (np.logaddexp(0.0, logits) - y * logits)
        return float(misfit + 0.5 * diagonal @ (theta - prior_mode) ** 2)

    theta, logits = start.copy(), x @ start
    loss = loss_of(theta, logits)
    for _ in range(steps):
        p = expit(logits)
        gradient = x.T @ (weights * (p - y)) + diagonal * (theta - prior_mode)
        precision = (x.T * (weights * p * (1.0 - p))) @ x
        precision.flat[:: diagonal.size + 1] += diagonal
        step = np.linalg.solve(precision, gradient)
        if gradient @ step <= _CONVERGED:
            break
        for halving in range(_HALVINGS):
            proposed = theta - step * 0.5**halving
            proposed_logits = x @ proposed
            proposed_loss = loss_of(proposed, proposed_logits)
            if proposed_loss <= loss + 1e-12 * abs(loss):  # at the mode, losses differ by rounding only
                break
        theta, logits, loss = proposed, proposed_logits, proposed_loss
    log_det = np.linalg.slogdet(precision)[1] - np.log(diagonal).sum()
    return theta, precision, -loss - 0.5 * float(log_det)
