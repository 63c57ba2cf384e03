"""One leads, the others wait: what a flight brings, and that nobody is failed by who leads."""

from __future__ import annotations

import asyncio

import pytest

from serving.errors import CallerGone
from serving.traffic.flights import Flights

KEY = b"k"


async def led(flights, ready, *, value=None, error=None):
    """Lead a flight that lands, or breaks off, once `ready` is set."""
    with flights.leading(KEY) as flight:
        await ready.wait()
        if error is not None:
            raise error
        flight.land(value)


@pytest.fixture
async def waiting():
    """Flights with one under way and three who wait for it: (flights, what lets it land, its task, their tasks)."""

    async def waiting(wait_s=10.0, **more):
        flights, ready = Flights(), asyncio.Event()
        leader = asyncio.create_task(led(flights, ready, **more))
        await asyncio.sleep(0)
        joined = [asyncio.create_task(flights.join(KEY, wait_s)) for _ in range(3)]
        await asyncio.sleep(0)
        return flights, ready, leader, joined

    return waiting


async def test_all_get_what_the_first_brings(waiting):
    flights, ready, leader, joined = await waiting(value="answer")
    assert KEY in flights
    ready.set()
    assert await asyncio.gather(leader, *joined) == [None, "answer", "answer", "answer"]
    assert KEY not in flights
    assert await flights.join(KEY, 10.0) is None


async def test_a_failure_is_the_leaders_alone(waiting):
    _, ready, leader, joined = await waiting(error=ValueError("broken"))
    ready.set()
    assert await asyncio.gather(*joined) == [None, None, None]
    with pytest.raises(ValueError, match="broken"):
        await leader


@pytest.mark.parametrize("gone", [None, CallerGone("left")])
async def test_where_the_leader_goes_away_one_leads_and_the_others_wait_for_it(waiting, gone):
    flights, ready, leader, joined = await waiting(error=gone)
    del joined
    leads = 0

    async def call():
        nonlocal leads
        found = await flights.join(KEY, 10.0)
        if found is not None:
            return found
        leads += 1
        with flights.leading(KEY) as flight:
            await asyncio.sleep(0.01)
            flight.land("second")
        return "second"

    calls = [asyncio.create_task(call()) for _ in range(5)]
    await asyncio.sleep(0)
    if gone is None:
        leader.cancel()
    ready.set()
    assert await asyncio.gather(*calls) == ["second"] * 5
    assert leads == 1
    with pytest.raises((asyncio.CancelledError, CallerGone)):
        await leader


async def test_a_wait_ends_in_time_and_ends_no_flight(waiting):
    flights, ready, leader, joined = await waiting(wait_s=0.01, value="late")
    assert await asyncio.gather(*joined) == [None, None, None]
    again = asyncio.create_task(flights.join(KEY, 10.0))
    again.cancel()
    patient = asyncio.create_task(flights.join(KEY, 10.0))
    await asyncio.sleep(0)
    ready.set()
    await leader
    assert await patient == "late"


async def test_who_flies_beside_another_brings_nothing_to_anybody():
    flights = Flights()
    with flights.leading(KEY) as first:
        with flights.leading(KEY) as second:
            second.land("mine")
        joined = asyncio.create_task(flights.join(KEY, 10.0))
        await asyncio.sleep(0)
        first.land("ours")
        first.land("again")
    assert await joined == "ours"
