"""What is particular to the store on Valkey: several writers, one order; a server that dies or is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest

from serving.store import Event, StoreFailed, StoreUnusable, Superseded
from serving.valkey_store import ValkeyStore
from tests.conftest import eventually
from tests.valkey_server import ValkeyServer

QUICK = {"commit_interval_s": 0.0, "linger_s": 0.001}


def events(name: str, count: int, kind: str = "outcome", nth: int | None = None) -> list[Event]:
    return [Event(kind, f"{name}-{n}", float(n), b"%d" % n, nth=nth) for n in range(count)]


class Member:
    """A store and what it folds: the seq of each event in the order it was handed over, its own marked."""

    def __init__(self, url: str, name: str, **options: float) -> None:
        self.store = ValkeyStore(url, name=name, **(QUICK | options))
        self.folded: list[tuple[str, bytes]] = []
        self.own: list[str] = []
        self.following = asyncio.create_task(self.store.follow(self.store.position, self._foreign))

    def append(self, new: list[Event]) -> asyncio.Future[None]:
        return self.store.append(new, lambda: self._placed(new))

    def _placed(self, new: list[Event]) -> None:
        self.own += [event.decision_id for event in new]
        self.folded += [(event.decision_id, event.payload) for event in new]

    def _foreign(self, event: Event) -> None:
        assert event.seq == self.store.placed_position
        self.folded.append((event.decision_id, event.payload))

    async def reaches(self, seq: int) -> None:
        async with asyncio.timeout(20):
            while self.store.placed_position < seq:
                assert not self.following.done(), self.following
                await asyncio.sleep(0.005)


@pytest.fixture
async def join(valkey_server, tmp_path):
    members: list[Member] = []

    def join(url: str = valkey_server.url, **options: float) -> Member:
        members.append(Member(url, tmp_path.name, **options))
        return members[-1]

    yield join
    for member in members:
        await member.store.close()
        await asyncio.wait([member.following], timeout=10)
        assert member.following.done()


async def test_all_fold_one_order_their_own_events_included(join):
    members = [join() for _ in range(3)]

    async def write(member: Member, name: str) -> None:
        for step in range(60):
            future = member.append(events(f"{name}-{step}", 1 + step % 4))
            if step % 3 == 0:
                await future
                assert f"{name}-{step}-0" in member.own  # it resolves no sooner than it has its place

    await asyncio.gather(*(write(member, f"m{n}") for n, member in enumerate(members)))
    for member in members:
        await member.store.flush()
    total = 3 * sum(1 + step % 4 for step in range(60))
    for member in members:
        await member.reaches(total)
        assert (member.store.position, member.store.pending) == (total, 0)
    found = [(e.decision_id, e.payload) for e in members[0].store.read(0, 10_000)]
    assert [e.seq for e in members[0].store.read(0, 10_000)] == list(range(1, total + 1))
    assert all(member.folded == found for member in members)


async def test_of_two_who_say_they_are_first_one_is_and_the_other_finds_what_took_its_place(join):
    one, other = join(), join()
    first, second = one.append(events("x", 1, "feedback", 0)), other.append(events("x", 1, "feedback", 0))
    results = await asyncio.gather(first, second, return_exceptions=True)
    refused = [result for result in results if result is not None]
    assert [type(result) for result in refused] == [Superseded]
    assert refused[0].decision_id == "x-0"
    assert len(one.store.find("x-0")) == 1
    loser = one if results[0] is not None else other
    assert (loser.own, loser.folded, loser.store.placed_position) == ([], [("x-0", b"0")], 1)
    assert (loser.store.position, loser.store.pending) == (1, 0)
    await loser.append(events("x", 1, "feedback", 1))


async def test_of_an_append_all_events_are_taken_or_none(join):
    member = join()
    await member.append(events("a", 1, "feedback"))
    both = [Event("outcome", "b", 1.0, b""), *events("a", 1, "feedback", 0)]
    later = member.append(events("c", 2))
    with pytest.raises(Superseded):
        await member.append(both)
    await later
    within = [Event("feedback", "d", 1.0, b"", nth=nth) for nth in (0, 1)]
    await member.append(within)  # the call's own events count
    assert [e.decision_id for e in member.store.read(0, 10)] == ["a-0", "c-0", "c-1", "d", "d"]


async def test_what_is_committed_while_the_log_is_looked_at_is_not_taken_for_lost(join, monkeypatch):
    member = join()
    await member.append(events("a", 1))
    link, follower = member.store._link, member.store._link.follower

    class Late:
        async def ask(self, *command):
            if command[0] == "XREAD":
                return await follower.ask(*command)
            answer = await link.committer.ask(*command)
            await member.append(events("b", 1))
            return answer

    monkeypatch.setattr(link, "follower", Late())
    await member.store._check_log()
    monkeypatch.undo()
    assert (member.store.healthy, member.store.position) == (True, 2)


async def test_counters_go_with_what_is_appended_in_the_same_turn(join, valkey_server, tmp_path):
    member, client = join(), valkey_server.client()
    member.store.count([("team/a", "spent", 5, 4e9), ("team/a", "held:w", 2**53, 4e9)])
    future = member.append(events("x", 1))
    member.store.count([("team/a", "spent", -2, 4.1e9)])
    member.store.count([("much", "spent", 2**62, 4e9), ("much", "spent", 2**62, 4e9)])
    await future
    key = f"{{{tmp_path.name}}}:count:"
    assert client.hgetall(key + "team/a") == {b"spent": b"3", b"held:w": b"9007199254740992"}
    assert client.expiretime(key + "team/a") == 4_100_000_000  # as the last one said
    assert client.hgetall(key + "much") == {b"spent": b"9223372036854775807"}  # and no error of the whole batch
    client.close()


async def test_one_holds_a_role_until_it_leaves_and_messages_reach_the_others(join, valkey_server, tmp_path):
    one, other, heard = join(), join(), []
    assert await one.store.lease("leader", 30.0)
    assert not await other.store.lease("leader", 30.0)
    assert await one.store.lease("leader", 30.0)
    for name, member in (("one", one), ("other", other)):
        member.store.subscribe("word", lambda payload, name=name: heard.append((name, payload)))
    async with asyncio.timeout(20):
        while not heard:
            one.store.publish("word", b"\x00hello")
            await asyncio.sleep(0.02)
    assert set(heard) == {("other", b"\x00hello")}
    client, alive = valkey_server.client(), f"{{{tmp_path.name}}}:alive:{one.store.writer}"
    assert 0 < client.pttl(alive) <= 10_000
    await one.store.close()
    assert client.exists(alive) == 0
    client.close()
    assert await other.store.lease("leader", 30.0)


class Proxy:
    """Forwards a socket; with `cut`, the next thing that is said goes through and its answer never comes."""

    def __init__(self, target: Path, path: Path) -> None:
        self.target, self.path, self.url, self.cut, self.cuts = target, path, f"unix://{path}", False, 0

    @contextlib.asynccontextmanager
    async def running(self):
        async with await asyncio.start_unix_server(self._serve, self.path):
            yield self

    async def _serve(self, reader, writer):
        upstream, to_upstream = await asyncio.open_unix_connection(self.target)
        tasks = [
            asyncio.create_task(self._forward(reader, to_upstream, writer, says=True)),
            asyncio.create_task(self._forward(upstream, writer, to_upstream, says=False)),
        ]
        await asyncio.wait(tasks)

    async def _forward(self, source, sink, other, *, says):
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not says and self.cut and b"|" in data:  # the answer to a batch
                    self.cut, self.cuts = False, self.cuts + 1
                    break
                sink.write(data)
                await sink.drain()
        sink.close()
        other.close()


async def test_a_batch_whose_answer_was_lost_is_applied_once(join, valkey_server, tmp_path, loop_thread):
    with loop_thread.entered(Proxy(valkey_server.path, tmp_path / "p").running()) as proxy:  # opening blocks this loop
        member = join(proxy.url)
        for step in range(10):
            proxy.cut = True
            member.store.count([("c", "p", 1, 4e9)])
            await member.append(events(f"s{step}", 3))
            await member.store.flush()
        client = valkey_server.client()
        assert client.hgetall(f"{{{tmp_path.name}}}:count:c") == {b"p": b"10"}
        client.close()
        assert (proxy.cuts, member.store.position, member.store.pending) == (10, 30, 0)
        assert member.own == [f"s{step}-{n}" for step in range(10) for n in range(3)]
        await member.store.close()


async def test_a_server_killed_and_started_again_lost_nothing_acknowledged_and_took_nothing_twice(tmp_path):
    with ValkeyServer(tmp_path, durable=True) as server:
        members = [Member(server.url, "n", retry_s=20.0) for _ in range(2)]
        acknowledged: list[str] = []
        going = True

        async def write(member: Member, name: str) -> None:
            step = 0
            while going:
                await member.append(events(f"{name}-{step}", 2))
                acknowledged.extend([f"{name}-{step}-0", f"{name}-{step}-1"])
                step += 1

        writing = [asyncio.create_task(write(member, f"m{n}")) for n, member in enumerate(members)]
        for _ in range(3):
            await asyncio.sleep(0.2)
            server.kill()
            await asyncio.sleep(0.05)
            await asyncio.to_thread(server.start)
        going = False
        await asyncio.gather(*writing)
        found = [e.decision_id for e in members[0].store.read(0, 10**6)]
        assert sorted(found) == sorted(acknowledged)
        assert len(found) > 20
        for member in members:
            await member.reaches(len(found))
            assert [name for name, _ in member.folded] == found
            await member.store.close()
            await asyncio.wait([member.following], timeout=10)


async def test_who_reads_from_a_server_that_stands_still_is_told_as_soon_as_who_writes(tmp_path):
    """Not after as many attempts as there are to one that refuses: each of these takes its time."""
    with ValkeyServer(tmp_path) as server:
        store = ValkeyStore(server.url, name="n", retry_s=1.0, **QUICK)
        server.stand_still()
        async with asyncio.timeout(6):  # 21 attempts of half a second would be more
            with pytest.raises(StoreFailed):
                await asyncio.to_thread(store.read, 0, 1)
        server.go_on()
        assert store.read(0, 1) == []
        await store.close()


async def test_what_acts_on_an_event_can_look_things_up_while_the_server_is_started_again(tmp_path):
    """The process that could not would have to end, for a pause that all else outlives."""
    with ValkeyServer(tmp_path, durable=True) as server:
        writer, store = Member(server.url, "n", retry_s=20.0), ValkeyStore(server.url, name="n", retry_s=20.0, **QUICK)
        found: list[str] = []

        def foreign(event: Event) -> None:
            server.kill()
            starting = threading.Thread(target=lambda: (time.sleep(0.2), server.start()))
            starting.start()
            found.extend(e.decision_id for e in store.find(event.decision_id))
            starting.join()

        following = asyncio.create_task(store.follow(0, foreign))
        await writer.append(events("x", 1))
        await eventually(lambda: found or following.done())
        assert found == ["x-0"]
        for ending, task in ((writer.store, writer.following), (store, following)):
            await ending.close()
            await asyncio.wait([task], timeout=10)


async def test_a_server_that_comes_back_empty_fails_the_store(tmp_path):
    with ValkeyServer(tmp_path) as server:
        member = Member(server.url, "n", retry_s=20.0)
        await member.append(events("x", 3))
        server.kill()
        await asyncio.to_thread(server.start)
        with pytest.raises(StoreFailed, match="lost events"):
            await member.append(events("y", 1))
        with pytest.raises(StoreFailed, match="lost events"):
            await member.following
        assert not member.store.healthy
        await member.store.close()


async def test_a_server_that_stays_away_fails_all_who_wait(tmp_path):
    with ValkeyServer(tmp_path) as server:
        member = Member(server.url, "n", retry_s=0.3)
        await member.append(events("x", 1))
        server.kill()
        waiting = [member.append(events("y", 1)), member.store.save_snapshot(1, b"")]
        for future in waiting:
            with pytest.raises(StoreFailed):
                await future
        with pytest.raises(StoreFailed):
            await member.following
        with pytest.raises(StoreFailed):
            member.append(events("z", 1))
        with pytest.raises(StoreFailed):
            member.store.find("x-0")
        await member.store.close()


async def test_who_reads_too_late_is_told_that_events_are_gone(join):
    writer = join()
    await writer.append(events("x", 10))
    await writer.store.prune(1e9, 5, 100)
    late = join()
    late.following.cancel()
    await asyncio.wait([late.following])
    with pytest.raises(StoreFailed, match="events 1 to 5 were deleted before"):
        await late.store.follow(0, lambda _: None)


async def test_an_event_that_cannot_be_acted_upon_fails_the_store(join):
    """Its process would serve on, and learn nothing any more."""
    writer, other = join(), join()

    def unreadable(event: Event) -> None:
        raise LookupError(event.decision_id)

    other._foreign = unreadable
    other.following.cancel()
    await asyncio.wait([other.following])
    other.following = asyncio.create_task(other.store.follow(0, unreadable))
    await writer.append(events("x", 1))
    with pytest.raises(StoreFailed, match="x-0"):
        await other.following
    assert not other.store.healthy
    with pytest.raises(StoreFailed):
        other.append(events("y", 1))


async def test_who_waits_for_an_event_that_cannot_be_acted_upon_is_told(join):
    member = join()

    def unreadable() -> None:
        raise LookupError("of one's own")

    async with asyncio.timeout(10):
        await member.store.append(events("x", 1), unreadable)  # it is durable
        with pytest.raises(StoreFailed, match="of one's own"):
            await member.following
    assert not member.store.healthy


async def test_following_ends_when_it_is_cancelled_and_appends_go_on(join):
    member = join()
    await member.append(events("x", 1))
    member.following.cancel()
    await asyncio.wait([member.following], timeout=10)
    assert member.following.cancelled()
    await member.append(events("y", 1))
    assert (member.store.position, member.store.placed_position) == (2, 1)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("unix:///nowhere/s", "nowhere"),
        ("valkey://user:secr:et@127.0.0.1:1/0", "refused"),
        ("valkey://user:secr/et@127.0.0.1:x", "its address is none"),
        ("http://user:secret@127.0.0.1", "its address is none"),
    ],
)
async def test_an_address_that_does_not_serve_is_told_without_its_password(url, reason):
    with pytest.raises(StoreUnusable, match=reason) as told:
        ValkeyStore(url, retry_s=0.1)
    assert "secr" not in str(told.value)


async def test_another_layout_and_a_server_that_forgets_are_refused(tmp_path):
    with ValkeyServer(tmp_path, options=("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")) as server:
        with pytest.raises(StoreUnusable, match="maxmemory-policy to noeviction, it is allkeys-lru"):
            ValkeyStore(server.url)
        client = server.client()
        client.config_set("maxmemory-policy", "noeviction")
        client.hset("{other}:log", "version", "99")
        client.close()
        with pytest.raises(StoreUnusable, match="has layout 99 and this program knows 1"):
            ValkeyStore(server.url, name="other")
