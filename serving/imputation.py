"""Feedback that never comes: what a pool's settings make of it, in bounded batches, durably and once.

An assumed quality is a feedback event like any other, marked by a metric of its own, so a replay learns the same. It
must never count as evidence: it moves the quality head and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from bandit.pool import Change, Pool
from bandit.posterior import QUALITY
from bandit.types import Feedback
from serving.errors import Unavailable
from serving.records import Record
from serving.store import Store, StoreFull, Superseded

if TYPE_CHECKING:
    from serving.feedback import FeedbackDesk
    from serving.learner import Learner

__all__ = ["IMPUTED", "MissingFeedback", "is_imputed", "learn_feedback"]

IMPUTED = "imputed"  # the metric that marks assumed feedback; callers may not post one of this name
_BATCH = 200  # outcomes looked at, and at most so many events written, before waiting for them to be durable
_MOST_PER_RUN = 5_000  # qualities assumed for one pool: a backlog of days must not take all of the service's time
_AT_ONCE = 20  # … and so many between two turns of the event loop: about 2 ms


def is_imputed(feedback: Feedback | None) -> bool:
    """Whether the quality was assumed, not posted."""
    return feedback is not None and IMPUTED in feedback.metrics


def learn_feedback(pool: Pool, record: Record, feedback: Feedback, *, replay: bool) -> list[Change]:
    """Teach a pool feedback for a record as it was just before; returns what it changed about the model's standing.

    An assumed quality teaches the quality head alone. The first posted one after it replaces it there, and is evidence
    on the accuracy limit as if it had come first. It is not watched for drift: the head has long changed its mind.
    """
    decision, model = record.decision, record.served_by
    if model not in pool.names or feedback.quality is None or decision.context.version != pool.features.version:
        return []
    arm = pool.names.index(model)
    if is_imputed(feedback) and feedback.revises is None:
        x = decision.context.x.astype(np.float64)
        pool.heads.observe(arm, x, {QUALITY: feedback.quality}, made_at=decision.step, now=pool.step)
        return []
    changes = pool.apply_feedback(decision, feedback, model=model, replay=replay)
    if is_imputed(record.feedback) and not is_imputed(feedback):
        if pool.constraints.accuracy_evidence != "benchmarks":
            changes += pool.standing.observe_accuracy(arm, feedback.quality)
        pool.newcomers.graded(model, float(pool.heads.counts(QUALITY, pool.step)[arm]))
    return changes


class MissingFeedback:
    """Assumes `policies[pool]`, a (quality, wait_s), for the pool's good calls without feedback after wait_s seconds.

    How far it has come is kept by the learner, and so in its snapshots: after a restart little is looked at again, and
    whatever was assumed durably is found to have feedback.
    """

    def __init__(
        self,
        policies: Mapping[str, tuple[float, float]],
        desk: FeedbackDesk,
        learner: Learner,
        store: Store,
        horizon_s: float,
    ) -> None:
        self._policies, self._desk, self._learner, self._store = dict(policies), desk, learner, store
        self.horizon_s = horizon_s

    async def run(self, now: float) -> int:
        """Deal with what is due at unix time `now`; returns how many qualities were assumed, at most 5,000 a pool.

        A full or failed store ends it early: what is left is due next time. Raises StoreError where it cannot be read.
        """
        assumed = 0
        for pool in self._policies:
            try:
                assumed += await self._run_pool(pool, now)
            except (StoreFull, Unavailable):
                break
        return assumed

    async def _run_pool(self, pool: str, now: float) -> int:
        quality, wait_s = self._policies[pool]
        assumed, learner = 0, self._learner
        at = max(learner.awaited.get(pool, (0.0, 0)), (now - self.horizon_s, 0))
        while assumed < _MOST_PER_RUN:
            # Commits come in the order of time, so what is not committed yet lies behind everything seen here.
            ids, last = await asyncio.to_thread(self._store.without_feedback, at, now - wait_s, _BATCH)
            if last == at:
                break
            written: asyncio.Future[None] | None = None
            for i, decision_id in enumerate(ids, 1):
                durable = self._desk.assume(decision_id, pool, quality, wait_s, now)
                if durable is not None:
                    written, assumed = durable, assumed + 1
                if i % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            learner.awaited[pool] = at = last
            if written is not None:
                with suppress(Superseded):  # posted feedback was first
                    await asyncio.shield(written)
        return assumed
