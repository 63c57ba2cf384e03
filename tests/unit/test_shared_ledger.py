"""Hard budgets of several workers on one real server: what is held, booked, begun, freed and undone; sums by hand."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest
from metered_calls import ALICE, BOB, at_once, budget, outcome, record
from trial_counts import TrialCounts
from valkey_server import ValkeyServer

from serving.access.shared_ledger import SharedLedger
from serving.errors import BudgetExhausted, Unavailable

DAY = 86_400.0
NOW = time.time() // DAY * DAY + DAY / 2  # the server drops what expires by its own clock


class Worker:
    """One of several: a ledger, and its part of the store."""

    def __init__(self, counts, entries, timeout_s=5.0):
        self.counts = counts
        self.scripts = counts.scripts(timeout_s)
        self.ledger = SharedLedger(counts, self.scripts, entries)

    def reserve(self, usd, tokens=0, principal=ALICE, ts=NOW):
        return self.ledger.reserve(principal, usd, tokens, ts)

    async def end(self, held, usd, principal=ALICE, ts=NOW, **more):
        """The call's outcome is known: booked, folded, given back."""
        made, result = record(principal, more.pop("mode", "bandit")), outcome(usd, ts, **more)
        self.ledger.booked(made, result)
        self.ledger.outcome(made, result)
        if held is not None:
            self.ledger.release(held)
        await self.counts.flush()

    async def sums(self, name):
        """(spent, held) by member of a counter's key."""
        keys = [key async for key in self.counts.client.scan_iter(self.counts.key(f"count:{name}:*"))]
        return {key.decode(): await self.counts.client.hgetall(key) for key in keys}


@pytest.fixture
async def worker(valkey_server, tmp_path):
    """Makes workers of one service."""
    made = []

    async def make(entries, timeout_s=5.0, server=valkey_server):
        counts = TrialCounts(server.url, tmp_path.name)
        await counts.live()
        made.append(Worker(counts, entries, timeout_s))
        return made[-1]

    yield make
    for each in made:
        await each.ledger.close()
        await each.scripts.close()
        await each.counts.client.aclose()


async def test_what_workers_hold_and_spend_together_never_passes_a_hard_budget(worker):
    """Of 1 USD one has spent 0.5 and another holds 0.3: 0.2 fit, one millionth of a cent more does not."""
    one, other = await worker([budget()]), await worker([budget()])
    await one.end(await one.reserve(0.9), 0.5)
    await other.reserve(0.3)
    with pytest.raises(BudgetExhausted, match=r"0\.5 are spent and 0\.3 reserved") as refusal:
        await one.reserve(0.200_000_01, principal=BOB)
    assert (refusal.value.budget["spent"], refusal.value.budget["reserved"]) == (0.5, 0.3)
    held = await one.reserve(0.2, principal=BOB)
    assert held.hard
    with pytest.raises(BudgetExhausted):
        await other.reserve(0.0)
    one.ledger.release(held)
    one.ledger.release(held)
    await one.counts.flush()
    await other.reserve(0.2)


async def test_a_call_is_held_in_all_budgets_it_concerns_or_in_none(worker):
    entries = [budget(scope="team", name="team"), budget(scope="user", usd=0.1, name="each")]
    one, other = await worker(entries), await worker(entries)
    with pytest.raises(BudgetExhausted, match="each"):
        await one.reserve(0.5)
    await other.reserve(0.1)
    await other.reserve(0.1, principal=BOB)
    with pytest.raises(BudgetExhausted, match="each"):
        await one.reserve(0.1)


async def test_calls_that_no_hard_budget_concerns_wait_for_nothing(worker):
    one = await worker([budget(kind="soft"), budget(scope="team", match="ads", name="ads")])
    reservation = at_once(one.reserve(5.0))
    assert (reservation.hard, reservation.held) == (False, ())
    one.ledger.release(reservation)
    assert at_once((await worker([])).reserve(1e9)).parts == []


async def test_what_a_dead_worker_holds_is_free_and_counts_again_if_it_comes_back(worker):
    one, other = await worker([budget()]), await worker([budget()])
    held = await one.reserve(0.75)
    await one.counts.die()
    last = await other.reserve(1.0)
    other.ledger.release(last)
    await other.counts.flush()
    await one.counts.live()
    with pytest.raises(BudgetExhausted):
        await other.reserve(0.5)
    await one.end(held, 0.5)
    await other.reserve(0.5)


async def test_a_counter_begins_with_what_the_fold_has_spent_before(worker):
    """0.6 were spent before counting began; 0.25 were booked before anybody asked: 0.15 are left of 1."""
    one, other = await worker([budget()]), await worker([budget()])
    for each in (one, other):
        each.ledger.outcome(record(), outcome(0.6, NOW))
    await one.end(None, 0.25)
    other.ledger.outcome(record(), outcome(0.25, NOW))
    with pytest.raises(BudgetExhausted, match=r"0\.85 are spent"):
        await other.reserve(0.16)
    held = await one.reserve(0.15)
    assert [int(h[b"base"]) for h in (await one.sums("spent")).values()] == [600_000_000_000]
    await one.end(held, 0.15)
    with pytest.raises(BudgetExhausted):
        await other.reserve(0.0)


async def test_one_who_has_folded_less_than_was_booked_begins_with_nothing(worker):
    one, other = await worker([budget()]), await worker([budget()])
    await one.end(None, 0.25)
    with pytest.raises(BudgetExhausted, match=r"0\.25 are spent"):
        await other.reserve(0.8)
    await other.reserve(0.75)


async def test_in_a_new_window_nothing_is_spent_and_what_is_held_stays_so(worker):
    one, other = await worker([budget()]), await worker([budget()])
    held = await one.reserve(0.25)
    await one.end(await one.reserve(0.5), 0.5)
    with pytest.raises(BudgetExhausted):
        await other.reserve(0.8, ts=NOW + DAY)
    await one.end(held, 0.25, ts=NOW + DAY)  # begun before midnight, booked after it
    with pytest.raises(BudgetExhausted, match=r"0\.25 are spent"):
        await other.reserve(0.8, ts=NOW + DAY)
    await other.reserve(0.75, ts=NOW + DAY)


async def test_outcomes_are_booked_as_the_fold_books_them(worker):
    """A cached answer costs nothing, a shadow the budgets of all alone; tokens are counted where tokens are meant."""
    entries = [
        budget(name="all"),
        budget(scope="user", name="user", per="total"),
        budget(scope="user", name="tokens", usd=None, tokens=1_000, kind="soft"),
    ]
    one = await worker(entries)
    await one.end(None, 0.1, input_tokens=7, output_tokens=3)
    await one.end(None, 0.2, mode="cached", saved_usd=0.2)
    await one.end(None, 0.3, mode="shadow")
    await one.end(None, None, status="error")
    found = {key.split(":", 3)[3]: int(parts[b"spent"]) for key, parts in (await one.sums("spent")).items()}
    day = int(NOW // DAY * DAY)
    assert found == {
        f'["all","all","usd","day","",{day}]': 400_000_000_000,
        '["user","user","usd","total","search/alice",0]': 100_000_000_000,
        f'["tokens","user","tokens","day","search/alice",{day}]': 10,
    }
    shown = {b["name"]: [c["spent"] for c in b["counters"]] for b in one.ledger.listed(NOW)}
    assert shown == {"all": [0.4], "user": [0.1], "tokens": [10]}


async def test_windows_are_kept_until_a_day_after_their_end(worker):
    one = await worker([budget(), budget(per="total", name="total")])
    await one.end(await one.reserve(0.5), 0.5)
    ends = sorted([await one.counts.client.expiretime(key) for key in await one.sums("spent")])
    assert ends == [NOW + DAY / 2 + DAY, NOW + 400 * DAY]


async def test_a_sum_that_no_counter_can_hold_is_as_good_as_infinite(worker):
    one = await worker([budget(usd=1e6)])
    await one.end(None, 1e9)
    assert [int(parts[b"spent"]) for parts in (await one.sums("spent")).values()] == [2**62]
    with pytest.raises(BudgetExhausted):
        await one.reserve(0.0)


async def test_a_server_that_does_not_answer_lets_nothing_through_and_nothing_stays_held(worker, tmp_path):
    """Whoever gave up waiting does not know what was done: it is undone once the server answers again."""
    with ValkeyServer(tmp_path) as server:
        one = await worker([budget()], timeout_s=0.3, server=server)
        await (other := await worker([budget()], server=server)).end(await other.reserve(0.5), 0.25)
        os.kill(server._process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="did not answer"):
                await one.reserve(0.75)
        finally:
            os.kill(server._process.pid, signal.SIGCONT)
        await one.ledger._undoing
        assert not one.ledger._doubtful
        await other.end(await other.reserve(0.75), 0.75)
        for each in (one, other):
            await each.counts.client.aclose()


async def test_a_hold_that_comes_after_it_was_undone_holds_nothing(worker):
    from serving.access.shared_scripts import HOLD, UNDO

    one = await worker([budget()])
    await one.scripts.run(UNDO, ["hold:w:1", "count:held:h"], ["w", -5])
    for _ in range(2):
        assert await one.scripts.run(
            HOLD, ["known:w", "hold:w:1", "count:spent:s", "count:held:h"], [one.scripts.prefix, "w", 9, 5, 0, 2**40]
        ) == [0]
    assert await one.sums("held") == {}


async def test_many_at_once_and_one_that_crashes_leave_the_exact_sum(worker):
    """Four workers, calls that end in any order and cost at most what was held; one dies with calls under way."""
    rng, limit_units = random.Random(7), 10**12
    workers = [await worker([budget(), budget(scope="user", usd=0.6, name="user")]) for _ in range(4)]
    booked, refused = [], 0

    async def calls(each):
        nonlocal refused
        for _ in range(60):
            principal, most = rng.choice([ALICE, BOB]), rng.randrange(1, 40_000) / 1e6
            try:
                held = await each.reserve(most, principal=principal)
            except BudgetExhausted:
                refused += 1
                continue
            await asyncio.sleep(0)
            if each is workers[3] and rng.random() < 0.3:
                await each.counts.die()
                return  # with what it holds
            cost = rng.randrange(int(most * 1e6) + 1) / 1e6
            await each.end(held, cost, principal)
            booked.append((principal.user, round(cost * 1e12)))

    await asyncio.gather(*(calls(each) for each in workers))
    assert refused, "or the budget was never full"
    sums = {
        key.rsplit(",", 2)[1]: int(parts.get(b"spent", 0)) for key, parts in (await workers[0].sums("spent")).items()
    }
    assert sums['""'] == sum(units for _, units in booked) <= limit_units
    for user in ("alice", "bob"):
        assert sums[f'"search/{user}"'] == sum(units for who, units in booked if who == user) <= 0.6 * limit_units
    left = limit_units - sums['""']
    await workers[0].reserve(min(left / 1e12, 0.6 - sums['"search/alice"'] / 1e12) - 1e-9)


async def test_what_all_workers_hold_is_shown(worker):
    entries = [budget(name="all"), budget(scope="user", usd=None, tokens=100, name="soft", kind="soft")]
    one, other = await worker(entries), await worker(entries)
    await one.end(await one.reserve(0.5), 0.25)
    await one.reserve(0.125, 30)
    await other.reserve(0.25, 40)
    shown = {b["name"]: b["counters"][0] for b in await one.ledger.listed_of_all(NOW)}
    assert {name: shown["all"][name] for name in ("spent", "reserved", "remaining")} == {
        "spent": 0.25,
        "reserved": 0.375,
        "remaining": 0.375,
    }
    assert shown["soft"]["reserved"] == 30, "of this worker: nobody is refused by it"
