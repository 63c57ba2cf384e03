"""Limits of several workers on one real server: together they grant what one process would."""

from __future__ import annotations

import asyncio
import time

import pytest
from metered_calls import ALICE, BOB, at_once, limit
from trial_counts import TrialCounts

from serving.access.rates import Rates
from serving.access.shared_rates import SharedRates
from serving.errors import RateLimited


@pytest.fixture
async def rates(valkey_server, tmp_path):
    """Makes the rates of workers of one service."""
    made = []

    def make(*entries):
        counts = TrialCounts(valkey_server.url, tmp_path.name)
        made.append((counts, counts.scripts()))
        return SharedRates(made[-1][1], entries)

    yield make
    for counts, scripts in made:
        await scripts.close()
        await counts.client.aclose()


async def test_workers_together_grant_what_one_would(rates):
    """Of 10 a minute, and one more for each six seconds that it takes."""
    workers = [rates(limit(requests_per_minute=10)) for _ in range(3)]
    began, granted = time.monotonic(), 0
    for _ in range(8):
        for result in await asyncio.gather(*(w.take(ALICE, 5, 0.0) for w in workers), return_exceptions=True):
            granted += not isinstance(result, RateLimited)
    assert 10 <= granted <= 10 + (time.monotonic() - began) / 6
    with pytest.raises(RateLimited) as refusal:  # of two, should a place have become free
        await asyncio.gather(workers[0].take(ALICE, 5, 0.0), workers[1].take(ALICE, 5, 0.0))
    assert 1 <= int(refusal.value.retry_after) <= 6
    assert refusal.value.headers["x-ratelimit-remaining-requests"] == "0"
    await workers[0].take(BOB, 5, 0.0)


async def test_the_first_answer_is_told_as_in_one_process(rates):
    entries = [limit(requests_per_minute=60, tokens_per_minute=600), limit(scope="team", requests_per_minute=3)]
    alone = at_once(Rates(entries).take(ALICE, 100, 0.0))
    shared = await rates(*entries).take(ALICE, 100, 0.0)
    assert shared.headers == alone.headers


async def test_what_was_not_used_goes_back_to_all_and_what_was_used_on_top_is_owed(rates):
    one, other = rates(limit(tokens_per_minute=600)), rates(limit(tokens_per_minute=600))
    taken = await one.take(ALICE, 600, 0.0)
    with pytest.raises(RateLimited):
        await other.take(ALICE, 600, 0.0)
    one.settle(taken, 0, 0.0)
    one.settle(taken, 0, 0.0)
    await one._scripts.close()
    taken = await other.take(ALICE, 600, 0.0)
    other.settle(taken, 1_200, 0.0)
    await other._scripts.close()
    with pytest.raises(RateLimited) as refusal:
        await one.take(ALICE, 600, 0.0)
    assert int(refusal.value.retry_after) == 120, "600 are owed, and 600 needed"


async def test_a_refused_call_takes_from_no_bucket(rates):
    one = rates(limit(requests_per_minute=10), limit(scope="all", tokens_per_minute=100))
    await one.take(BOB, 100, 0.0)
    with pytest.raises(RateLimited, match="tokens"):
        await one.take(ALICE, 50, 0.0)
    taken = await one.take(ALICE, 0, 0.0)
    assert taken.headers["x-ratelimit-remaining-requests"] == "9"


async def test_a_call_of_more_than_a_minute_goes_when_the_bucket_is_full(rates):
    one = rates(limit(tokens_per_minute=100))
    await one.take(ALICE, 250, 0.0)
    with pytest.raises(RateLimited) as refusal:
        await one.take(ALICE, 250, 0.0)
    assert int(refusal.value.retry_after) == 150


async def test_a_bucket_is_gone_once_it_is_full(rates, tmp_path):
    one = rates(limit(requests_per_minute=60))
    await one.take(ALICE, 0, 0.0)
    client = one._scripts._store.client
    (key,) = [key async for key in client.scan_iter(f"{{{tmp_path.name}}}:rate:*")]
    assert 0 < await client.pttl(key) <= 2_000


async def test_calls_that_no_limit_concerns_wait_for_nothing(rates):
    one = rates(limit(match="alice", requests_per_minute=1))
    assert at_once(one.take(BOB, 10**9, 0.0)).headers == {}
