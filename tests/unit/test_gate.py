"""The gate: who gets a place, who waits, who is turned away, and that nobody leaves a hole."""

from __future__ import annotations

import asyncio
import random

import pytest

from serving.errors import Overloaded
from serving.traffic.gate import Gate
from serving.traffic.overload_settings import OverloadSettings


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Callers:
    """Calls at a gate, by name: each holds its place until it is let go."""

    def __init__(self, *, rng: random.Random | None = None, **settings):
        self.clock, self.shed, self.served = Clock(), [], []
        given = {"adaptive": "off", "max_concurrent": 1, "queue_size": 3, "queue_timeout_s": 60.0} | settings
        self.gate = Gate(
            OverloadSettings(**given),
            clock=self.clock,
            rng=rng or random.Random(1),
            shed=lambda priority, why: self.shed.append((priority, why)),
        )
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, priority: int = 0, longest_s: float | None = None) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._call(name, priority, longest_s))
        await turns()
        return self.tasks[name]

    async def go(self, name: str) -> None:
        self._ends[name].set()
        await turns()

    async def _call(self, name: str, priority: int, longest_s: float | None) -> None:
        async with self.gate.entered(priority, longest_s):
            self.served.append(name)
            await self._ends[name].wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_beyond_the_limit_wait_their_turn():
    callers = Callers(max_concurrent=2)
    for name in "abcd":
        await callers.come(name)
    assert (callers.served, callers.gate.in_use, callers.gate.waiting) == (["a", "b"], 2, 2)
    await callers.go("b")
    assert (callers.served, callers.gate.in_use, callers.gate.waiting) == (["a", "b", "c"], 2, 1)
    for name in "acd":
        await callers.go(name)
    assert (callers.served, callers.gate.in_use, callers.gate.waiting) == (["a", "b", "c", "d"], 0, 0)


async def test_a_higher_priority_goes_first_and_in_order_of_arrival_within_one():
    callers = Callers(queue_size=10)
    await callers.come("first")
    for name, priority in (("free 1", 0), ("paid 1", 5), ("free 2", 0), ("top", 9), ("paid 2", 5)):
        await callers.come(name, priority)
    for name in ("first", "top", "paid 1", "paid 2", "free 1", "free 2"):
        assert callers.served[-1] == name
        await callers.go(name)


async def test_a_full_queue_turns_a_newcomer_away_at_once_with_a_time_to_come_back():
    callers = Callers(queue_size=1)
    await callers.come("a")
    await callers.come("b")
    task = await callers.come("c")
    error = task.exception()
    assert isinstance(error, Overloaded)
    assert 1 <= int(error.retry_after) <= 30
    assert callers.shed == [(0, "full")]


async def test_a_newcomer_that_outranks_takes_the_place_of_the_newest_of_the_lowest_priority():
    callers = Callers(queue_size=3)
    await callers.come("running")
    for name, priority in (("low 1", 1), ("low 2", 1), ("middle", 2)):
        await callers.come(name, priority)
    await callers.come("high", 3)
    assert callers.tasks["low 2"].exception() is not None
    assert callers.shed == [(1, "displaced")]
    same = await callers.come("another low", 1)
    assert isinstance(same.exception(), Overloaded)
    for name in ("running", "high", "middle", "low 1"):
        await callers.go(name)
    assert callers.served == ["running", "high", "middle", "low 1"]


async def test_a_waiter_is_told_when_its_time_is_over_and_leaves_no_hole():
    callers = Callers()
    await callers.come("a")
    late = await callers.come("late", longest_s=0.001)
    await callers.come("patient")
    with pytest.raises(Overloaded):
        await late
    assert callers.shed == [(0, "late")]
    assert callers.gate.waiting == 1
    await callers.go("a")
    assert callers.served == ["a", "patient"]


async def test_a_cancelled_waiter_leaves_no_hole():
    callers = Callers()
    await callers.come("a")
    gone = await callers.come("gone")
    await callers.come("b")
    gone.cancel()
    await turns()
    assert (callers.gate.waiting, callers.shed) == (1, [])
    await callers.go("a")
    assert callers.served == ["a", "b"]


async def test_a_place_that_comes_free_in_the_turn_in_which_a_waiter_goes_away_goes_to_the_next():
    callers = Callers()
    await callers.come("a")
    gone = await callers.come("gone")
    await callers.come("b")
    callers._ends["a"].set()
    gone.cancel()  # a leaves before gone's task has heard of it
    await turns()
    assert (callers.gate.in_use, callers.gate.waiting, callers.served) == (1, 0, ["a", "b"])
    await callers.go("b")
    assert callers.gate.in_use == 0


async def test_a_place_given_to_a_caller_who_goes_away_in_that_turn_goes_to_the_next():
    callers = Callers()
    await callers.come("a")
    gone = await callers.come("gone")
    await callers.come("b")
    callers._ends["a"].set()
    await asyncio.sleep(0)  # a leaves; its place is gone's, who has not heard of it yet
    assert (callers.gate.in_use, callers.gate.waiting, callers.served) == (1, 1, ["a"])
    gone.cancel()
    await turns()
    assert (callers.gate.in_use, callers.served) == (1, ["a", "b"])
    await callers.go("b")
    assert (callers.gate.in_use, callers.gate.waiting) == (0, 0)


async def test_a_call_that_fails_inside_gives_its_place_back():
    gate = Callers().gate
    with pytest.raises(ZeroDivisionError):
        async with gate.entered(0):
            raise ZeroDivisionError
    assert gate.in_use == 0


async def test_who_waits_behind_a_standing_queue_waits_the_shorter_time():
    """The queue of priority 0 has not been empty for its timeout; that of priority 5 has only begun."""
    callers = Callers(queue_timeout_s=10.0, standing_timeout_s=0.001)
    await callers.come("running")
    await callers.come("old")
    callers.clock.now += 10.5
    late = await callers.come("late")
    paid = await callers.come("paid", 5)
    with pytest.raises(Overloaded):
        await late
    assert not paid.done()
    assert callers.shed == [(0, "late")]


async def test_the_time_to_come_back_follows_how_fast_places_come_free():
    """Ten calls end 2 s apart with eight still waiting: (8 + 1) x 2 = 18 s, times 1 for the lowest jitter."""

    class Least(random.Random):
        def random(self) -> float:
            return 0.0

    callers = Callers(rng=Least(), queue_size=8, max_retry_after_s=100.0)
    await callers.come("0")
    for i in range(1, 9):
        await callers.come(str(i))
    for i in range(10):
        callers.clock.now += 2.0
        await callers.go(str(i))
        await callers.come(str(i + 9))
    error = (await callers.come("one too many")).exception()
    assert isinstance(error, Overloaded)
    assert error.retry_after == "18"


async def test_the_time_to_come_back_is_bounded():
    class Most(random.Random):
        def random(self) -> float:
            return 0.999

    callers = Callers(rng=Most(), queue_size=2, max_retry_after_s=5.0)
    for name in "abc":
        await callers.come(name)
    await callers.go("a")
    await callers.come("x")
    callers.clock.now += 1000.0
    callers.clock.now += 1000.0
    await callers.go("b")
    await callers.come("d")
    assert (await callers.come("e")).exception().retry_after == "5"


async def test_no_queue_at_all_is_allowed():
    callers = Callers(queue_size=0)
    await callers.come("a")
    assert isinstance((await callers.come("b", 9)).exception(), Overloaded)


async def test_many_callers_who_come_wait_and_go_away_leave_the_gate_empty():
    """300 calls of three priorities, a third of them cancelled at a random time, over two places."""
    rng = random.Random(7)
    callers = Callers(max_concurrent=2, queue_size=20)
    for i in range(300):
        await callers.come(str(i), rng.randrange(3))
        if rng.random() < 0.3:
            callers.tasks[str(rng.randrange(i + 1))].cancel()
        if rng.random() < 0.8:
            await callers.go(str(rng.randrange(i + 1)))
        assert callers.gate.in_use <= 2
        assert callers.gate.waiting <= 20
        assert callers.gate.waiting == 0 or callers.gate.in_use == 2
    for i in range(300):
        await callers.go(str(i))
    await asyncio.gather(*callers.tasks.values(), return_exceptions=True)
    assert (callers.gate.in_use, callers.gate.waiting) == (0, 0)


async def test_an_adaptive_gate_sleeps_while_nobody_calls(wait_until):
    callers = Callers(adaptive="pace", max_concurrent=50)
    await callers.come("a")
    assert callers.gate._watch is not None
    await callers.go("a")
    await wait_until(lambda: callers.gate._watch is None)
    callers.gate.close()


class BusyLoop(Callers):
    """A paced gate under a loop that is busy; at every look, its turns have taken what the test says."""

    def __init__(self, **settings):
        super().__init__(**{"adaptive": "pace", "max_concurrent": 1000, "queue_size": 1000, **settings})
        self.turn_s = 0.01
        self.gate._clock = self._tick

    def _tick(self) -> float:
        self.clock.now += self.turn_s
        return self.clock.now

    async def busy(self) -> BusyLoop:
        """The loop is busy, and a call of priority 5 runs."""
        await self.come("running", 5)
        async with asyncio.timeout(10):
            while self.gate.pace.busy_share < 0.9:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)
        return self


async def test_while_the_loop_is_busy_the_lowest_wait_and_the_highest_pass():
    callers = await BusyLoop().busy()
    await callers.come("free")
    await callers.come("paid", 5)
    assert callers.served == ["running", "paid"]
    assert (callers.gate.in_use, callers.gate.waiting) == (2, 1)
    callers.gate.close()


async def test_who_waits_for_the_loop_begins_when_it_has_nothing_else_to_do(wait_until):
    callers = await BusyLoop().busy()
    names = [f"free {i}" for i in range(50)]
    for name in names:
        await callers.come(name)
    assert callers.gate.waiting == 50
    callers.turn_s = 0.00002
    await wait_until(lambda: callers.gate.waiting == 0)
    assert callers.served == ["running", *names]
    callers.gate.close()


async def test_calls_that_keep_coming_do_not_put_off_the_look_for_which_they_wait():
    """Each comes in a turn of its own, from a task that was ready before the look."""
    callers = await BusyLoop().busy()
    callers.turn_s = 0.00002
    for i in range(1000):
        callers._ends[str(i)] = asyncio.Event()
        callers.tasks[str(i)] = asyncio.create_task(callers._call(str(i), 0, None))
        await asyncio.sleep(0)
    assert len(callers.served) > 100
    callers.gate.close()


async def test_on_a_busy_loop_nobody_waits_where_all_are_alike_or_the_higher_ones_have_long_gone():
    callers = await BusyLoop().busy()
    await callers.come("yields")
    assert callers.gate.waiting == 1
    callers.clock.now += 11.0
    await callers.come("alike")
    await callers.come("alike, too")
    assert callers.served[-1] == "alike, too"
    callers.gate.close()


async def test_a_paced_gate_holds_nobody_up_while_the_loop_has_time():
    callers = BusyLoop()
    callers.turn_s = 0.0
    for i in range(100):
        await callers.come(str(i))
    assert (callers.gate.in_use, callers.gate.waiting) == (100, 0)
    callers.gate.close()


async def test_behind_a_standing_queue_too_long_for_its_time_a_newcomer_is_told_at_once():
    """Places come free 2 s apart and three wait: the fourth would have its turn after 6 s, and may wait 5 s."""
    callers = Callers(queue_size=10, queue_timeout_s=10.0, standing_timeout_s=5.0)
    for name in ("running", "a", "b", "c", "d", "e"):
        await callers.come(name)
    for name in ("running", "a", "b"):
        callers.clock.now += 2.0
        await callers.go(name)
    callers.clock.now += 5.0
    await callers.come("f")
    assert (callers.gate.waiting, callers.shed) == (3, [])
    error = (await callers.come("g")).exception()
    assert isinstance(error, Overloaded)
    assert (callers.gate.waiting, callers.shed) == (3, [(0, "full")])
