"""The composition root: the only place that constructs what lives as long as the service does.

Has the stores opened (`serving.opening`), rebuilds what was learned, puts the parts together, and takes them apart in
the opposite order. What is made of settings is one generation; a reload makes another, as a restart would, and puts it
in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import numpy as np

from serving.access.budget_desk import BudgetDesk
from serving.access.keys import KeyRing
from serving.access.ledger import refused
from serving.access.tiers import Tiers
from serving.access.usage import Usage
from serving.access.webhook import Webhooks
from serving.admin import AdminDesk
from serving.admin_keys import KeyDesk
from serving.admission import Admission
from serving.attempts import Means
from serving.benchmarks import BenchmarkDesk
from serving.config_source import ConfigSource
from serving.dashboard.feed import Feed, Views
from serving.dashboard.handlers import Dashboard
from serving.dashboard.live import Live
from serving.dashboard.why import Decisions
from serving.errors import ServiceError
from serving.feedback import FeedbackDesk, RewardItem
from serving.generation import (
    Generation,
    Lasting,
    Mind,
    Tokens,
    assumed_qualities,
    generators,
    mind_of,
    quality_metrics,
    tokens_of,
)
from serving.handlers import Handlers
from serving.history import History
from serving.housekeeping import housekeeping
from serving.http_server import listening
from serving.imputation import MissingFeedback
from serving.intake import Intake
from serving.interpreter import few_collections, loop_before_threads
from serving.learner import Learner
from serving.lifecycle import Life
from serving.log_export import LogExport
from serving.log_retention import LogRetention
from serving.matrix import Matrix
from serving.metrics import Metrics
from serving.opening import joined, opened
from serving.operator_desk import OperatorDesk
from serving.parts import Parts
from serving.reach import Reach
from serving.reload import Reloader
from serving.routing import Routing
from serving.schedule import Schedule
from serving.settings import Settings
from serving.store import Store, StoreError
from serving.telemetry.requests import request_middleware
from serving.telemetry.tracing import open_tracing
from serving.traffic.caching import Caching
from serving.traffic.drain import Drain
from serving.traffic.faults import Faults
from serving.traffic.gate import Gate
from serving.traffic.pool_desk import PoolDesk
from serving.traffic.sessions import installation_key
from serving.traffic.shadow import Shadows
from serving.traffic.state import Traffic
from serving.traffic.steering import Steering
from serving.upstream import Upstreams
from serving.workers.meeting import meet
from serving.workers.news import BreakerNews

__all__ = ["run"]

_log = logging.getLogger("pointsman")
_LINGER_S = 10.0  # that a reader of tokens stays after a reload: somebody may wait for a key set of its own


async def run(settings: Settings, source: ConfigSource, digest: str, echo: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, and read `source` again at SIGHUP; `echo` is told where.

    `settings` are what `source` said when its digest was `digest`. Calls under way end as `serving.lifecycle` says.
    """
    life, again = Life(settings.server), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, life.ask)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    async with contextlib.AsyncExitStack() as stack:
        mind = mind_of(settings)
        lasting = await _lasting(settings, mind, life, stack)
        parts = lasting.opened
        await joined(parts, lasting.learner, life, stack)
        service = _Service(lasting, _generation(lasting, settings, mind, await tokens_of(settings, None), None))
        stack.push_async_callback(service.close)
        lasting.show(service.now)
        reloader = Reloader(source, settings, digest, service.apply, lasting.learner, lasting.metrics, again)
        await meet(lasting, reloader, stack)
        handlers = service.handlers = Handlers(service.now.parts, life, reloader.reload)
        service.now.parts.dashboard.decisions.preload()
        if parts.first:
            _beside(stack, lasting.log.run(settings.log.flush_interval_s))
            _beside(stack, lasting.retention.run())
        await service.tick()
        _beside(stack, service.keep_house())
        _beside(stack, lasting.feed.run())
        around = await _around(settings, lasting.metrics, stack)
        heard = listening(
            handlers.routes(),
            lasting.metrics,
            settings.server,
            life,
            around=around,
            close_feeds=lasting.feed.close,
            reuse_port=parts.told is not None,
        )
        service.address = await stack.enter_async_context(heard)
        life.ready = True
        stack.enter_context(few_collections())
        stack.enter_context(loop_before_threads())
        _beside(stack, reloader.run())
        if parts.first:
            service.plan_suites()
        for warning in settings.warnings:
            _log.warning("%s: %s", warning.path, warning.message)
        echo(f"pointsman serves {', '.join(p.name for p in settings.pools)} at http://{service.address}")
        await life.asked()
        echo("stopping")


class _Service:
    """The generation of now, and those before it whose last calls are under way."""

    def __init__(self, lasting: Lasting, now: Generation) -> None:
        self.now, self.address = now, ""
        self.handlers: Handlers | None = None
        self._lasting = lasting
        self._retiring: dict[asyncio.Task[None], Generation] = {}
        self._suites: tuple[object, asyncio.Task[None]] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def apply(self, settings: Settings) -> None:
        """Make `settings` the ones in force, in one step of the event loop; where that fails nothing has changed."""
        lasting, before = self._lasting, self.now
        mind = await asyncio.to_thread(mind_of, settings)
        tokens = await tokens_of(settings, before)
        try:
            lasting.learner.teach(mind.pools, mind.roster, (mind.traffic,))
            made = _generation(lasting, settings, mind, tokens, before)
        except BaseException:
            if tokens is not before.tokens:
                await tokens.opened.aclose()
            raise
        fresh = generators(settings, before.settings, lasting.opened.index)
        lasting.learner.adopt(mind.pools, fresh, mind.roster, (mind.traffic,))
        lasting.configure(settings, before.settings)
        lasting.show(made)
        if self.handlers is not None:
            self.handlers.use(made.parts)
        self.now = made
        task = asyncio.create_task(self._retired(before, made))
        self._retiring[task] = before
        task.add_done_callback(lambda done: self._retiring.pop(done, None))
        if lasting.opened.first:
            self.plan_suites()
        for warning in settings.warnings:
            _log.warning("%s: %s", warning.path, warning.message)
        try:  # a snapshot, so that after a crash nothing from before is learned again by the new settings
            if lasting.learner.leads:
                await asyncio.gather(lasting.learner.snapshot(), self.tick())
        except (StoreError, ServiceError) as error:
            _log.error("no snapshot after the reload: %s", error)

    async def tick(self) -> None:
        """Start what the configuration asks for, such as a canary."""
        if self._lasting.learner.leads and (rows := self.now.traffic.tick(time.time())):
            await self._lasting.learner.change(rows)

    async def keep_house(self) -> None:
        """See to what comes up, until cancelled."""
        kept = self._lasting
        await housekeeping(kept.learner, kept.store, kept.log, lambda: self.now.missing, lambda: self.now.traffic)

    def plan_suites(self) -> None:
        """Run the suites of the configuration; those that are the same as before go on."""
        settings, auth = self.now.settings, self.now.settings.auth
        wanted = (settings.benchmarks, None if auth is None else auth.admin_key)
        if self._suites is not None and self._suites[0] == wanted:
            return
        if self._suites is not None:
            self._ending.add(old := self._suites[1])
            old.add_done_callback(self._ending.discard)
            old.cancel()
        schedule = Schedule.of(settings, self._lasting.log, self._lasting.metrics, self.address)
        self._suites = (wanted, asyncio.create_task(schedule.run()))

    async def close(self) -> None:
        """Close every generation; calls under way are over by now."""
        tasks = [*self._retiring, *self._ending, *(() if self._suites is None else (self._suites[1],))]
        generations = [*self._retiring.values(), self.now]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for generation in generations:
            await generation.close()
            await generation.tokens.opened.aclose()

    async def _retired(self, before: Generation, after: Generation) -> None:
        """Close what the generation before has alone, once its last call has ended.

        What remains of it is not looked for by the collector: a whole collection stops all calls for 0.1 s.
        """
        await before.close(when_unused=True)
        if before.tokens is not after.tokens:
            await asyncio.sleep(_LINGER_S)
            await before.tokens.opened.aclose()


# --- putting together


async def _lasting(settings: Settings, mind: Mind, life: Life, stack: contextlib.AsyncExitStack) -> Lasting:
    """The stores opened, and what was learned rebuilt from them."""
    server = settings.server
    server.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    metrics, live, found = Metrics(), Live(mind.pools), await opened(settings, stack)
    store, log, ledger = found.store, found.log, found.ledger
    ring = KeyRing(settings.auth.keys if settings.auth is not None else ())
    learner = Learner(
        mind.pools,
        generators(settings, None, found.index),
        store,
        metrics,
        cache_decisions=settings.store.cache_decisions,
        snapshot_every_events=settings.store.snapshot_every_events,
        roster=mind.roster,
        folds=(ring, mind.traffic, ledger, live),
        witness=live.witness,
        booked=found.booked,
    )
    started = time.perf_counter()
    replayed = learner.recover()
    _log.info("replayed %d events in %.2f s", replayed, time.perf_counter() - started)
    stack.push_async_callback(_last_snapshot, learner, store)
    retention = LogRetention(log, learner, unforeseen=metrics.unexpected.inc)
    retention.configure(settings.log.retention_days, server.feedback_horizon_s)
    session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
    webhooks = Webhooks(session, settings.metering)  # no connection is made before a budget tells something
    _beside(stack, webhooks.run())
    # What is booked is seen by all that share the store, and told by the one that leads; a refusal, by who refuses.
    ledger.notify = lambda entry, notice: webhooks.put(entry, notice) if learner.leads or refused(notice) else None
    gate = Gate(settings.overload, clock=time.perf_counter, rng=random.Random(), shed=metrics.count_shed)
    stack.callback(gate.close)
    return Lasting(
        opened=found,
        news=None if found.shared is None else BreakerNews(found.shared.publish),
        life=life,
        metrics=metrics,
        store=store,
        log=log,
        retention=retention,
        learner=learner,
        live=live,
        feed=Feed(settings.dashboard.max_listeners, metrics.unexpected.inc),
        drain=Drain(learner, lambda: gate.in_use),
        faults=Faults(settings.faults, learner, count=metrics.count_fault, clock=time.monotonic, now=time.time()),
        ring=ring,
        ledger=ledger,
        gate=gate,
        rates=found.rates,
        webhooks=webhooks,
        desk=FeedbackDesk(learner, quality_metrics(settings), server.feedback_horizon_s),
        benchmarks=BenchmarkDesk(learner, store, metrics),
        matrix=Matrix(learner, log),
        export=LogExport(log, server.data_dir, index=found.index),
        session_key=installation_key(server.data_dir / "session.key"),
        secret=secrets.token_bytes(32),
    )


def _generation(
    lasting: Lasting, settings: Settings, mind: Mind, tokens: Tokens, before: Generation | None
) -> Generation:
    """The parts of `settings` over those that last; nothing of the service goes by them yet."""
    learner, metrics, traffic, server = lasting.learner, lasting.metrics, mind.traffic, settings.server
    reach = Reach(settings.endpoints, private=server.private_upstreams)
    upstreams = Upstreams(
        mind.roster.models,
        server.max_response_bytes,
        spared=metrics.count_spared,
        moved=None if lasting.news is None else lasting.news.moved,
        reach=reach,
        before=None if before is None else before.upstreams,
    )
    tiers = Tiers(settings.tiers, lasting.ring.allowed)
    assumed, life = settings.metering.assumed_output_tokens, lasting.life
    faults = lasting.faults if settings.faults.enabled else None
    means = Means(learner, upstreams, lasting.ledger, random.Random(), assumed, lambda: life.over, faults)
    steering = Steering(learner, traffic, upstreams, lasting.session_key, np.random.default_rng())
    failures = {pool.name: pool.failures for pool in settings.pools if pool.failures is not None}
    routing = Routing(means, steering, failures, settings.failures, traffic.usable)
    caching = Caching(
        routing,
        learner,
        traffic,
        {pool.name: pool.cache for pool in settings.pools if pool.cache is not None},
        labels=steering.labels,
        metrics=metrics,
        secret=lasting.secret,
        clock=time.monotonic,
        before=None if before is None else before.caching,
    )
    shadows = _shadows(lasting, traffic, routing)
    breakers = functools.partial(_breakers, upstreams)
    pools, budgets = PoolDesk(learner, traffic, breakers), BudgetDesk(lasting.ledger, learner)
    decisions = Decisions(lasting.live, learner, lasting.store, server.feedback_horizon_s)
    parts = Parts(
        server=server,
        admission=Admission(
            settings.auth, lasting.ring, tiers, tokens=tokens.reader, clock=time.time, hosts=server.allowed_hosts
        ),
        routing=routing,
        desk=lasting.desk,
        admin=AdminDesk(learner, upstreams, os.environ, reach),
        keys=KeyDesk(
            settings.auth, settings.tiers, lasting.ring, learner, known=lambda: routing.names, clock=time.time
        ),
        tiers=tiers,
        benchmarks=lasting.benchmarks,
        matrix=lasting.matrix,
        export=lasting.export,
        pools=pools,
        budgets=budgets,
        usage=Usage(lasting.log, lasting.store, most_rows=settings.metering.usage_rows),
        dashboard=Dashboard(lasting.live, lasting.feed, decisions, open=settings.auth is None),
        history=History(lasting.log, lasting.store),
        operator=OperatorDesk(lambda: settings, learner, traffic, lasting.ledger),
        drain=lasting.drain,
        faults=lasting.faults,
        learner=learner,
        metrics=metrics,
        intake=Intake(lasting.gate, lasting.rates, lasting.ledger, shadows, caching),
    )
    missing = MissingFeedback(
        assumed_qualities(settings), lasting.desk, learner, lasting.store, server.feedback_horizon_s
    )
    views = Views(lasting.live, learner, pools, budgets, breakers)
    return Generation(settings, parts, traffic, missing, upstreams, shadows, caching, tokens, views)


async def _around(settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack) -> Any:
    """The outermost middleware, with tracing where the settings have it."""
    tracing = await stack.enter_async_context(open_tracing(settings.tracing, metrics.traced))
    return request_middleware(tracing, access=settings.logging.access, rng=random.Random())


def _shadows(lasting: Lasting, traffic: Traffic, routing: Routing) -> Shadows:
    async def grade(decision_id: str, values: dict[str, float]) -> None:
        await lasting.desk.accept(RewardItem(decision_id=decision_id, metrics=values), time.time())

    perform = functools.partial(routing.perform, fallbacks=False)
    return Shadows(lasting.learner, traffic, perform=perform, grade=grade, rng=np.random.default_rng())


def _breakers(upstreams: Upstreams, model: str) -> dict[str, str]:
    return dict(upstreams[model].states(time.monotonic())) if model in upstreams else {}


async def _last_snapshot(learner: Learner, store: Store) -> None:
    if store.healthy and learner.leads:
        await learner.snapshot()


def _beside(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Have it done while the service runs."""
    stack.push_async_callback(_cancel, asyncio.create_task(work))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
