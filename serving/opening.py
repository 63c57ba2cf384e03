"""What a service keeps its state in, as the settings have it, and this process's part among those that share it.

A file of this process alone, or a server that several processes share. Of those one leads: it logs what events call
for, takes snapshots and keeps house; which one, a lease on the server says. Makes no part of the service that serves.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from serving.access.ledger import Ledger
from serving.access.rates import Rates
from serving.analytics import AnalyticalLog
from serving.sqlite_file import lock_file
from serving.sqlite_store import SqliteStore
from serving.store import StoreError
from serving.workers.told import Told, told_by

if TYPE_CHECKING:
    from bandit.types import Outcome
    from serving.learner import Learner
    from serving.lifecycle import Life
    from serving.records import Record
    from serving.settings import Settings
    from serving.store import Store
    from serving.valkey_store import ValkeyStore

__all__ = ["Opened", "joined", "opened"]

_log = logging.getLogger("pointsman")
_LEASE_S: Final = 5.0
_FILE: Final = "router.sqlite"
_LEADER: Final = "leader"
_LINGER_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Opened:
    """The stores, and what is counted of callers. `shared`: the operational store, where others append to it, too.

    `told`: which of several workers this is; `booked` is told of every outcome that was just appended.
    """

    store: Store
    shared: ValkeyStore | None
    log: AnalyticalLog
    ledger: Ledger
    rates: Rates
    told: Told | None
    booked: Callable[[Record, Outcome], None] | None

    @property
    def index(self) -> int:
        """Which worker this is, from 0."""
        return 0 if self.told is None else self.told.index

    @property
    def first(self) -> bool:
        """Whether this process does what one of a machine's does: fill its log, run suites."""
        return self.index == 0


async def opened(settings: Settings, stack: AsyncExitStack) -> Opened:
    """Open what the settings name; closed by `stack`. Raises StoreUnusable."""
    told, folder, counters = told_by(os.environ), settings.server.data_dir, settings.metering.max_counters
    first = told is None or told.index == 0
    if settings.store.url is not None and first:  # the file has a lock of its own; the first of several stands for all
        stack.callback(os.close, lock_file(folder / _FILE))
    shared = _shared(settings)
    store: Store = _alone(settings) if shared is None else shared
    stack.push_async_callback(store.close)
    ledger, rates, booked = (
        Ledger(settings.budgets, max_counters=counters),
        Rates(settings.limits, max_counters=counters),
        None,
    )
    if shared is not None:
        from serving.access.shared_ledger import SharedLedger  # with the extra, as the store
        from serving.access.shared_rates import SharedRates
        from serving.access.shared_scripts import Scripts

        scripts = Scripts(shared, settings.metering.shared_timeout_s)
        stack.push_async_callback(scripts.close)
        ledger = together = SharedLedger(shared, scripts, settings.budgets, max_counters=counters)
        stack.push_async_callback(together.close)
        rates, booked = SharedRates(scripts, settings.limits, max_counters=counters), together.booked
    if told is None or told.index == 0:
        log = AnalyticalLog(folder / "log.duckdb", store, batch_events=settings.log.batch_rows)
    else:
        from serving.workers.log_reader import LogReader

        log = LogReader(folder / "log.duckdb", store, index=told.index)
    stack.push_async_callback(log.close)
    return Opened(store, shared, log, ledger, rates, told, booked)


def _alone(settings: Settings) -> SqliteStore:
    store = settings.store
    return SqliteStore(settings.server.data_dir / _FILE, synchronous=store.synchronous, queue_limit=store.queue_limit)


def _shared(settings: Settings) -> ValkeyStore | None:
    store = settings.store
    if store.url is None:
        return None
    from serving.valkey_store import ValkeyStore  # an extra

    if (settings.server.data_dir / _FILE).exists():
        _log.warning("%s is not used: the store is at store.url, and what the file has learned is not there", _FILE)
    url = store.url.get_secret_value()
    # An outcome must not come to the log behind the feedback that another process takes for it.
    return ValkeyStore(url, name=store.name, queue_limit=store.queue_limit, linger_s=_LINGER_S)


async def joined(parts: Opened, learner: Learner, life: Life, stack: AsyncExitStack) -> None:
    """Take part in a store that others share, too, until `stack` ends that: follow it, and lead while that is ours.

    Where the store fails, `life` is asked to end, and `stack` raises StoreFailed: another start finds everything.
    """
    shared = parts.shared
    if shared is None:
        return
    learner.leads = False
    learner.lead(parts.first and await shared.lease(_LEADER, _LEASE_S))
    following = asyncio.create_task(_follow(learner, shared, life))
    stack.push_async_callback(_ended, following)
    if parts.first:
        stack.push_async_callback(_ended, asyncio.create_task(_lead(learner, shared)))


async def _follow(learner: Learner, shared: ValkeyStore, life: Life) -> None:
    try:
        await learner.follow(shared)
    except StoreError as error:
        _log.error("the service ends: %s", error)
        life.ask()
        raise


async def _lead(learner: Learner, shared: ValkeyStore) -> None:
    """Lead while this process has the lease, until cancelled."""
    while True:
        await asyncio.sleep(_LEASE_S / 3)
        try:
            leads = await shared.lease(_LEADER, _LEASE_S)
        except StoreError:
            leads = False
        if leads != learner.leads:
            _log.info("this process leads now" if leads else "another process leads now")
        learner.lead(leads)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
