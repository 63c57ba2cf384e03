"""The operational store as the settings have it, and this process's part among those that share it.

A file of this process alone, or a server that several processes share. Of those one leads: it logs what events call
for, takes snapshots and keeps house; which one, a lease on the server says. Makes no part of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

from serving.sqlite_store import SqliteStore
from serving.store import StoreError
from serving.workers.told import Told, told_by

if TYPE_CHECKING:
    from serving.learner import Learner
    from serving.settings import Settings
    from serving.valkey_store import ValkeyStore

__all__ = ["Place", "leading", "open_store"]

_log = logging.getLogger("pointsman")
_LEASE_S: Final = 5.0
_FILE: Final = "router.sqlite"


def place() -> Told:
    """Which worker this process is: the only one, unless its parent told otherwise."""
    return told_by(os.environ) or Told(0, 1, None)


def open_store(settings: Settings) -> SqliteStore | ValkeyStore:
    """The store, open; on the running event loop. Raises StoreUnusable."""
    store, folder = settings.store, settings.server.data_dir
    if store.url is None:
        return SqliteStore(folder / _FILE, synchronous=store.synchronous, queue_limit=store.queue_limit)
    from serving.valkey_store import ValkeyStore  # an extra, and its import takes 0.2 s

    if (folder / _FILE).exists():
        _log.warning("%s is not used: the store is at store.url, and what the file has learned is not there", _FILE)
    return ValkeyStore(store.url.get_secret_value(), name=store.name, queue_limit=store.queue_limit)


async def leading(learner: Learner, store: ValkeyStore, *, may: bool) -> None:
    """Lead while this process has the lease, until cancelled; one that may not never does."""
    while True:
        try:
            learner.leads = may and await store.lease("leader", _LEASE_S)
        except StoreError as error:
            learner.leads = False
            _log.error("nobody leads: %s", error)
        await asyncio.sleep(_LEASE_S / 3)
