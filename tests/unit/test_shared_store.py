"""Budgets over the store that workers share: what is counted goes with the event it belongs to, or not at all."""

from __future__ import annotations

import asyncio
import time

import pytest
from metered_calls import ALICE, budget, outcome, record

from serving.access.shared_ledger import SharedLedger
from serving.access.shared_scripts import Scripts
from serving.errors import BudgetExhausted
from serving.store import Event, Superseded
from serving.valkey_store import ValkeyStore


class Worker:
    """One of several processes, without the process."""

    def __init__(self, url, name):
        self.store = ValkeyStore(url, name=name)
        self.ledger = SharedLedger(self.store, Scripts(self.store, 5.0), [budget(per="total")])
        self.following = asyncio.create_task(self.store.follow(0, lambda _: None))

    def record(self, made, usd, nth=None):
        """As the learner does at an outcome, and the attempt behind it."""
        event = Event("outcome", made.decision.decision_id, time.time(), b"{}", nth=nth)
        durable = self.store.append([event], lambda: None)
        self.ledger.booked(made, outcome(usd, event.ts))
        return durable

    async def close(self):
        await self.store.close()
        await asyncio.gather(self.following, return_exceptions=True)


@pytest.fixture
async def workers(valkey_server, tmp_path):
    made = [Worker(valkey_server.url, tmp_path.name) for _ in range(2)]
    yield made
    for worker in made:
        await worker.close()


async def test_an_outcome_that_another_worker_recorded_first_is_booked_once(workers):
    """Both hold 0.4 and record the same outcome of 0.25: it is spent once, and both have given back."""
    held = [await worker.ledger.reserve(ALICE, 0.4, 0, time.time()) for worker in workers]
    made = record()
    durable = [worker.record(made, 0.25, nth=0) for worker in workers]
    for worker, reservation in zip(workers, held, strict=True):
        worker.ledger.release(reservation)
    results = await asyncio.gather(*durable, return_exceptions=True)
    assert sorted(isinstance(result, Superseded) for result in results) == [False, True]
    for worker in workers:
        await worker.store.flush()
    with pytest.raises(BudgetExhausted, match=r"0\.25 are spent and 0 reserved"):
        await workers[0].ledger.reserve(ALICE, 0.8, 0, time.time())


async def test_a_sum_past_what_is_counted_fails_no_batch(workers):
    """Three outcomes that say a milliard USD each are more than 64 bits of whole units hold."""
    one, other = workers
    for _ in range(3):
        await one.record(record(), 1e9)
    assert one.store.healthy
    with pytest.raises(BudgetExhausted):
        await other.ledger.reserve(ALICE, 0.0, 0, time.time())
