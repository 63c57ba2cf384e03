"""What is seen to every few seconds while the service runs: canaries, missing feedback, events nobody needs any more.

Decides nothing itself. Ends where the store has failed: the service is unready from then on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.errors import ServiceError
from serving.store import Store, StoreError

if TYPE_CHECKING:
    from serving.analytics import AnalyticalLog
    from serving.imputation import MissingFeedback
    from serving.learner import Learner
    from serving.traffic.state import Traffic

__all__ = ["housekeeping"]

_log = logging.getLogger("pointsman")
_EVERY_S = 5.0
_PRUNE_BATCH = 1_000
_SNAPSHOT_EVERY_S = 3_600.0  # where little happens: events younger than a horizon at the snapshot stay till the next


async def housekeeping(
    learner: Learner,
    store: Store,
    log: AnalyticalLog,
    missing: Callable[[], MissingFeedback],
    traffic: Callable[[], Traffic],
) -> None:
    """Until cancelled; `missing` and `traffic` tell those of now, as a reload makes others."""
    begun_at = time.time()
    while True:
        await asyncio.sleep(_EVERY_S)
        if not learner.leads:
            continue
        up_to_seq = min(learner.snapshot_position, log.position)
        # Feedback that came since the snapshot speaks of decisions made since a horizon before it: a replay needs them.
        before_ts = learner.snapshot_ts - missing().horizon_s
        try:
            await missing().run(time.time())
            if rows := traffic().tick(time.time()):
                await learner.change(rows)
            if time.time() > max(begun_at, learner.snapshot_ts) + _SNAPSHOT_EVERY_S:
                await learner.snapshot()
            while await store.prune(before_ts, up_to_seq, _PRUNE_BATCH) == _PRUNE_BATCH:  # noqa: ASYNC110 - it waits
                await asyncio.sleep(0)
        except (StoreError, ServiceError) as error:
            _log.error("old events stay: %s", error)
            if not store.healthy:  # there is nothing more to keep tidy; one that was full for a while goes on
                return
