"""How long one decision takes in the process that makes it: features, filters, propensities, draw.

    python -m benchmarks.decision [--arms 3,10,50] [--decisions 5000] [--json OUT]

A pool with a cost and a latency weight, a p95 and an accuracy limit, d = 32, learned from 3,000 calls of which every
second arm keeps its limits; once as its evidence has it, once with the slopes of every head in use. Prompts of about
450 characters. Wall-clock times of single decisions, so anything else the machine does is in the tail.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bandit import Arm, Constraints, Objective, Pool, Price, Prompt
from benchmarks.processes import host_facts


def learned_pool(n_arms: int, rng: np.random.Generator) -> tuple[Pool, list[Prompt]]:
    """A pool with 3,000 calls of experience, and prompts to ask it about."""
    prompts = [
        Prompt(f"The porter at platform {i} asks how many trains pass a junction in {i} hours. " * 6, 120, category=c)
        for i, c in enumerate(("math", "code", "chat", "facts") * 25)
    ]
    pool = Pool(
        [Arm(f"arm-{a}", Price(0.1 + 0.1 * a, 0.4 + 0.4 * a)) for a in range(n_arms)],
        objective=Objective(quality=1.0, cost=0.2, latency=0.1),
        constraints=Constraints(p95_latency_s=2.0, min_accuracy=0.7, accuracy_evidence="feedback"),
    )
    for i in range(3_000):
        decision = pool.choose(prompts[i % len(prompts)], rng)
        arm = pool.names.index(decision.chosen)
        pool.update(
            decision,
            quality=float(rng.random() < 0.9 - 0.2 * (arm % 2)),
            latency_s=float(rng.lognormal(-0.7, 0.4)),
            output_tokens=int(rng.integers(10, 300)),
        )
    return pool, prompts


def measure(pool: Pool, prompts: list[Prompt], decisions: int, rng: np.random.Generator) -> dict[str, float]:
    """Quantiles of single decisions in microseconds."""
    times = np.empty(decisions)
    for i in range(decisions):
        begun = time.perf_counter()
        pool.decide(prompts[i % len(prompts)], rng, decision_id="x", ts=0.0)
        times[i] = time.perf_counter() - begun
    return {f"p{q}_us": round(float(np.quantile(times, q / 100)) * 1e6, 1) for q in (50, 95, 99)}


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="3,10,50")
    parser.add_argument("--decisions", type=int, default=5_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for n_arms in map(int, options.arms.split(",")):
        rng = np.random.default_rng(0)
        pool, prompts = learned_pool(n_arms, rng)
        for slopes in ("by evidence", "all heads"):
            if slopes == "all heads":
                pool.heads.uses_slopes[:] = True
            measure(pool, prompts, 500, rng)
            rows.append({"arms": n_arms, "slopes": slopes, **measure(pool, prompts, options.decisions, rng)})
            row = rows[-1]
            print(
                f"K={n_arms:<4} d=32  slopes {slopes:12} p50 {row['p50_us']:7.1f}  p95 {row['p95_us']:7.1f} µs",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"host": host_facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
