"""A hard budget of several processes, some of which are killed with calls under way: never passed, exact in the end."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from metered_calls import ALICE
from spending_worker import ALIVE_MS, ENTRIES, LIMIT_USD
from trial_counts import TrialCounts

from serving.access.shared_ledger import SharedLedger
from serving.errors import BudgetExhausted

TESTS = Path(__file__).parents[1]
UNITS = 10**12
PATIENCE_S = 60.0


@pytest.fixture
def spending(valkey_server, tmp_path):
    """Starts a process that spends."""
    started = []

    def start(seed):
        command = [sys.executable, TESTS / "spending_worker.py", valkey_server.url, tmp_path.name, str(seed)]
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        started.append(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_processes_that_are_killed_leave_the_exact_sum_and_pass_no_limit(spending, valkey_server, tmp_path):
    """Three spend until nothing is left; three more are killed at random moments. What they held is then free."""
    rng, client = random.Random(3), valkey_server.client()
    counts = TrialCounts(valkey_server.url, tmp_path.name)
    lasting = [spending(seed) for seed in range(3)]
    for seed in range(3, 6):
        process = spending(seed)
        await asyncio.sleep(rng.random() * 0.3)
        process.kill()
    for process in lasting:
        assert process.wait(PATIENCE_S) == 0
    booked = [int(units) for units in client.lrange(counts.key("noted"), 0, -1)]
    (all_key,) = client.scan_iter(counts.key('count:spent:*"all"*'))
    (each_key,) = client.scan_iter(counts.key('count:spent:*"each"*'))
    assert int(client.hget(all_key, "spent")) == int(client.hget(each_key, "spent")) == sum(booked)
    limit = round(LIMIT_USD * UNITS)
    assert sum(booked) <= limit

    deadline = time.monotonic() + 10 * ALIVE_MS / 1_000
    while client.exists(*client.scan_iter(counts.key("alive:*")), "none"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await counts.live()
    ledger = SharedLedger(counts, counts.scripts(), ENTRIES)
    left = (limit - sum(booked)) / UNITS
    await ledger.reserve(ALICE, left, 0, time.time()) if left else None
    with pytest.raises(BudgetExhausted):
        await ledger.reserve(ALICE, 1e-9, 0, time.time())
    await counts.client.aclose()
