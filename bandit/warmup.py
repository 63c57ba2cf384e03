"""What was seen before the first request, as a starting point: a warm start of one pool.

Turns recorded contexts and outcomes into evidence of a stated strength. Knows nothing of files or logs: whoever has
read them hands over arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, log

import numpy as np

from bandit.bounds import COST, LATENCY
from bandit.errors import InvalidInput
from bandit.lessons import SHORTEST_S, billed_tokens
from bandit.pacing import Pacer
from bandit.pool import Pool
from bandit.posterior import LATENCY as LATENCY_HEAD
from bandit.posterior import QUALITY, TOKENS
from bandit.types import Context, FloatArray, Price

__all__ = ["Experience", "warm_start"]

_RATIOS = 512  # a bound rests on the later half of what an arm did, and on 256 at most
_MULTIPLIER_CONTEXTS = 300  # of those given, evenly picked: enough to know the mean cost to a few per cent
_MULTIPLIER_STEPS = 30
_LARGEST_MULTIPLIER = 10.0  # ten times the whole range of quality for one average budget


@dataclass(frozen=True, slots=True)
class Experience:
    """What one arm did, each of shape (n,), NaN where it was not measured: quality in [0, 1], tokens, USD, seconds."""

    quality: FloatArray
    output_tokens: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray


def warm_start(
    pool: Pool,
    contexts: Sequence[Context],
    experience: Mapping[str, Experience],
    *,
    effective_samples: float | None = None,
) -> None:
    """Teach a pool that has learned nothing yet what its arms (by name) did in n contexts; the others keep their prior.

    Every head of an arm counts for at most `effective_samples` N observations afterwards (None: for as many as there
    were), so that a wrong start is outweighed by an arm's own calls after N of them, and faster where drift is
    detected. Whether slopes are used is decided on the full data, before it is weakened. A budget's multiplier starts
    where the warmed policy is expected to spend the budget. Raises InvalidInput for contexts of other features.
    """
    if not contexts:
        raise InvalidInput("contexts", "there is nothing to start from")
    if any(context.version != pool.features.version for context in contexts):
        raise InvalidInput("contexts", f"must be made by the pool's features, {pool.features.version}")
    x = np.stack([context.x for context in contexts]).astype(np.float64)
    input_tokens = np.array([context.input_tokens for context in contexts], dtype=np.float64)
    lessons = [
        (head, arm, x[known], values[known])
        for arm in range(len(pool.arms))
        for head, values in _head_values(experience.get(pool.names[arm]), pool.arms[arm].price, input_tokens).items()
        if (known := ~np.isnan(values)).any()
    ]
    for head, arm, rows, values in lessons:
        pool.heads.absorb(head, arm, rows, values, pool.step)
    pool.heads.consider_slopes(pool.step)
    _observe_bounds(pool, contexts[-_RATIOS:], experience)
    if effective_samples is not None:
        pool.heads.weaken(effective_samples, pool.step)
    if pool.pacer is not None:
        _price_budget(pool, pool.pacer, contexts)


def _head_values(seen: Experience | None, price: Price | None, input_tokens: FloatArray) -> dict[int, FloatArray]:
    """What the heads learn, by head; a cost without a token count is counted in output tokens."""
    if seen is None:
        return {}
    tokens = seen.output_tokens
    billed = [
        None if np.isnan(cost) else billed_tokens(cost, price, n)
        for cost, n in zip(seen.cost_usd, input_tokens, strict=True)
    ]
    tokens = np.where(np.isnan(tokens), np.array(billed, dtype=np.float64), tokens)
    return {
        QUALITY: seen.quality,
        TOKENS: np.log1p(tokens),
        LATENCY_HEAD: np.log(np.maximum(seen.latency_s, SHORTEST_S)),
    }


def _observe_bounds(pool: Pool, contexts: Sequence[Context], experience: Mapping[str, Experience]) -> None:
    """Teach the bounds how far the latest outcomes went beyond what is expected now that all is learned."""
    for i, context in enumerate(contexts, -len(contexts)):
        expected = pool.utilities(context)
        for arm in range(len(pool.arms)):
            seen = experience.get(pool.names[arm])
            if seen is None:
                continue
            cost_usd, price = float(seen.cost_usd[i]), pool.arms[arm].price
            if isnan(cost_usd) and price is not None:
                cost_usd = price.cost_usd(context.input_tokens, float(seen.output_tokens[i]))
            for row, usual, realised in (
                (COST, expected.cost_usd[arm], cost_usd),
                (LATENCY, expected.latency_s[arm], seen.latency_s[i]),
            ):
                if realised > 0.0 and usual > 0.0:  # False for NaN
                    pool.bounds.observe(row, arm, log(realised) - log(usual))


def _price_budget(pool: Pool, pacer: Pacer, contexts: Sequence[Context]) -> None:
    """Find by bisection the multiplier at which the policy is expected to spend the budget; 0 where it never does.

    Where even the largest spends more, the least that comes within a thousandth of that.
    """
    picked = np.linspace(0, len(contexts) - 1, min(len(contexts), _MULTIPLIER_CONTEXTS)).astype(int)

    def spent(multiplier: float) -> float:
        pacer.multiplier = multiplier
        return float(np.mean([pool.expected_cost(contexts[i]) for i in picked]))

    low, high = 0.0, _LARGEST_MULTIPLIER
    budget = max(pacer.usd_per_request, 1.001 * spent(high))
    if spent(low) <= budget:
        return
    for _ in range(_MULTIPLIER_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if spent(middle) > budget else (low, middle)
    pacer.multiplier = high
