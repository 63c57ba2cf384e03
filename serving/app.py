"""The composition root: the only place that constructs what lives as long as the service does.

Opens the stores, rebuilds what was learned, puts the parts together, and takes them apart in the opposite order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web

from serving.access.budget_desk import BudgetDesk
from serving.access.keys import KeyRing
from serving.access.ledger import Ledger
from serving.access.rates import Rates
from serving.access.tiers import Tiers
from serving.access.tokens import token_reader
from serving.access.usage import Usage
from serving.access.webhook import Webhooks
from serving.admin import AdminDesk
from serving.admin_keys import KeyDesk
from serving.admission import Admission
from serving.analytics import AnalyticalLog
from serving.attempts import Means
from serving.benchmarks import BenchmarkDesk
from serving.dashboard.feed import Feed, Views
from serving.dashboard.handlers import Dashboard
from serving.dashboard.live import Live
from serving.dashboard.why import Decisions
from serving.feedback import FeedbackDesk, RewardItem
from serving.handlers import Handlers
from serving.history import History
from serving.http_errors import error_middleware, without_request_bytes
from serving.imputation import MissingFeedback
from serving.intake import Intake
from serving.learner import Learner
from serving.log_export import LogExport
from serving.matrix import Matrix
from serving.metrics import Metrics
from serving.operator_desk import OperatorDesk
from serving.pools import start_pool
from serving.roster import Roster
from serving.routing import Routing
from serving.schedule import Schedule
from serving.settings import ServerSettings, Settings
from serving.sqlite_store import SqliteStore
from serving.store import StoreError
from serving.telemetry.requests import name_request, request_middleware
from serving.telemetry.tracing import open_tracing
from serving.traffic.caching import Caching
from serving.traffic.canaries import Canary
from serving.traffic.drain import Drain
from serving.traffic.gate import Gate
from serving.traffic.pool_desk import PoolDesk
from serving.traffic.sessions import installation_key
from serving.traffic.shadow import Shadows
from serving.traffic.state import Traffic
from serving.traffic.steering import Steering
from serving.upstream import Upstreams
from serving.warmstart import read_warm_starts

__all__ = ["run", "serve"]

_log = logging.getLogger("pointsman")
_HOUSEKEEPING_S = 5.0
_PRUNE_BATCH = 1_000
_KEEPALIVE_S = 75.0


@contextlib.asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[str]:
    """The running service; yields its base URL. On leaving, calls under way get `shutdown_grace_s` to finish."""
    server = settings.server
    server.data_dir.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics()
        metrics.objectives.follow({pool.name: pool.slo for pool in settings.pools})
        store = _store(settings)
        stack.push_async_callback(store.close)
        log = AnalyticalLog(server.data_dir / "log.duckdb", store, batch_events=settings.log.batch_rows)
        stack.push_async_callback(log.close)
        learned = _learned(settings, store, metrics)
        learner, traffic, ledger = learned.learner, learned.traffic, learned.ledger
        stack.push_async_callback(_last_snapshot, learner, store)
        upstreams = await stack.enter_async_context(
            Upstreams(learner.roster.models, server.max_response_bytes, spared=metrics.count_spared)
        )
        desk = _feedback_desk(settings, learner)
        tokens = await stack.enter_async_context(token_reader(settings.auth))
        admission = Admission(settings.auth, learned.ring, learned.tiers, tokens=tokens, clock=time.time)
        means = Means(learner, upstreams, ledger, random.Random(), settings.metering.assumed_output_tokens)
        steering = Steering(
            learner, traffic, upstreams, installation_key(server.data_dir / "session.key"), np.random.default_rng()
        )
        routing = _routing(settings, means, steering, traffic)
        breakers = functools.partial(_breakers, upstreams)
        pool_desk, budget_desk = PoolDesk(learner, traffic, breakers), BudgetDesk(ledger, learner)
        dashboard = _dashboard(settings, learned, Views(learned.live, learner, pool_desk, budget_desk, breakers), store)
        webhooks = await stack.enter_async_context(_webhooks(settings))
        ledger.notify = webhooks.put
        intake = _intake(settings, learned, routing, desk, steering=steering, metrics=metrics, stack=stack)
        handlers = Handlers(
            server,
            admission,
            routing,
            desk,
            admin=AdminDesk(learner, upstreams, os.environ),
            keys=_key_desk(settings, learned, lambda: routing.names),
            tiers=learned.tiers,
            benchmarks=BenchmarkDesk(learner, store, metrics),
            matrix=Matrix(learner, log),
            export=LogExport(log, server.data_dir),
            pools=pool_desk,
            budgets=budget_desk,
            usage=Usage(log, store, most_rows=settings.metering.usage_rows),
            dashboard=dashboard,
            operator=OperatorDesk(lambda: settings, learner, traffic, ledger),
            history=History(log, store),
            drain=Drain(learner, lambda: intake.gate.in_use),
            learner=learner,
            metrics=metrics,
            intake=intake,
        )
        metrics.state.watch(traffic, ledger, upstreams, store=store, store_limit=settings.store.queue_limit, log=log)
        _beside(stack, log.run(settings.log.flush_interval_s))
        missing = MissingFeedback(_assumed(settings), desk, learner, store, server.feedback_horizon_s)
        await _settled(traffic, learner)
        _beside(stack, _housekeeping(learned, store, log, missing, server.feedback_horizon_s))
        _beside(stack, dashboard.feed.run())
        around = await _around(settings, metrics, stack)
        address = await stack.enter_async_context(_listening(handlers, metrics, server, dashboard.feed, around))
        handlers.ready = True
        stack.enter_context(_few_collections())
        if settings.benchmarks:
            _beside(stack, _schedule(settings, log, metrics, address).run())
        _warn(settings)
        yield f"http://{address}"
        handlers.ready = False


async def _around(settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack) -> Any:
    """The outermost middleware, with tracing where the settings have it."""
    tracing = await stack.enter_async_context(open_tracing(settings.tracing, metrics.traced))
    return request_middleware(tracing, access=settings.logging.access, rng=random.Random())


def _beside(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Do it beside the calls, until the stack is left."""
    stack.push_async_callback(_cancel, asyncio.create_task(work))


def _warn(settings: Settings) -> None:
    for warning in settings.warnings:
        _log.warning("%s: %s", warning.path, warning.message)


def _routing(settings: Settings, means: Means, steering: Steering, traffic: Traffic) -> Routing:
    failures = {pool.name: pool.failures for pool in settings.pools if pool.failures is not None}
    return Routing(means, steering, failures, settings.failures, traffic.usable)


def _feedback_desk(settings: Settings, learner: Learner) -> FeedbackDesk:
    metrics_of = {pool.name: pool.quality_metrics or {} for pool in settings.pools}
    return FeedbackDesk(learner, metrics_of, settings.server.feedback_horizon_s)


@dataclass(frozen=True, slots=True)
class _Learned:
    """All that is rebuilt from the log, and who may use what."""

    learner: Learner
    ring: KeyRing
    tiers: Tiers
    traffic: Traffic
    ledger: Ledger
    live: Live


def _store(settings: Settings) -> SqliteStore:
    path, chosen = settings.server.data_dir / "router.sqlite", settings.store
    return SqliteStore(path, synchronous=chosen.synchronous, queue_limit=chosen.queue_limit)


def _learned(settings: Settings, store: SqliteStore, metrics: Metrics) -> _Learned:
    """The learner and the folds beside it, as the log says."""
    starts = read_warm_starts(settings.server.data_dir)
    pools = {pool.name: start_pool(pool, settings, starts.get(pool.name)) for pool in settings.pools}
    ring = KeyRing(settings.auth.keys if settings.auth is not None else ())
    traffic = Traffic(settings.pools, {pool.name: Canary(pools[pool.name], pool.canary) for pool in settings.pools})
    ledger = Ledger(settings.budgets, max_counters=settings.metering.max_counters)
    live = Live(pools)
    learner = Learner(
        pools,
        {pool.name: np.random.default_rng(pool.policy.seed) for pool in settings.pools},
        store,
        metrics,
        cache_decisions=settings.store.cache_decisions,
        snapshot_every_events=settings.store.snapshot_every_events,
        roster=Roster(settings.models, {pool.name: pool.models for pool in settings.pools}, os.environ),
        folds=(ring, traffic, ledger, live),
        witness=live.witness,
    )
    started = time.perf_counter()
    replayed = learner.recover()
    _log.info("replayed %d events in %.2f s", replayed, time.perf_counter() - started)
    return _Learned(learner, ring, Tiers(settings.tiers, ring.allowed), traffic, ledger, live)


def _intake(
    settings: Settings,
    learned: _Learned,
    routing: Routing,
    desk: FeedbackDesk,
    *,
    steering: Steering,
    metrics: Metrics,
    stack: contextlib.AsyncExitStack,
) -> Intake:
    """What a call passes before it is routed, and what goes on beside it."""
    gate = Gate(settings.overload, clock=time.perf_counter, rng=random.Random(), shed=metrics.count_shed)
    stack.callback(gate.close)

    async def grade(decision_id: str, values: dict[str, float]) -> None:
        await desk.accept(RewardItem(decision_id=decision_id, metrics=values), time.time())

    perform = functools.partial(routing.perform, fallbacks=False)
    shadows = Shadows(learned.learner, learned.traffic, perform=perform, grade=grade, rng=np.random.default_rng())
    stack.push_async_callback(shadows.close)
    rates = Rates(settings.limits, max_counters=settings.metering.max_counters)
    caching = Caching(
        routing,
        learned.learner,
        learned.traffic,
        {pool.name: pool.cache for pool in settings.pools if pool.cache is not None},
        labels=steering.labels,
        metrics=metrics,
        secret=secrets.token_bytes(32),
        clock=time.monotonic,
    )
    metrics.state.gate, metrics.state.shadows, metrics.state.caching = gate, shadows, caching
    return Intake(gate, rates, learned.ledger, shadows, caching)


def _key_desk(settings: Settings, learned: _Learned, known: Callable[[], Collection[str]]) -> KeyDesk:
    return KeyDesk(settings.auth, settings.tiers, learned.ring, learned.learner, known=known, clock=time.time)


def _dashboard(settings: Settings, learned: _Learned, views: Views, store: SqliteStore) -> Dashboard:
    """The page's parts, with the last decisions of an earlier life."""
    decisions = Decisions(learned.live, learned.learner, store, settings.server.feedback_horizon_s)
    decisions.preload()
    feed = Feed(views, settings.dashboard.max_listeners)
    return Dashboard(learned.live, feed, decisions, open=settings.auth is None)


@contextlib.asynccontextmanager
async def _webhooks(settings: Settings) -> AsyncIterator[Webhooks]:
    """Deliver what budgets tell; no connection is made before one does."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        webhooks = Webhooks(session, settings.metering)
        delivery = asyncio.create_task(webhooks.run())
        try:
            yield webhooks
        finally:
            await _cancel(delivery)


def _breakers(upstreams: Upstreams, model: str) -> dict[str, str]:
    return dict(upstreams[model].states(time.monotonic())) if model in upstreams else {}


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """What was made so far lives as long as the process: no collection need look at it again.

    Calls make few cycles, and the default threshold would walk every cached decision several times a second.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def _schedule(settings: Settings, log: AnalyticalLog, metrics: Metrics, address: str) -> Schedule:
    """The runs of suites; their processes reach a service that listens everywhere on this machine's own address."""
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - it is left, not listened on
    key = None if settings.auth is None else settings.auth.admin_key
    secret = None if key is None else key.get_secret_value()
    url, folder = f"http://{host}:{port}", settings.server.data_dir
    return Schedule(settings.benchmarks, log, metrics, url=url, admin_key=secret, folder=folder)


@contextlib.asynccontextmanager
async def _listening(
    handlers: Handlers, metrics: Metrics, server: ServerSettings, feed: Feed, around: Any
) -> AsyncIterator[str]:
    """The HTTP server, with the middleware `around` all others; yields host:port."""

    async def let_go(_: web.Application) -> None:
        feed.close()  # a listener never ends by itself

    app = web.Application(
        client_max_size=server.max_body_bytes, middlewares=[around, error_middleware(metrics, server.max_body_bytes)]
    )
    app.add_routes(handlers.routes())
    app.on_shutdown.append(let_go)
    app.on_response_prepare.append(name_request)
    logging.getLogger("aiohttp.server").addFilter(without_request_bytes)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a caller who goes away cancels the upstream call
        auto_decompress=False,  # no body may grow while it is read
        access_log=None,
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=server.shutdown_grace_s,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, server.host, server.port).start()
        port = runner.addresses[0][1]
        yield f"[{server.host}]:{port}" if ":" in server.host else f"{server.host}:{port}"
    finally:
        await runner.cleanup()


async def run(settings: Settings, echo: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `echo` is told where."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serve(settings) as url:
        echo(f"pointsman serves {', '.join(p.name for p in settings.pools)} at {url}")
        await stop.wait()
        echo("stopping")


def _assumed(settings: Settings) -> dict[str, tuple[float, float]]:
    """By pool: the quality to assume for a call without feedback, and after how many seconds."""
    return {
        pool.name: (pool.feedback.missing, pool.feedback.wait_s)
        for pool in settings.pools
        if pool.feedback.missing != "ignore"
    }


async def _settled(traffic: Traffic, learner: Learner) -> None:
    """See to what has come due while the service was down."""
    if rows := traffic.tick(time.time()):
        await learner.change(rows)


async def _housekeeping(
    learned: _Learned, store: SqliteStore, log: AnalyticalLog, missing: MissingFeedback, horizon_s: float
) -> None:
    """See to canaries and missing feedback; drop events past its horizon that the log and a snapshot hold."""
    learner = learned.learner
    while True:
        await asyncio.sleep(_HOUSEKEEPING_S)
        up_to_seq = min(learner.snapshot_position, log.position)
        # Feedback that came since the snapshot speaks of decisions made since a horizon before it: a replay needs them.
        before_ts = learner.snapshot_ts - horizon_s
        try:
            await missing.run(time.time())
            if rows := learned.traffic.tick(time.time()):
                await learner.change(rows)
            while await store.prune(before_ts, up_to_seq, _PRUNE_BATCH) == _PRUNE_BATCH:
                await asyncio.sleep(0)
        except StoreError as error:  # the service is unready from here on; there is nothing more to keep tidy
            _log.error("old events stay: %s", error)
            return


async def _last_snapshot(learner: Learner, store: SqliteStore) -> None:
    if store.healthy:
        await learner.snapshot()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
