"""What the tests of pools share: a pool of a few arms, an outcome, a seeded generator, a pool's state as bytes."""

from __future__ import annotations

import numpy as np

from bandit import Arm, Constraints, Objective, Outcome, Pool, Price, snapshot

LIMITED = Constraints(p95_latency_s=2.0, max_error_rate=0.1, min_accuracy=0.7, accuracy_evidence="both")


def make(n=3, **kwargs):
    kwargs.setdefault("objective", Objective(quality=1, cost=0.2, latency=0.1))
    return Pool([Arm(f"m{i}", Price(1.0, 2.0 + i)) for i in range(n)], **kwargs)


def rng(seed=0):
    return np.random.default_rng(seed)


def outcome(decision, status="ok", latency_s=0.5, output_tokens=100, **kwargs):
    model = kwargs.pop("model", decision.chosen)
    return Outcome(decision.decision_id, 0.0, model, status, latency_s, output_tokens=output_tokens, **kwargs)


def bits(pool):
    return snapshot.dumps(pool.state())
