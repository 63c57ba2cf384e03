"""What every operational store promises. An implementation is added as a parameter of `open_store`.

Here each store has one writer, and nobody follows it: what several promise one another is in test_valkey_store.py.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from serving.records import BenchmarkResult, benchmark_event
from serving.sqlite_store import SqliteStore
from serving.store import Event, Store, StoreClosed, StoreFull
from serving.valkey_store import ValkeyStore

OpenStore = Callable[..., Store]


@pytest.fixture(params=["sqlite", "valkey"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens the test's one store, the first time empty, later with what it held; closed at the end."""
    opened: list[Store] = []

    def sqlite(**options: float) -> Store:
        options = {"commit_interval_s": 0.0, "linger_s": 0.001} | options
        opened.append(SqliteStore(tmp_path / "router.sqlite", **options))
        return opened[-1]

    def valkey(**options: float) -> Store:
        options = {"commit_interval_s": 0.0, "linger_s": 0.001} | options
        server = request.getfixturevalue("valkey_server")
        opened.append(ValkeyStore(server.url, name=tmp_path.name, **options))
        return opened[-1]

    yield {"sqlite": sqlite, "valkey": valkey}[request.param]
    for store in opened:
        await store.close()


def event(number: int, kind: str = "outcome", decision_id: str | None = None, ts: float | None = None) -> Event:
    name = f"id-{number // 2}" if decision_id is None else decision_id
    return Event(kind, name, float(number) if ts is None else ts, b'{"number":%d}' % number)


def events(first: int, last: int) -> list[Event]:
    return [event(number) for number in range(first, last + 1)]


def numbers(found: list[Event]) -> list[int]:
    return [int(e.payload.split(b":")[1][:-1]) for e in found]


async def test_seqs_are_assigned_at_once_in_call_order(open_store):
    store = open_store()
    assert store.position == 0
    first = store.append(events(1, 3))
    store.append_nowait(events(4, 4))
    second = store.append(events(5, 6))
    assert (store.position, store.pending) == (6, 6)
    await first
    await second
    assert store.pending == 0
    found = store.read(0, 100)
    assert [e.seq for e in found] == [1, 2, 3, 4, 5, 6]
    assert numbers(found) == [1, 2, 3, 4, 5, 6]


async def test_an_event_comes_back_as_it_went_in(open_store):
    store = open_store()
    payload = '{"text":"a\\u0000 \n é 😀"}'.encode() + bytes(range(256)) + b"x" * 100_000
    await store.append([Event("feedback", "décision-1", 1764000000.123456, payload)])
    assert store.find("décision-1") == [Event("feedback", "décision-1", 1764000000.123456, payload, 1)]
    assert store.read(0, 1) == store.find("décision-1")


async def test_find_gives_the_events_of_one_decision_in_order(open_store):
    store = open_store()
    await store.append([event(n, decision_id=f"id-{n % 7}") for n in range(100)])
    await store.append([event(100, kind="feedback", decision_id="id-3")])
    found = store.find("id-3")
    assert numbers(found) == [*range(3, 100, 7), 100]
    assert [e.kind for e in found] == ["outcome"] * 14 + ["feedback"]


async def test_a_benchmark_result_is_found_by_its_key_once_it_is_committed(open_store):
    """So that one sent again is known again, also after a restart."""
    result = BenchmarkResult("suite", "run", "item", "model", quality=0.5)
    store = open_store()
    written = store.append([benchmark_event(result, 7.0)])
    assert store.find(result.key) == []
    await written
    (found,) = store.find(result.key)
    assert (found.kind, found.ts, b'"quality":0.5' in found.payload) == ("benchmark_result", 7.0, True)
    await store.close()
    assert len(open_store().find(result.key)) == 1


@pytest.mark.parametrize("unknown", ["id-", "ID-0", "", "\ud800", "id-0' OR 1"])
async def test_find_of_an_unknown_decision_is_empty(open_store, unknown):
    store = open_store()
    await store.append([event(0), event(1, kind="benchmark_result", decision_id="")])
    assert store.find(unknown) == []


async def test_only_committed_events_are_read(open_store):
    store = open_store()
    written = store.append(events(1, 2))
    assert store.find("id-0") == []
    assert store.read(0, 10) == []
    await written
    assert len(store.read(0, 10)) == 2


async def test_read_pages_through_the_log(open_store):
    store = open_store()
    await store.append(events(1, 25))
    assert numbers(store.read(0, 10)) == list(range(1, 11))
    assert numbers(store.read(20, 10)) == list(range(21, 26))
    assert store.read(25, 10) == []


async def test_read_works_on_another_thread_while_events_are_appended(open_store):
    store = open_store()
    await store.append(events(1, 500))

    def read_all() -> list[int]:
        found: list[Event] = []
        while part := store.read(found[-1].seq if found else 0, 7):
            found += part
        return numbers(found)

    reading = asyncio.create_task(asyncio.to_thread(read_all))
    last = 500
    while not reading.done():
        await store.append(events(last + 1, last + 5))
        last += 5
        assert numbers(store.find("id-10")) == [20, 21]
    seen = await reading
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= 500


async def test_an_append_waits_for_what_was_appended_before_without_waiting(open_store):
    store = open_store(linger_s=3600.0)
    store.append_nowait(events(1, 1))
    assert store.pending == 1
    await store.append(events(2, 2))
    assert numbers(store.read(0, 10)) == [1, 2]


async def test_events_nobody_waits_for_are_written_all_the_same(open_store):
    store = open_store(linger_s=0.001)
    for number in range(1, 6):
        store.append_nowait(events(number, number))
        async with asyncio.timeout(10):
            while store.pending:  # noqa: ASYNC110 - nothing tells: that is the point
                await asyncio.sleep(0.001)
    assert numbers(store.read(0, 10)) == [1, 2, 3, 4, 5]


async def test_flush_waits_for_everything_appended_so_far(open_store):
    store = open_store(linger_s=3600.0, commit_interval_s=0.01)
    await store.flush()  # nothing to do
    store.append(events(1, 3))
    await asyncio.sleep(0)
    store.append_nowait(events(4, 5))
    await store.flush()
    assert (store.pending, numbers(store.read(0, 10))) == (0, [1, 2, 3, 4, 5])


async def test_an_empty_append_resolves_after_those_before_it(open_store):
    store = open_store()
    before = store.append(events(1, 1))
    await store.append([])
    assert before.done()
    assert store.position == 1


async def test_a_waiter_that_goes_away_harms_nobody(open_store):
    store = open_store()
    waits = [store.append(events(n, n)) for n in range(1, 4)]
    waits[1].cancel()
    await waits[0]
    await waits[2]
    assert numbers(store.read(0, 10)) == [1, 2, 3]


async def test_an_append_beyond_the_limit_takes_nothing(open_store):
    store = open_store(queue_limit=5)
    first = store.append(events(1, 4))
    with pytest.raises(StoreFull, match="limit is 5") as refused:
        store.append(events(5, 6))
    assert (refused.value.pending, store.position, store.pending) == (4, 4, 4)
    with pytest.raises(StoreFull):
        store.append_nowait(events(5, 6))
    second = store.append(events(5, 5))
    await first
    await second
    await store.append(events(6, 10))
    assert numbers(store.read(0, 100)) == list(range(1, 11))


async def test_many_writers_at_once_leave_no_gap_and_keep_their_own_order(open_store):
    store = open_store()

    async def write(writer: int) -> None:
        for step in range(100):
            await store.append([event(step, decision_id=f"writer-{writer}")] * (1 + (writer + step) % 3))

    await asyncio.gather(*(write(writer) for writer in range(50)))
    found = store.read(0, 100_000)
    assert [e.seq for e in found] == list(range(1, store.position + 1))
    assert len(found) == sum(1 + (w + s) % 3 for w in range(50) for s in range(100))
    for writer in range(50):
        own = numbers(store.find(f"writer-{writer}"))
        assert own == sorted(own)


async def test_a_closed_store_kept_everything_and_takes_no_more(open_store):
    store = open_store(linger_s=3600.0, commit_interval_s=0.05)
    waited = store.append(events(1, 2))
    store.append_nowait(events(3, 3))
    assert store.healthy
    await store.close()
    await store.close()
    assert waited.done()
    assert not store.healthy
    for refused in (store.append, store.append_nowait):
        with pytest.raises(StoreClosed):
            refused(events(4, 4))
    with pytest.raises(StoreClosed):
        store.save_snapshot(store.position, b"")
    with pytest.raises(StoreClosed):
        await store.flush()
    again = open_store()
    assert again.position == 3
    await again.append(events(4, 4))
    assert [e.seq for e in again.read(0, 10)] == [1, 2, 3, 4]


async def test_a_snapshot_stands_for_all_events_before_it(open_store):
    store = open_store()
    assert store.latest_snapshot() is None
    store.append_nowait(events(1, 3))
    saved = store.save_snapshot(store.position, b"state \x00 3")
    store.append_nowait(events(4, 4))
    await saved
    assert store.latest_snapshot() == (3, b"state \x00 3")
    assert numbers(store.read(0, 3)) == [1, 2, 3]  # durable no later than the snapshot
    await store.save_snapshot(store.position, b"state 4")
    await store.close()
    assert open_store().latest_snapshot() == (4, b"state 4")


async def test_a_second_snapshot_at_the_same_position_replaces_the_first(open_store):
    store = open_store()
    await store.save_snapshot(store.position, b"empty")
    assert store.latest_snapshot() == (0, b"empty")
    await store.save_snapshot(store.position, b"empty, but later")
    assert store.latest_snapshot() == (0, b"empty, but later")


async def test_snapshots_and_prunings_waiting_are_bounded(open_store):
    store = open_store()
    waiting = []
    with pytest.raises(StoreFull):  # noqa: PT012 - somewhere along the way
        for _ in range(1000):
            waiting.append(store.save_snapshot(store.position, b"x"))  # noqa: PERF401
    await asyncio.gather(*waiting)


async def test_prune_deletes_only_old_events_up_to_the_given_seq(open_store):
    store = open_store()
    await store.append([event(n, ts=100.0 + n) for n in range(1, 11)])
    assert await store.prune(before_ts=0.0, up_to_seq=10, limit=100) == 0
    assert await store.prune(before_ts=1000.0, up_to_seq=2, limit=100) == 2
    assert numbers(store.read(0, 100)) == list(range(3, 11))
    assert await store.prune(before_ts=105.0, up_to_seq=10, limit=100) == 2  # 103 and 104; 105 is not older
    assert numbers(store.read(0, 100)) == list(range(5, 11))
    assert numbers(store.find("id-2")) == [5]
    assert store.find("id-1") == []


async def test_prune_stops_at_its_limit_and_goes_on_when_called_again(open_store):
    store = open_store()
    await store.append(events(1, 10))
    counts = [await store.prune(before_ts=1e9, up_to_seq=10, limit=4) for _ in range(4)]
    assert counts == [4, 4, 2, 0]


async def test_a_younger_event_among_old_ones_stays(open_store):
    store = open_store()
    await store.append([event(n, ts=9e9 if n == 3 else 1.0) for n in range(1, 6)])
    assert await store.prune(before_ts=100.0, up_to_seq=5, limit=100) == 4
    assert numbers(store.read(0, 10)) == [3]


async def test_seqs_go_on_after_everything_was_pruned_and_the_store_reopened(open_store):
    store = open_store()
    await store.append(events(1, 10))
    assert await store.prune(before_ts=1e9, up_to_seq=10, limit=100) == 10
    assert store.position == 10
    await store.close()
    again = open_store()
    assert (again.position, again.read(0, 10)) == (10, [])
    await again.append(events(11, 11))
    assert [e.seq for e in again.read(0, 10)] == [11]


async def test_decisions_without_feedback_come_by_the_time_of_their_outcome(open_store):
    store = open_store()
    await store.append(
        [
            event(1, "decision", "graded", 1.0),
            event(2, "outcome", "graded", 2.0),
            event(3, "outcome", "late", 9.0),
            event(4, "outcome", "bare", 3.0),
            event(5, "feedback", "graded", 4.0),
            event(6, "decision", "unanswered", 5.0),
            event(7, "outcome", "same time", 3.0),
        ]
    )
    assert store.without_feedback((0.0, 0), 10.0, 100) == (["bare", "same time", "late"], (9.0, 3))
    assert store.without_feedback((0.0, 0), 3.0, 100) == (["bare", "same time"], (3.0, 7))  # 3.0 itself is due
    assert store.without_feedback((0.0, 0), 1.0, 100) == ([], (0.0, 0))
    assert store.without_feedback((3.0, 4), 10.0, 100) == (["same time", "late"], (9.0, 3))
    assert store.without_feedback((9.0, 3), 10.0, 100) == ([], (9.0, 3))


async def test_looking_for_missing_feedback_goes_on_where_it_stopped(open_store):
    """Also over a stretch in which everything has feedback: what was looked at counts, not what was found."""
    store = open_store()
    await store.append([event(n, "outcome", f"d{n}", float(n)) for n in range(1, 11)])
    await store.append([event(n, "feedback", f"d{n}", 20.0) for n in range(1, 8)])
    found, at, steps = [], (0.0, 0), 0
    while (answer := store.without_feedback(at, 100.0, 3))[1] != at:
        found, at, steps = found + answer[0], answer[1], steps + 1
    assert (found, steps) == (["d8", "d9", "d10"], 4)


async def test_a_decision_with_several_outcomes_is_named_once(open_store):
    store = open_store()
    await store.append([event(n, "outcome", "fallen back", 1.0) for n in range(3)])
    assert store.without_feedback((0.0, 0), 1.0, 100) == (["fallen back"], (1.0, 3))


async def test_only_committed_outcomes_lack_feedback(open_store):
    store = open_store()
    written = store.append([event(1, "outcome", "x", 1.0)])
    assert store.without_feedback((0.0, 0), 9.0, 10) == ([], (0.0, 0))
    await written
    store.append_nowait([event(2, "feedback", "x", 2.0)])
    assert store.without_feedback((0.0, 0), 9.0, 10)[0] == ["x"]
    await store.flush()
    assert store.without_feedback((0.0, 0), 9.0, 10) == ([], (1.0, 1))


async def test_the_store_agrees_with_a_list_over_a_random_history(open_store):
    """Appends, snapshots, prunings and reopenings in any order give what a plain list gives."""
    chance = random.Random(20240811)
    store, kept, position, snapshot = open_store(), {}, 0, None
    for _ in range(400):
        step = chance.choice(["append", "append", "nowait", "snapshot", "prune", "reopen"])
        if step in ("append", "nowait"):
            new = events(position + 1, position + chance.randrange(1, 90))
            if step == "append":
                await store.append(new)
            else:
                store.append_nowait(new)
            kept |= {position + i: e for i, e in enumerate(new, 1)}
            position += len(new)
        elif step == "snapshot":
            snapshot = (position, chance.randbytes(20))
            await store.save_snapshot(store.position, snapshot[1])
        elif step == "prune":
            before, up_to = float(chance.randrange(position + 1)), chance.randrange(position + 1)
            old = [seq for seq in sorted(kept)[:50] if seq <= up_to and kept[seq].ts < before]
            assert await store.prune(before, up_to, 50) == len(old)
            for seq in old:
                del kept[seq]
        else:
            await store.close()
            store = open_store()
        await store.flush()
        assert (store.position, store.latest_snapshot()) == (position, snapshot)
        for after in (0, chance.randrange(position + 1)):  # not all of it, which would take most of the time
            behind = ((seq, e.payload) for seq, e in kept.items() if seq > after)
            assert [(e.seq, e.payload) for e in store.read(after, 300)] == list(itertools.islice(behind, 300))
    assert [e.seq for e in store.read(0, 10**6)] == sorted(kept)
