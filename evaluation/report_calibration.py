"""Whether models were drawn with the probabilities that were logged: by size of the probability, by model, in all.

Under right propensities, whatever happened before each draw, Σ(1[drawn] − p) has mean 0 and the variance Σp(1 − p);
over many draws it is normal (martingale central limit theorem). Pure sums over chunks; knows no policy.
"""
# ruff: noqa: S608 - statements are built from this file's own constants and quoted names

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, ndtr

from bandit.intervals import wilson
from bandit.types import FloatArray
from evaluation.logs import Log, quoted
from evaluation.report_tables import rows_of

__all__ = ["Calibration", "calibration"]

EDGES: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
LEAST_VARIANCE: Final = 5.0  # below it a sum of draws is too few to be called normal
_CHUNK: Final = 50_000


def calibration(log: Log, arms: tuple[str, ...]) -> dict[str, Any]:
    """The calibration of all drawn decisions in table `calls`."""
    sums = Calibration(arms)
    for chosen, behaviour in _chunks(log, arms):
        sums.add(chosen, behaviour)
    return sums.data()


class Calibration:
    """Sums over draws, for any number of them."""

    def __init__(self, arms: tuple[str, ...]) -> None:
        k, bins = len(arms), len(EDGES) - 1
        self._arms, self._draws = arms, 0
        self._drawn, self._expected, self._products = np.zeros(k), np.zeros(k), np.zeros((k, k))
        self._pairs, self._hits, self._mean, self._variance = (np.zeros(bins) for _ in range(4))

    def add(self, chosen: NDArray[np.intp], behaviour: FloatArray) -> None:
        """Take in n draws: `chosen` (n,), of `behaviour` (n, K)."""
        n, k = behaviour.shape
        self._draws += n
        self._drawn += np.bincount(chosen, minlength=k)
        self._expected += behaviour.sum(axis=0)
        self._products += behaviour.T @ behaviour
        of = np.clip(np.searchsorted(EDGES, behaviour, side="left") - 1, 0, len(EDGES) - 2)  # (low, high]
        drawn_in = of[np.arange(n), chosen]
        for i in range(len(self._pairs)):
            inside = (of == i) & (behaviour > 0)
            together = np.where(inside, behaviour, 0.0).sum(axis=1)  # one draw hits at most one of a bin's models
            self._pairs[i] += inside.sum()
            self._hits[i] += (drawn_in == i).sum()
            self._mean[i] += together.sum()
            self._variance[i] += (together * (1.0 - together)).sum()

    def data(self) -> dict[str, Any]:
        """All of it as plain data; z is the excess over what was expected, in standard deviations."""
        covariance = np.diag(self._expected) - self._products
        variances = np.maximum(np.diag(covariance), 0.0)
        return {
            "draws": self._draws,
            "bins": [self._bin(i) for i in range(len(self._pairs)) if self._pairs[i]],
            "by_model": [
                {"model": arm, "drawn": int(self._drawn[i]), "expected": float(self._expected[i])}
                | {"z": _z(self._drawn[i] - self._expected[i], variances[i])}
                for i, arm in enumerate(self._arms)
            ],
            "test": self._test(covariance),
        }

    def _bin(self, i: int) -> dict[str, Any]:
        pairs, hits = int(self._pairs[i]), int(self._hits[i])
        low, high = wilson(hits, pairs)
        return {
            "above": EDGES[i],
            "up_to": EDGES[i + 1],
            "pairs": pairs,
            "probability": float(self._mean[i] / pairs),
            "realised": hits / pairs,
            "low": low,
            "high": high,
            "z": _z(hits - self._mean[i], self._variance[i]),
        }

    def _test(self, covariance: FloatArray) -> dict[str, Any]:
        """S'V⁺S for the models whose Σp(1 − p) is at least 5; χ² with the rank of V as degrees of freedom."""
        kept = np.flatnonzero(np.diag(covariance) >= LEAST_VARIANCE)
        if not kept.size:
            return {"statistic": None, "degrees": 0, "p_value": None, "models": 0}
        values, vectors = np.linalg.eigh(covariance[np.ix_(kept, kept)])
        real = values > 1e-6 * values.max(initial=0.0)
        degrees = int(real.sum())
        along = vectors[:, real].T @ (self._drawn - self._expected)[kept]
        statistic = float((along**2 / values[real]).sum())
        p_value = float(chdtrc(degrees, statistic))
        return {"statistic": statistic, "degrees": degrees, "p_value": p_value, "models": int(kept.size)}


def _z(excess: float, variance: float) -> dict[str, float | None]:
    if variance < LEAST_VARIANCE:
        return {"value": None, "p_value": None}
    z = float(excess) / sqrt(float(variance))
    return {"value": z, "p_value": float(2.0 * ndtr(-abs(z)))}


def _chunks(log: Log, arms: tuple[str, ...]) -> Iterator[tuple[NDArray[np.intp], FloatArray]]:
    columns = ", ".join(
        f"coalesce(probabilities[list_position(arms, {quoted(arm)})], 0)::DOUBLE AS p{i}" for i, arm in enumerate(arms)
    )
    (found,) = rows_of(log, "SELECT max(row) AS last FROM calls")
    for start in range(0, int(found["last"]) + 1, _CHUNK):
        chunk = log.connection.execute(
            f"SELECT list_position($arms, chosen) - 1 AS chosen, {columns} FROM calls"
            " WHERE row >= $start AND row < $stop AND drawn AND list_contains(arms, chosen) ORDER BY row",
            {"arms": list(arms), "start": start, "stop": start + _CHUNK},
        ).fetchnumpy()
        if len(chunk["chosen"]):
            behaviour = np.stack([np.ma.filled(chunk[f"p{i}"], 0.0) for i in range(len(arms))], axis=1)
            yield np.asarray(chunk["chosen"], dtype=np.intp), behaviour
