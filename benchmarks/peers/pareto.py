"""ParetoBandit (`paretobandit`): disjoint LinUCB with geometric forgetting, offline priors and a budget pacer.

Set up as its authors' demonstration and paper do for a budget: their tuned constants, adaptive pacing, no fixed
cost penalty, priors from full outcomes, then a burn-in in which router and pacer run on the warm-up rows.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import joblib
import numpy as np
from pareto_bandit.budget_pacer import BudgetPacer, PacingMode
from pareto_bandit.config import BEST_K3_HPARAMS, BEST_K3_TABULA_RASA_HPARAMS
from pareto_bandit.feature_service import FeatureService
from pareto_bandit.router import BanditRouter
from pareto_bandit.types import RouterConfig

from bandit.types import FloatArray
from benchmarks.peers import Peer, Task, Warm

__all__ = ["ParetoBandit", "create"]

COMPONENTS: Final = 6
_TOKENS_PER_CALL: Final = 600
_SMALLEST_DEVIATION: Final = 1e-6


class ParetoBandit:
    """Its router on given vectors, which its own sentence encoder would have made otherwise.

    With warm-up data the vectors go through a whitened PCA fitted there, as its own features do: of 6 components,
    the fewest of the 6 to 25 that its authors found equally good, and the best of 6, 10, 16, 25 and no PCA on
    `mmlu_pro` and `paretobandit`. Its router wants prices per token: those at which a call of 600 tokens, its own
    default, costs the arm's mean. Without warm-up data it has its authors' constants for a cold start.
    """

    name = "paretobandit"

    def __init__(self, task: Task) -> None:
        mean_cost_usd, warm = task.mean_costs(), task.warm
        logging.getLogger("pareto_bandit").setLevel(logging.ERROR)  # it warns at every ceiling it has to relax
        # It wants the intercept last.
        self._vector: Callable[[FloatArray], FloatArray] = _with_intercept_last if warm is None else _Whitening(warm[0])
        self._arms = {f"arm-{index}": index for index in range(task.n_arms)}
        self._names = list(self._arms)
        self._pacer = BudgetPacer(task.usd_per_request, PacingMode.ADAPTIVE) if task.usd_per_request else None
        constants = BEST_K3_TABULA_RASA_HPARAMS if warm is None else BEST_K3_HPARAMS
        prices = mean_cost_usd * 1e6 / _TOKENS_PER_CALL
        with tempfile.TemporaryDirectory() as folder:
            self._router = BanditRouter.create(
                model_registry={
                    name: {"input_cost_per_m": price, "output_cost_per_m": price}
                    for name, price in zip(self._names, prices.tolist(), strict=True)
                },
                feature_service=FeatureService.for_precomputed(len(self._vector(np.ones(task.dimension)))),
                priors="none" if warm is None else self._write_priors(Path(folder) / "priors.joblib", warm),
                prior_n_effective=constants["prior_n_effective"],
                alpha=constants["alpha"],
                forgetting_factor=constants["forgetting_factor"],
                cost_penalty=0.0,
                budget_pacer=self._pacer,
                bandit_seed=task.seed,
                # Its authors: raise the ceiling if the dearest model exceeds it, or penalties saturate.
                config=RouterConfig(market_cost_ceiling=max(RouterConfig.market_cost_ceiling, prices.max() / 1e3)),
            )
        if warm is not None:
            self._burn_in(warm, task.seed)

    def choose(self, x: FloatArray, category: str = "") -> int:
        """See `Peer.choose`."""
        del category
        arm, _ = self._router.route(self._vector(x))
        return self._arms[arm]

    def learn(self, x: FloatArray, arm: int, quality: float, cost_usd: float, category: str = "") -> None:
        """See `Peer.learn`. Does what its `process_feedback` does, without looking the call up by its id."""
        del category
        self._router.update(self._names[arm], self._vector(x), quality, advance_time=False)
        if self._pacer is not None:
            self._pacer.observe(cost_usd)

    def _write_priors(self, path: Path, warm: Warm) -> str:
        """The file its priors are read from: A = I + Σxxᵀ and b = Σxy of each arm; the router scales them."""
        vectors, quality = np.array([self._vector(x) for x in warm[0]]), warm[1]
        rows = [~np.isnan(quality[:, arm]) for arm in range(quality.shape[1])]
        data = {
            "A": {
                name: np.eye(vectors.shape[1]) + vectors[r].T @ vectors[r]
                for name, r in zip(self._names, rows, strict=True)
            },
            "b": {
                name: vectors[r].T @ quality[r, arm] for (name, arm), r in zip(self._arms.items(), rows, strict=True)
            },
            "models": self._names,
        }
        joblib.dump(data, path)
        return str(path)

    def _burn_in(self, warm: Warm, seed: int) -> None:
        contexts, quality, cost_usd = warm
        for row in np.random.default_rng(seed).permutation(len(contexts)):
            arm = self.choose(contexts[row])
            if not np.isnan(quality[row, arm]) and not np.isnan(cost_usd[row, arm]):
                self.learn(contexts[row], arm, float(quality[row, arm]), float(cost_usd[row, arm]))


class _Whitening:
    """Principal components of contexts without their intercept, scaled to unit variance; 1 is appended."""

    def __init__(self, contexts: FloatArray) -> None:
        self._mean = contexts[:, 1:].mean(axis=0)
        _, singular, axes = np.linalg.svd(contexts[:, 1:] - self._mean, full_matrices=False)
        deviation = singular / np.sqrt(len(contexts))
        kept = min(COMPONENTS, int(np.count_nonzero(deviation > _SMALLEST_DEVIATION)))
        self._axes = axes[:kept].T / deviation[:kept]

    def __call__(self, x: FloatArray) -> FloatArray:
        return np.append((x[1:] - self._mean) @ self._axes, 1.0)


def _with_intercept_last(x: FloatArray) -> FloatArray:
    return np.append(x[1:], x[0])


def create(task: Task) -> Peer:
    """See `benchmarks.peers.make`."""
    return ParetoBandit(task)
