"""More calls than places: who pays is served, who does not is told when to come back, nobody waits past its time."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
from aiohttp import web
from openai import AsyncOpenAI, InternalServerError

PAID, FREE = "key-of-a-paid-caller", "key-of-a-free-caller"
PLACES, QUEUE = 2, 4
LONG_S = 60.0


class Held:
    """An endpoint that answers nobody until it is let go; `asked` are the contents of the calls in their order."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []
        self.app = web.Application()
        self.app.router.add_post("/{tail:.*}", self.answer)

    async def answer(self, request):
        self.asked.append((await request.json())["messages"][0]["content"])
        while not self.go.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.005)
        choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return web.json_response(
            {"id": "up", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )


@pytest.fixture
def held(serve_in_thread):
    held = Held()
    with serve_in_thread(held.app) as held.url:
        yield held


@pytest.fixture
def serve(run_service, held, tmp_path):
    def serve(**overload):
        config = {
            "auth": {"keys": [{"key": PAID, "user": "p", "tier": "paid"}, {"key": FREE, "user": "f", "tier": "free"}]},
            "tiers": [{"name": "free", "priority": 0}, {"name": "paid", "priority": 10}],
            "models": [{"name": "only", "endpoint": f"{held.url}/v1"}],
            "pools": [{"name": "auto", "models": ["only"]}],
            "overload": {"queue_timeout_s": LONG_S, "max_retry_after_s": 7, **overload},
        }
        return run_service(config, tmp_path)

    return serve


class Callers:
    """Calls under way, by what they say; each counts as made once it runs or waits."""

    def __init__(self, service, http):
        self.service, self._http = service, http
        self.tasks: dict[str, asyncio.Task] = {}

    async def gate(self):
        async with self._http.get(f"{self.service.url}/metrics") as response:
            text = await response.text()
        found = dict(re.findall(r'pointsman_gate_calls\{state="(\w+)"\} ([\d.]+)', text))
        shed = re.findall(r'pointsman_gate_shed_total\{priority="(\d+)",why="(\w+)"\} ([\d.]+)', text)
        return float(found["running"]), float(found["waiting"]), {(int(p), why): float(n) for p, why, n in shed}

    async def until(self, running, waiting):
        async with asyncio.timeout(20):
            while (await self.gate())[:2] != (running, waiting):  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.01)

    def ask(self, said, key, **headers):
        async def ask():
            async with AsyncOpenAI(base_url=f"{self.service.url}/v1", api_key=key, max_retries=0) as client:
                message = {"role": "user", "content": said}
                return await client.chat.completions.create(model="auto", messages=[message], extra_headers=headers)

        self.tasks[said] = asyncio.create_task(ask())
        return self.tasks[said]


async def refusal(task):
    """The error of a call that was turned away; it says when to come back."""
    with pytest.raises(InternalServerError) as caught:
        await task
    assert caught.value.status_code == 503
    assert caught.value.code == "overloaded"
    assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 7
    return caught.value


async def test_paid_calls_all_succeed_while_free_ones_are_turned_away(serve, held, http):
    with serve(max_concurrent=PLACES, queue_size=QUEUE) as service:
        callers = Callers(service, http)
        first = [callers.ask(f"free {i}", FREE) for i in range(PLACES)]
        await callers.until(PLACES, 0)
        waiting = [callers.ask(f"waiting {i}", FREE) for i in range(QUEUE)]
        await callers.until(PLACES, QUEUE)
        await refusal(callers.ask("one too many", FREE))
        paid = [callers.ask(f"paid {i}", PAID) for i in range(QUEUE)]
        for task in waiting:
            await refusal(task)
        await callers.until(PLACES, QUEUE)
        await refusal(callers.ask("still too many", FREE))
        assert (await callers.gate())[2] == {(0, "full"): 2.0, (0, "displaced"): float(QUEUE)}
        held.go.set()
        for task in (*first, *paid):
            assert (await task).choices[0].message.content == "ok"
        await callers.until(0, 0)
        decisions = service.events("decision")
    assert len(decisions) == len(held.asked) == PLACES + QUEUE  # who was turned away left no trace


async def test_who_waits_is_served_by_priority_then_in_order_of_arrival(serve, held, http):
    with serve(max_concurrent=1, queue_size=10) as service:
        callers = Callers(service, http)
        order = [("first", FREE), ("free 1", FREE), ("paid 1", PAID), ("free 2", FREE), ("paid 2", PAID)]
        for number, (said, key) in enumerate(order):
            callers.ask(said, key)
            await callers.until(1, number)
        held.go.set()
        await asyncio.gather(*callers.tasks.values())
    assert held.asked == ["first", "paid 1", "paid 2", "free 1", "free 2"]


async def test_a_call_waits_no_longer_than_its_own_time(serve, held, http):
    """The place is held all the while: only the call's own time can have ended its waiting."""
    with serve(max_concurrent=1, queue_size=10) as service:
        callers = Callers(service, http)
        callers.ask("first", FREE)
        await callers.until(1, 0)
        await refusal(callers.ask("hurried", PAID, **{"x-pointsman-timeout-s": "0.2"}))
        assert (await callers.gate())[2] == {(10, "late"): 1.0}
        assert held.asked == ["first"]
        held.go.set()
        await callers.tasks["first"]


async def test_a_time_that_is_none_is_refused_though_there_is_no_place(serve, held, http):
    with serve(max_concurrent=1, queue_size=10) as service:
        callers = Callers(service, http)
        callers.ask("first", FREE)
        await callers.until(1, 0)
        headers = {"Authorization": f"Bearer {PAID}", "x-pointsman-timeout-s": "soon"}
        async with http.post(f"{service.url}/v1/chat/completions", json={}, headers=headers) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "x-pointsman-timeout-s"
        held.go.set()
        await callers.tasks["first"]


async def test_a_waiting_caller_who_goes_away_leaves_its_place_in_the_queue(serve, held, http):
    with serve(max_concurrent=1, queue_size=1) as service:
        callers = Callers(service, http)
        callers.ask("first", FREE)
        await callers.until(1, 0)
        callers.ask("gone", FREE)
        await callers.until(1, 1)
        callers.tasks.pop("gone").cancel()
        await callers.until(1, 0)
        callers.ask("second", FREE)
        await callers.until(1, 1)
        held.go.set()
        await asyncio.gather(*callers.tasks.values())
    assert held.asked == ["first", "second"]


async def test_a_burst_far_above_what_runs_at_once_is_served_by_a_paced_gate(serve, held, http):
    """200 calls at once with places and a queue for all of them: pace makes them wait, it turns nobody away."""
    held.go.set()
    with serve(queue_size=500) as service:
        callers = Callers(service, http)
        for i in range(200):
            callers.ask(f"call {i}", PAID if i % 4 == 0 else FREE)
        await asyncio.gather(*callers.tasks.values())
        assert (await callers.gate())[2] == {}
