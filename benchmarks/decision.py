"""How long one decision takes in the process that makes it, by number of arms and features, beside other bandits.

    python -m benchmarks.decision [--arms 3,10,50,200] [--dimensions 8,32,64] [--peers NAME,…] [--json OUT]

A pool with a cost and a latency weight, a p95 and an accuracy limit, learned from 3,000 calls of which every second
arm keeps its limits; every head uses its slopes, which costs most. Prompts of about 450 characters; with d = 32 the
features are the default ones, else the request's facts and the caller's own vector. Peers (`benchmarks.peers`) are
handed the same vectors, and have learned from up to 1,000 calls. All take turns, round by round, in one process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bandit import Arm, Constraints, Context, Features, Objective, Pool, Price, Prompt
from bandit.types import FloatArray
from benchmarks.processes import host_facts

_FACTS = 8  # the intercept and the request's facts
_DEFAULT_DIMENSION = 32
_INPUT_TOKENS = 120
_USD_PER_REQUEST = 4e-4
_POOL_CALLS, _PEER_CALLS, _PEER_LEARNING_S = 3_000, 1_000, 20.0
_ROUND_S = 0.5  # a subject's share of a round ends after so long, though not before ten decisions
_FEWEST = 10


@dataclass(slots=True)
class Subject:
    """Something that decides: `call(i)` for the i-th of the prompts. Times of single decisions by round."""

    name: str
    call: Callable[[int], object]
    wall_s: list[FloatArray] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def run(self, decisions: int) -> None:
        """One round."""
        times: list[float] = []
        cpu, begun = time.process_time(), time.perf_counter()
        now = begun
        while len(times) < decisions and (now - begun < _ROUND_S or len(times) < _FEWEST):
            self.call(len(times))
            then, now = now, time.perf_counter()
            times.append(now - then)
        self.wall_s.append(np.array(times))
        self.cpu_s.append((time.process_time() - cpu) / len(times))

    def row(self) -> dict[str, Any]:
        """Medians over the rounds of each round's quantiles, and of its CPU time a decision, in microseconds."""
        quantiles = {f"p{q}_us": [float(np.quantile(times, q / 100)) for times in self.wall_s] for q in (50, 95, 99)}
        return {
            "subject": self.name,
            "decisions": sum(len(times) for times in self.wall_s),
            **{name: round(float(np.median(values)) * 1e6, 1) for name, values in quantiles.items()},
            "cpu_us": round(float(np.median(self.cpu_s)) * 1e6, 1),
            "p95_us_by_round": [round(value * 1e6, 1) for value in quantiles["p95_us"]],
        }


def prompts_of(dimension: int) -> tuple[Features, list[Prompt]]:
    """Features of that dimension, from 8 to 64, and 100 prompts that fill them."""
    rng = np.random.default_rng(1)
    if dimension == _DEFAULT_DIMENSION:
        features, n_own = Features(), 0
    else:
        n_own = dimension - _FACTS
        features = Features((), text=None, vector=n_own)
    return features, [
        Prompt(
            f"The porter at platform {i} asks how many trains pass a junction in {i} hours. " * 6,
            _INPUT_TOKENS,
            category=("math", "code", "chat", "facts")[i % 4],
            vector=tuple(rng.standard_normal(n_own).tolist()) if n_own else None,
        )
        for i in range(100)
    ]


def learned_pool(
    n_arms: int, features: Features, prompts: Sequence[Prompt], rng: np.random.Generator, budget: float | None = None
) -> Pool:
    """A pool with 3,000 calls of experience, whose heads all use their slopes."""
    prices = [Price(0.1 + 0.1 * a, 0.4 + 0.4 * a) for a in range(n_arms)]
    pool = Pool(
        [Arm(f"arm-{a}", price) for a, price in enumerate(prices)],
        objective=Objective(quality=1.0, cost=0.2, latency=0.1),
        constraints=Constraints(p95_latency_s=2.0, min_accuracy=0.7, accuracy_evidence="feedback"),
        features=features,
        usd_per_request=budget,
    )
    for i in range(_POOL_CALLS):
        decision = pool.choose(prompts[i % len(prompts)], rng)
        arm = pool.names.index(decision.chosen)
        output_tokens = int(rng.integers(10, 300))
        pool.update(
            decision,
            quality=float(rng.random() < _true_quality(arm)),
            latency_s=float(rng.lognormal(-0.7, 0.4)),
            output_tokens=output_tokens,
            cost_usd=prices[arm].cost_usd(_INPUT_TOKENS, output_tokens),
        )
    pool.heads.uses_slopes[:] = True
    return pool


def own_subjects(n_arms: int, dimension: int) -> Iterator[Subject]:
    """Pointsman: on a given vector, on a prompt, its features alone, and with a budget, which decides twice."""
    rng = np.random.default_rng(0)
    features, prompts = prompts_of(dimension)
    pool = learned_pool(n_arms, features, prompts, rng)
    paced = learned_pool(n_arms, features, prompts, rng, _USD_PER_REQUEST)
    contexts = [features.extract(prompt) for prompt in prompts]

    def decide(which: Pool, asked: Sequence[Prompt | Context]) -> Callable[[int], object]:
        return lambda i: which.decide(asked[i % len(asked)], rng, decision_id="x", ts=0.0)

    yield Subject("pointsman, given vector", decide(pool, contexts))
    yield Subject("pointsman, from a prompt", decide(pool, prompts))
    yield Subject("features alone", lambda i: features.extract(prompts[i % len(prompts)]))
    yield Subject("pointsman with a budget, given vector", decide(paced, contexts))


def peer_subject(name: str, n_arms: int, dimension: int) -> Subject:
    """A peer that has learned online from calls like the pool's, for at most 20 s."""
    from benchmarks.peers import make

    rng = np.random.default_rng(0)
    features, prompts = prompts_of(dimension)
    vectors = [features.extract(prompt).x.astype(np.float64) for prompt in prompts]
    costs = np.array([Price(0.1 + 0.1 * a, 0.4 + 0.4 * a).cost_usd(_INPUT_TOKENS, 155) for a in range(n_arms)])
    peer = make(name, n_arms=n_arms, dimension=dimension, seed=0, usd_per_request=_USD_PER_REQUEST, mean_cost_usd=costs)
    begun = time.perf_counter()
    for i in range(_PEER_CALLS):
        x = vectors[i % len(vectors)]
        arm = peer.choose(x)
        peer.learn(x, arm, float(rng.random() < _true_quality(arm)), float(costs[arm]))
        if time.perf_counter() - begun > _PEER_LEARNING_S:
            break
    return Subject(name, lambda i: peer.choose(vectors[i % len(vectors)]))


def measure(n_arms: int, dimension: int, peers: Sequence[str], decisions: int, rounds: int) -> list[dict[str, Any]]:
    """All subjects in turn, round by round after one to warm up; a peer that is not installed gets a row that says so.

    Raises InvalidInput for a name that is no peer.
    """
    subjects = list(own_subjects(n_arms, dimension))
    rows: list[dict[str, Any]] = []
    for name in peers:
        try:
            subjects.append(peer_subject(name, n_arms, dimension))
        except ModuleNotFoundError as error:
            rows.append({"subject": name, "skipped": str(error)})
    for count in (_FEWEST * 20, *[decisions] * rounds):
        for subject in subjects:
            subject.run(count)
    for subject in subjects:
        del subject.wall_s[0], subject.cpu_s[0]
    return [{"arms": n_arms, "dimension": dimension, **row} for row in [s.row() for s in subjects] + rows]


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="3,10,50,200")
    parser.add_argument("--dimensions", default="8,32,64")
    parser.add_argument("--peers", default="paretobandit,vw_squarecb,mabwiser_lints", help="'' for none")
    parser.add_argument("--decisions", type=int, default=1_000, help="of each subject in one round, at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name]
    rows: list[dict[str, Any]] = []
    for dimension in map(int, options.dimensions.split(",")):
        for n_arms in map(int, options.arms.split(",")):
            rows += measure(n_arms, dimension, peers, options.decisions, options.rounds)
            for row in [row for row in rows if (row["arms"], row["dimension"]) == (n_arms, dimension)]:
                print(_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"host": host_facts(), "rows": rows}, indent=1) + "\n")


def _true_quality(arm: int) -> float:
    return 0.9 - 0.2 * (arm % 2)


def _line(row: dict[str, Any]) -> str:
    case = f"K={row['arms']:<4} d={row['dimension']:<3} {row['subject']:38}"
    if "skipped" in row:
        return f"{case} skipped: {row['skipped']}"
    return f"{case} p50 {row['p50_us']:9.1f}  p95 {row['p95_us']:9.1f}  CPU {row['cpu_us']:9.1f} µs"


if __name__ == "__main__":
    main()
