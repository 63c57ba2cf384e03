"""Whether 95 of 100 requests stay below their bound, where nothing is lognormal."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import Arm, Features, Outcome, Pool, Price, Prompt


def seconds(kind, rng):
    if kind == "gamma":
        return float(rng.gamma(0.7))
    if kind == "two modes":
        return float(rng.normal(8.0, 0.5) if rng.random() < 0.1 else rng.normal(1.0, 0.05))
    return float(0.2 + rng.pareto(1.5))  # heavy: its variance is infinite


def covered(kind, seed, n, first):
    """Share of requests from `first` to `n` whose cost and latency stayed within the bound of their decision."""
    rng, pool = np.random.default_rng(seed), Pool([Arm("m", Price(1.0, 10.0))], features=Features(["a", "b"]))
    within = np.zeros((n, 2))
    for i in range(n):
        d = pool.choose(Prompt(input_tokens=50, category="ab"[i % 2]), rng)
        cost_usd, latency_s = pool.upper_bounds(d.context)
        latency = max(0.01, seconds(kind, rng)) * (1 + i % 2)
        tokens = round(100 * seconds(kind, rng))
        cost = pool.arms[0].price.cost_usd(50, tokens)
        within[i] = cost <= cost_usd[0], latency <= latency_s[0]
        pool.apply_outcome(d, Outcome("d", 0.0, "m", "ok", latency, output_tokens=tokens, cost_usd=cost))
    return within[first:].mean(axis=0)


@pytest.mark.parametrize("kind", ["gamma", "two modes", "pareto"])
def test_after_100_outcomes_93_to_97_percent_are_within_their_bound(kind):
    """Of n = 3·1,000 requests after the first 100, seeds 0 to 2: one sd of the share is √(0.95·0.05/3,000) = 0.004.

    The window of 256 adds an error that lasts as long as it does: √(0.0475/256) = 0.014 for a window, about 12 of them.
    """
    shares = np.mean([covered(kind, seed, 1_100, 100) for seed in range(3)], axis=0)
    assert (shares >= 0.93).all()
    assert (shares <= 0.97).all()


def test_with_10_to_59_outcomes_the_bound_covers_nine_in_ten():
    """Lognormal-like gamma: after 10 to 59 outcomes, n = 30·50, at least 90 %; √(0.09/1,500) = 0.008 a share."""
    shares = np.mean([covered("gamma", seed, 60, 10) for seed in range(30)], axis=0)
    assert (shares >= 0.90).all()
