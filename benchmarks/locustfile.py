"""A load of your own against a running Pointsman: chat, streamed chat, embeddings, and feedback that comes later.

    pip install '.[bench]'
    locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8080 --users 50 --spawn-rate 50 --run-time 30s
        --call-rate 40 [--pool auto] [--embeddings-pool NAME] [--reward-delay 2]

Run it in the checkout's folder, as one process. Calls come at `--call-rate` in all, as Poisson arrivals, whatever the
answers take; users are only how many may be under way at once. At the end it says what was asked for, what was
achieved, and whether callers were late (`benchmarks.pacing`). POINTSMAN_KEY is the key sent. Feedback is random, so use
a pool that may learn nonsense, such as the demo's. Only for services on your own machine.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from typing import Any

import gevent
from locust import HttpUser, events, task

from benchmarks.pacing import Pace

_CATEGORIES = ("math", "code", "chat", "extraction")
_GRADED = 0.8  # share of answers that get feedback
_MAX_UNGRADED = 10_000  # of one user
_MAX_BATCH = 1_000  # what /reward takes
_PACE: list[Pace] = []  # of this process: the first user of a test begins it


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--call-rate", type=float, default=20.0, help="Calls a second, of all users together")
    parser.add_argument("--pool", default="auto", help="Whom chat is sent to: a pool, or one model")
    parser.add_argument("--embeddings-pool", default="", help="Whom embeddings are sent to; none without it")
    parser.add_argument("--reward-delay", type=float, default=2.0, help="Mean seconds from an answer to its feedback")


@events.test_start.add_listener
def _begin(**_: Any) -> None:
    _PACE.clear()


@events.test_stop.add_listener
def _tell(**_: Any) -> None:
    for pace in _PACE:
        print("\n".join(pace.report(time.monotonic())), flush=True)


class Caller(HttpUser):
    """One caller: takes the next call that is due, makes it, and grades most answers a while later."""

    def on_start(self) -> None:
        """The key, the feedback's own task, and the first call's due time."""
        self.options = self.environment.parsed_options
        if key := os.environ.get("POINTSMAN_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"
        self.ungraded: deque[tuple[float, str]] = deque(maxlen=_MAX_UNGRADED)
        self.grading = gevent.spawn(self._grade)
        if not _PACE:
            _PACE.append(Pace(self.options.call_rate, time.monotonic(), random.Random(0)))
        gevent.sleep(self.wait_time())

    def on_stop(self) -> None:
        """Feedback still to come is not sent."""
        self.grading.kill()

    def wait_time(self) -> float:
        """Seconds until the next call of all users is due; none if this user was too busy to be in time."""
        self.due = _PACE[0].due()
        return max(0.0, self.due - time.monotonic())

    @task(6)
    def chat(self) -> None:
        """An ordinary call."""
        self._ask("/v1/chat/completions", "chat", self._chat(stream=False))

    @task(2)
    def streamed_chat(self) -> None:
        """A streamed call, read to its end; its first event is an entry of its own."""
        _PACE[0].sent(self.due, time.monotonic())
        begun, last = time.perf_counter(), b""
        with self.client.post(
            "/v1/chat/completions",
            json=self._chat(stream=True),
            headers=self._headers(),
            name="chat, streamed",
            stream=True,
            catch_response=True,
        ) as response:
            for line in response.iter_lines():
                if line and not last:
                    self._first_event((time.perf_counter() - begun) * 1e3)
                last = line or last
            response.request_meta["response_time"] = (time.perf_counter() - begun) * 1e3
            if response.ok and last != b"data: [DONE]":
                response.failure("the stream ended early")
            elif response.ok:
                self._will_grade(response)

    @task(2)
    def embeddings(self) -> None:
        """Two texts; an ordinary call instead where nobody makes embeddings."""
        if self.options.embeddings_pool:
            body = {"model": self.options.embeddings_pool, "input": ["the valley line", "the mountain line"]}
            self._ask("/v1/embeddings", "embeddings", body)
        else:
            self.chat()

    def _ask(self, path: str, name: str, body: dict[str, Any]) -> None:
        _PACE[0].sent(self.due, time.monotonic())
        with self.client.post(path, json=body, headers=self._headers(), name=name, catch_response=True) as response:
            if response.ok:
                self._will_grade(response)

    def _chat(self, *, stream: bool) -> dict[str, Any]:
        self.category = random.choice(_CATEGORIES)
        question = f"[{self.category}] Why do trains in the mountains run on rack rails?"
        return {"model": self.options.pool, "stream": stream, "messages": [{"role": "user", "content": question}]}

    def _headers(self) -> dict[str, str]:
        return {"x-pointsman-category": getattr(self, "category", _CATEGORIES[0])}

    def _first_event(self, took_ms: float) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name="chat, first event",
            response_time=took_ms,
            response_length=0,
            exception=None,
            context={},
        )

    def _will_grade(self, response: Any) -> None:
        if random.random() < _GRADED:
            due = time.monotonic() + random.expovariate(1 / self.options.reward_delay)
            self.ungraded.append((due, response.headers["x-pointsman-decision-id"]))

    def _grade(self) -> None:
        """Post the feedback that is due, once every half second."""
        while True:
            gevent.sleep(0.5)
            now = time.monotonic()
            batch = [decision for at, decision in self.ungraded if at <= now][:_MAX_BATCH]
            if batch:
                done = set(batch)
                self.ungraded = deque((each for each in self.ungraded if each[1] not in done), _MAX_UNGRADED)
                items = [{"decision_id": decision, "quality": random.random()} for decision in batch]
                self.client.post("/reward", json=items, name="reward")
