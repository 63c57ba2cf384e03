"""From a pool's settings to the library's pool.

The only place that knows which class stands behind which name in the configuration. Makes no clock, file or socket.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

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
from bandit.errors import SnapshotMismatch
from bandit.features import Features
from bandit.policy import Policy
from bandit.pool import Pool
from bandit.thompson import Thompson
from serving.pool_settings import PoolSettings
from serving.settings import Settings
from serving.warmstart import WarmStart, disagreement

__all__ = ["build_pool", "plain_features", "start_pool"]

_log = logging.getLogger("pointsman.pools")


def build_pool(pool: PoolSettings, settings: Settings, features: Features | None = None) -> Pool:
    """The library's pool for a pool's settings, with `features` in place of the settings' own where given."""
    return Pool(
        pool.arms(settings.models),
        name=pool.name,
        objective=pool.to_objective(),
        constraints=pool.to_constraints(),
        policy=_policy(pool),
        features=plain_features(pool) if features is None else features,
        filters=pool.to_filter_settings(),
        usd_per_request=None if pool.budget is None else pool.budget.usd_per_request,
        half_life_requests=pool.policy.half_life_requests,
        slope_precision=pool.policy.slope_prior_precision,
        newcomers=pool.to_newcomers(),
    )


def start_pool(pool: PoolSettings, settings: Settings, start: WarmStart | None) -> Pool:
    """A pool as it starts: from its warm start, or cold where it has none or, with a warning, none that fits it."""
    if start is None:
        return build_pool(pool, settings)
    reason = disagreement(pool, start)
    if reason is not None:
        _log.warning("pool %s starts cold, because its warm start does not fit: %s", pool.name, reason)
        return build_pool(pool, settings)
    warm = build_pool(pool, settings, Features.from_state(start.features))
    try:
        warm.load(start.state)
    except SnapshotMismatch as error:
        _log.warning("pool %s starts cold, because its warm start does not fit: %s", pool.name, error)
        return build_pool(pool, settings)
    made = datetime.fromtimestamp(start.made_at, UTC).isoformat(timespec="seconds")
    _log.info("pool %s has a warm start of %s, made from %s", pool.name, made, start.source)
    return warm


def plain_features(pool: PoolSettings) -> Features:
    """The features of a pool's settings, with nothing fitted."""
    return Features(
        pool.features.categories,
        text=None if pool.features.text == "none" else pool.features.text,
        vector=pool.features.vector,
    )


def _policy(pool: PoolSettings) -> Policy:  # noqa: C901, PLR0911  one case for each kind, and mypy sees that none is left out
    policy, floor = pool.policy, pool.policy.exploration_floor
    match policy.kind:
        case "thompson" | "thompson_context_free":
            return Thompson(floor, policy.kind == "thompson", policy.exploration_scale)
        case "logistic_thompson":
            return LogisticThompson(floor, exploration_scale=policy.exploration_scale)
        case "linucb":
            return LinUCB(policy.alpha, floor)
        case "squarecb":
            return SquareCB(policy.gamma_scale, policy.gamma_exponent, floor)
        case "best_feasible":
            return BestFeasible(floor)
        case "weighted":
            return Weighted(tuple((policy.weights or {}).get(model, 0.0) for model in pool.models))
        case "uniform":
            return Uniform()
        case "fixed":
            return Fixed(pool.models.index(policy.model or ""))
        case "round_robin":
            return RoundRobin()
        case "epsilon_greedy":
            return EpsilonGreedy(policy.epsilon)
        case "ucb1":
            return UCB1()
