"""Drift: no alarms without change, and a reset with the right sign soon after one."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import Arm, DriftReset, Pool, Prompt
from bandit.drift import DriftDetectors


def stationary(kind, rng, n):
    if kind == "latency":
        return 4.0, 0.5 * rng.standard_normal(n)
    p = {"coin": 0.5, "mostly right": 0.9}[kind]
    return 1.0, (rng.random(n) < p) - p


@pytest.mark.parametrize("kind", ["coin", "mostly right", "latency"])
def test_stationary_residuals_raise_fewer_than_one_alarm_in_100_000(kind):
    """n=300,000 in ten lives, seeds 0 to 9: at a rate of one in 100,000, at most 3 + 2·√3 = 6 would be expected."""
    alarms = 0
    for seed in range(10):
        span, residuals = stationary(kind, np.random.default_rng(seed), 30_000)
        detectors = DriftDetectors(1, 1, (span,))
        alarms += sum(detectors.update(0, 0, float(r)) != 0.0 for r in residuals)
    assert alarms <= 6


def run(seed, n, quality, latency_s, *, tokens=lambda _: 200, arms=2):
    """Every decision answered at once; `quality(step)` per arm, the rest for all; all resets, with steps."""
    rng = np.random.default_rng(seed)
    pool = Pool([Arm(f"m{i}") for i in range(arms)])
    seen = []
    for step in range(n):
        d = pool.choose(Prompt(category="abc"[step % 3]), rng)
        right = rng.random() < quality(step)[pool.names.index(d.chosen)]
        taken = latency_s(step) * np.exp(0.4 * rng.standard_normal())
        length = round(tokens(step) * np.exp(0.4 * rng.standard_normal()))
        changes = pool.update(d, quality=float(right), latency_s=float(taken), output_tokens=length)
        seen += [(step, c) for c in changes if isinstance(c, DriftReset)]
    return pool, seen


def test_a_pool_that_only_learns_is_not_reset():
    """Learning itself must not look like drift when answers come at once: 5 pools of 4,000 calls, no reset."""
    for seed in range(5):
        _, seen = run(seed, 4_000, lambda _: (0.9, 0.5), lambda _: 0.4)
        assert seen == []


def test_a_fall_in_quality_is_seen_within_100_calls_with_its_size():
    """10 pools of one arm, 0.9 → 0.3 after 1,000 calls. The size rests on at least 40 calls: 0.6 ± 4·0.5/√40."""
    for seed in range(10):
        _, seen = run(seed, 1_100, lambda t: (0.9 if t < 1_000 else 0.3,), lambda _: 0.4, arms=1)
        (step, change), *more = seen
        assert not more
        assert step > 1_000
        assert change.head == "quality"
        assert change.change == pytest.approx(-0.6, abs=0.32)


def test_a_rise_in_latency_is_seen_within_100_calls_with_its_size():
    """10 pools of one arm, latency times 6 (ln 6 = 1.79) after 1,000 calls; 40 calls know it to 4·0.4/√40 = 0.25.

    What is reported is the mean gap to the prediction, which itself follows the new latency by up to a tenth.
    """
    for seed in range(10):
        _, seen = run(seed, 1_100, lambda _: (0.8,), lambda t: 0.4 if t < 1_000 else 2.4, arms=1)
        (step, change), *more = seen
        assert not more
        assert step > 1_000
        assert change.head == "latency"
        assert change.change == pytest.approx(np.log(6), abs=0.25 + 0.18)


def test_a_rise_in_output_tokens_is_seen_within_100_calls_with_its_size():
    """10 pools of one arm that writes five times as much (ln 5 = 1.61) after 1,000 calls: as precise as latency."""
    for seed in range(10):
        _, seen = run(
            seed, 1_100, lambda _: (0.8,), lambda _: 0.4, tokens=lambda t: 200 if t < 1_000 else 1_000, arms=1
        )
        (step, change), *more = seen
        assert not more
        assert step > 1_000
        assert change.head == "output_tokens"
        assert change.change == pytest.approx(np.log(5), abs=0.25 + 0.17)


def test_traffic_follows_a_change_of_the_best_arm():
    """0.9 against 0.6 turns to 0.2 against 0.6 after 1,000 of 1,600 calls: the other gets over 80 % of the last 300."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pool, chosen = Pool([Arm("a"), Arm("b")]), []
        for step in range(1_600):
            d = pool.choose(Prompt(), rng)
            p = (0.9 if step < 1_000 else 0.2) if d.chosen == "a" else 0.6
            pool.update(d, quality=float(rng.random() < p))
            chosen.append(d.chosen)
        assert chosen[700:1_000].count("a") > 240
        assert chosen[-300:].count("b") > 240
