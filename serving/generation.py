"""What one configuration is made into, and what outlives it: the kinds of things that a reload replaces and keeps.

A reload is a restart that keeps the port: pools, roster and traffic are made anew and take over what was learned as
they would at a start; what counts or is under way stays, and is told the new settings. `app` makes and swaps them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bandit.pool import Pool
from serving.access.jwt import TokenReader
from serving.access.tokens import token_reader
from serving.pools import start_pool
from serving.roster import Roster
from serving.settings import Settings
from serving.traffic.canaries import Canary
from serving.traffic.state import Traffic
from serving.warmstart import read_warm_starts

if TYPE_CHECKING:
    from serving.access.keys import KeyRing
    from serving.access.ledger import Ledger
    from serving.access.rates import Rates
    from serving.access.webhook import Webhooks
    from serving.analytics import AnalyticalLog
    from serving.benchmarks import BenchmarkDesk
    from serving.dashboard.feed import Feed, Views
    from serving.dashboard.live import Live
    from serving.feedback import FeedbackDesk
    from serving.imputation import MissingFeedback
    from serving.learner import Learner
    from serving.lifecycle import Life
    from serving.log_export import LogExport
    from serving.log_retention import LogRetention
    from serving.matrix import Matrix
    from serving.metrics import Metrics
    from serving.opening import Opened
    from serving.parts import Parts
    from serving.store import Store
    from serving.traffic.caching import Caching
    from serving.traffic.drain import Drain
    from serving.traffic.faults import Faults
    from serving.traffic.gate import Gate
    from serving.traffic.shadow import Shadows
    from serving.upstream import Upstreams
    from serving.workers.news import BreakerNews

__all__ = [
    "Generation",
    "Lasting",
    "Mind",
    "Tokens",
    "assumed_qualities",
    "generators",
    "mind_of",
    "quality_metrics",
    "tokens_of",
]


@dataclass(frozen=True, slots=True)
class Lasting:
    """One of each for the life of the process. What they need of the settings, a reload tells them."""

    opened: Opened
    news: BreakerNews | None
    life: Life
    metrics: Metrics
    store: Store
    log: AnalyticalLog
    retention: LogRetention
    learner: Learner
    live: Live
    feed: Feed
    drain: Drain
    faults: Faults
    ring: KeyRing
    ledger: Ledger
    gate: Gate
    rates: Rates
    webhooks: Webhooks
    desk: FeedbackDesk
    benchmarks: BenchmarkDesk
    matrix: Matrix
    export: LogExport
    session_key: bytes
    secret: bytes

    def configure(self, settings: Settings, before: Settings) -> None:
        """Go by other settings from now on; what is under way and what was counted stays."""
        counters = settings.metering.max_counters
        self.learner.configure(
            cache_decisions=settings.store.cache_decisions, snapshot_every_events=settings.store.snapshot_every_events
        )
        self.live.follow(pool.name for pool in settings.pools)
        self.ring.configure(settings.auth.keys if settings.auth is not None else ())
        self.ledger.configure(settings.budgets, max_counters=counters)
        self.rates.configure(settings.limits, max_counters=counters)
        if settings.overload != before.overload:
            self.gate.configure(settings.overload)
        if settings.faults != before.faults:
            self.faults.configure(settings.faults, time.time())
        self.desk.configure(quality_metrics(settings), settings.server.feedback_horizon_s)
        self.retention.configure(settings.log.retention_days, settings.server.feedback_horizon_s)
        self.webhooks.settings, self.life.server = settings.metering, settings.server

    def show(self, generation: Generation) -> None:
        """Have metrics and dashboards show these parts from now on."""
        settings, state = generation.settings, self.metrics.state
        self.metrics.objectives.follow({pool.name: pool.slo for pool in settings.pools})
        self.feed.show(generation.views, settings.dashboard.max_listeners)
        limit = settings.store.queue_limit
        state.watch(
            generation.traffic, self.ledger, generation.upstreams, store=self.store, store_limit=limit, log=self.log
        )
        self.faults.upstreams = generation.upstreams
        if self.news is not None:
            self.news.upstreams = generation.upstreams
        state.retention = self.retention
        state.gate, state.shadows, state.caching = self.gate, generation.shadows, generation.caching


@dataclass(frozen=True, slots=True)
class Mind:
    """What learns, as a configuration has it before anything is learned."""

    pools: dict[str, Pool]
    roster: Roster
    traffic: Traffic


def mind_of(settings: Settings) -> Mind:
    """What learns by these settings; it knows what its warm start says. May take a while, and belongs to no thread."""
    starts = read_warm_starts(settings.server.data_dir)
    pools = {pool.name: start_pool(pool, settings, starts.get(pool.name)) for pool in settings.pools}
    roster = Roster(settings.models, {pool.name: pool.models for pool in settings.pools}, os.environ)
    canaries = {pool.name: Canary(pools[pool.name], pool.canary) for pool in settings.pools}
    return Mind(pools, roster, Traffic(settings.pools, canaries))


def generators(settings: Settings, before: Settings | None, worker: int = 0) -> dict[str, np.random.Generator]:
    """Of the pools that have none yet, or another seed: a seed begins its draws once.

    Of several workers the first draws as a process alone does, and each other has a stream of its own.
    """
    seeds = {} if before is None else {pool.name: pool.policy.seed for pool in before.pools}
    return {
        pool.name: _generator(pool.policy.seed, worker)
        for pool in settings.pools
        if pool.name not in seeds or seeds[pool.name] != pool.policy.seed
    }


def _generator(seed: int | None, worker: int) -> np.random.Generator:
    if seed is None or worker == 0:
        return np.random.default_rng(seed)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(worker,)))


@dataclass(frozen=True, slots=True)
class Tokens:
    """The reader of tokens and what it has open."""

    reader: TokenReader | None
    opened: contextlib.AsyncExitStack


async def tokens_of(settings: Settings, before: Generation | None) -> Tokens:
    """The one of before, where nothing about tokens differs."""
    jwt = None if settings.auth is None else settings.auth.jwt
    if before is not None:
        auth = before.settings.auth
        if jwt == (None if auth is None else auth.jwt):
            return before.tokens
    opened = contextlib.AsyncExitStack()
    return Tokens(await opened.enter_async_context(token_reader(settings.auth)), opened)


@dataclass(frozen=True, slots=True)
class Generation:
    """All that one configuration is made into."""

    settings: Settings
    parts: Parts
    traffic: Traffic
    missing: MissingFeedback
    upstreams: Upstreams
    shadows: Shadows
    caching: Caching
    tokens: Tokens
    views: Views

    async def close(self, *, when_unused: bool = False) -> None:
        """Close its endpoints; with `when_unused` once the last call that it decided has ended."""
        await self.shadows.close(when_idle=when_unused)
        await self.upstreams.close(when_unused=when_unused)


def quality_metrics(settings: Settings) -> dict[str, Mapping[str, float]]:
    """By pool: what makes a quality of posted metrics."""
    return {pool.name: pool.quality_metrics or {} for pool in settings.pools}


def assumed_qualities(settings: Settings) -> dict[str, tuple[float, float]]:
    """By pool: the quality to assume for a call without feedback, and after how many seconds."""
    return {
        pool.name: (pool.feedback.missing, pool.feedback.wait_s)
        for pool in settings.pools
        if pool.feedback.missing != "ignore"
    }
