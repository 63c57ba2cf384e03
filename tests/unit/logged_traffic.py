"""A log of a learning pool on made-up traffic, written by the service's own analytical log, for tests of replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bandit import Features
from evaluation.simulation import Trace, Workload, simulate
from serving.pools import build_pool
from serving.settings import Settings
from serving.simulated_log import SimulatedLog

MODELS = ("small", "large", "slow")
CATEGORIES = ("math", "law")
QUALITY = {"math": (0.9, 0.8, 0.7), "law": (0.4, 0.8, 0.7)}  # by category, of each model
LATENCY_S = (0.5, 1.0, 3.0)
TOKENS = (100, 200, 300)
CONFIG = {
    "models": [
        {
            "name": name,
            "endpoint": "http://127.0.0.1:9/v1",
            "price": {"input_per_million": 1.0, "output_per_million": p},
        }
        for name, p in zip(MODELS, (1.0, 10.0, 5.0), strict=True)
    ],
    "pools": [
        {
            "name": "auto",
            "models": list(MODELS),
            "objective": {"quality": 1.0, "cost": 0.2, "cost_reference_usd": 0.002},
            "features": {"categories": list(CATEGORIES)},
            "policy": {"exploration_floor": 0.2, "seed": 1},
        }
    ],
}


def pool(**changes):
    """The configuration's pool, with other values in its section."""
    section = CONFIG["pools"][0] | changes
    settings = Settings.parse(CONFIG | {"pools": [section]})
    return build_pool(settings.pools[0], settings)


def workload(n: int, seed: int = 0) -> Workload:
    """N calls, every other one of each category; a model's answer is right with its category's rate."""
    from bandit import Prompt

    rng = np.random.default_rng(seed)
    features = Features(CATEGORIES)
    contexts = tuple(features.extract(Prompt("a question", 20, category=c)) for c in CATEGORIES)
    prompts = np.arange(n) % 2
    rates = np.array([QUALITY[CATEGORIES[p]] for p in prompts]).T
    spread = rng.uniform(0.5, 1.5, (3, n))
    tokens = np.round(np.array(TOKENS)[:, None] * spread)
    tokens_in = np.full((3, n), 20.0)
    cost = (tokens_in + tokens * np.array([1.0, 10.0, 5.0])[:, None]) / 1e6
    return Workload(
        models=MODELS,
        contexts=contexts,
        prompts=prompts.astype(np.intp),
        quality=(rng.random((3, n)) < rates).astype(float),
        cost_usd=cost,
        latency_s=np.array(LATENCY_S)[:, None] * spread,
        input_tokens=tokens_in,
        output_tokens=tokens,
    )


def write_log(path: Path, n: int = 400, *, seed: int = 0, feedback_delay_s: float = 7.0, **changes) -> Trace:
    """A log at `path` of n calls; returns what happened."""
    routed = pool(**changes)
    log = SimulatedLog(path, routed)
    trace = simulate(
        routed,
        workload(n, seed),
        rng=np.random.default_rng(seed + 1),
        feedback_delay_s=feedback_delay_s,
        start_ts=1_700_000_000.0,
        observer=log,
    )
    log.close()
    return trace
