"""Contextual Thompson sampling with exact propensities, hard limits and forgetting, as a library.

from bandit import Arm, Pool, Prompt

pool = Pool([Arm("small"), Arm("large")])
decision = pool.choose(Prompt("What is 2 + 2?", category="math"), rng)
pool.update(decision, quality=1.0, latency_s=0.8, output_tokens=12)
"""

from bandit.baselines import (
    UCB1,
    BestFeasible,
    EpsilonGreedy,
    Fixed,
    LinUCB,
    LogisticThompson,
    RoundRobin,
    SquareCB,
    Uniform,
    Weighted,
)
from bandit.features import Features
from bandit.filters import FilterSettings, Transition
from bandit.pool import DriftReset, Pool
from bandit.thompson import Thompson
from bandit.types import Arm, Constraints, Context, Decision, Feedback, Objective, Outcome, Price, Prompt

__all__ = [
    "UCB1",
    "Arm",
    "BestFeasible",
    "Constraints",
    "Context",
    "Decision",
    "DriftReset",
    "EpsilonGreedy",
    "Features",
    "Feedback",
    "FilterSettings",
    "Fixed",
    "LinUCB",
    "LogisticThompson",
    "Objective",
    "Outcome",
    "Pool",
    "Price",
    "Prompt",
    "RoundRobin",
    "SquareCB",
    "Thompson",
    "Transition",
    "Uniform",
    "Weighted",
]
