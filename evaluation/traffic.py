"""Callers for a router: calls at random times through its HTTP API, and the graded quality of each answer, posted late.

Knows the wire (OpenAI's chat completions, `/reward`, the router's headers) and keeps nothing: what came of each call
goes to a function. Never knows what the answers are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
import numpy as np
import orjson

from bandit.errors import InvalidInput
from evaluation.answers import grade

__all__ = ["Answered", "Failure", "Traffic"]

MAX_UNDER_WAY: Final = 256
MAX_BATCH: Final = 500
BATCH_EVERY_S: Final = 0.1
GRADING_DELAY_S: Final = (0.2, 1.5)
CALL_TIMEOUT_S: Final = 30.0
LAST_ANSWERS_S: Final = 3.0
_ERROR_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Answered:
    """One call that was answered, as its caller saw it. Times in seconds of `time.monotonic`."""

    sent_at_s: float
    done_at_s: float
    text: str
    category: str
    model: str
    decision_id: str
    quality: float
    cost_usd: float | None

    @property
    def latency_s(self) -> float:
        """The whole call, the router's own part included."""
        return self.done_at_s - self.sent_at_s


@dataclass(frozen=True, slots=True)
class Failure:
    """A call or a batch of feedback that was refused, or got no usable answer."""

    at_s: float
    what: str


class Traffic:
    """Independent callers together: arrivals are a Poisson process of `rate` calls a second.

    At most MAX_UNDER_WAY calls wait at a time; a caller who comes then waits for a place. `prompt` draws a text and its
    category; what comes of each call goes to `tell`.
    """

    def __init__(
        self,
        base_url: str,
        prompt: Callable[[np.random.Generator], tuple[str, str]],
        tell: Callable[[Answered | Failure], None],
        *,
        rng: np.random.Generator,
        rate: float,
        pool: str = "auto",
    ) -> None:
        self._base_url, self._prompt, self._tell = base_url, prompt, tell
        self._rng, self._rate, self._pool = rng, rate, pool
        self._places = asyncio.Semaphore(MAX_UNDER_WAY)
        self._under_way: set[asyncio.Task[None]] = set()
        self._grades: list[tuple[float, str, float]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Call until `stop` is set; then wait a little for the last answers and post the last grades."""
        connector = aiohttp.TCPConnector(limit=MAX_UNDER_WAY + 8)
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            poster = asyncio.create_task(self._post_grades(session))
            try:
                await self._arrive(session, stop)
                if self._under_way:
                    await asyncio.wait(self._under_way, timeout=LAST_ANSWERS_S)
                await self._post_due(session, float("inf"))
            finally:
                for task in [poster, *self._under_way]:
                    task.cancel()
                await asyncio.gather(poster, *self._under_way, return_exceptions=True)

    async def _arrive(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        next_at_s = time.monotonic()
        while not stop.is_set():
            next_at_s += float(self._rng.exponential(1.0 / self._rate))
            wait_s = next_at_s - time.monotonic()
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), wait_s)
                    return
            await self._places.acquire()
            text, category = self._prompt(self._rng)
            delay_s = float(self._rng.uniform(*GRADING_DELAY_S))
            task = asyncio.create_task(self._call(session, text, category, delay_s))
            self._under_way.add(task)
            task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._places.release()

    async def _call(self, session: aiohttp.ClientSession, text: str, category: str, delay_s: float) -> None:
        body = orjson.dumps({"model": self._pool, "messages": [{"role": "user", "content": text}]})
        headers = {"Content-Type": "application/json"}
        if category:
            headers["x-pointsman-category"] = category
        sent_at_s = time.monotonic()
        try:
            url = f"{self._base_url}/v1/chat/completions"
            async with session.post(url, data=body, headers=headers) as response:
                raw = await response.read()
                done_at_s = time.monotonic()
                if response.status != 200:
                    self._fail(f"status {response.status}: {raw[:_ERROR_CHARACTERS].decode(errors='replace')}")
                    return
                answer, facts = orjson.loads(raw), response.headers
            quality = grade(answer["choices"][0]["message"]["content"])
            cost = facts.get("x-pointsman-cost-usd")
            decision_id, model = answer["id"], answer["model"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._fail(f"no answer: {error or type(error).__name__}")
            return
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, InvalidInput) as error:
            self._fail(f"an answer without a grade: {error}")
            return
        heapq.heappush(self._grades, (done_at_s + delay_s, decision_id, quality))
        cost_usd = None if cost is None else float(cost)
        self._tell(Answered(sent_at_s, done_at_s, text, category, model, decision_id, quality, cost_usd))

    async def _post_grades(self, session: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(BATCH_EVERY_S)
            await self._post_due(session, time.monotonic())

    async def _post_due(self, session: aiohttp.ClientSession, until_s: float) -> None:
        while self._grades and self._grades[0][0] <= until_s:
            batch: list[dict[str, str | float]] = []
            while self._grades and self._grades[0][0] <= until_s and len(batch) < MAX_BATCH:
                _, decision_id, quality = heapq.heappop(self._grades)
                batch.append({"decision_id": decision_id, "quality": quality})
            try:
                body, headers = orjson.dumps(batch), {"Content-Type": "application/json"}
                async with session.post(f"{self._base_url}/reward", data=body, headers=headers) as response:
                    raw = await response.read()
                    if response.status != 200 or orjson.loads(raw).get("refused"):
                        shown = raw[:_ERROR_CHARACTERS].decode(errors="replace")
                        self._fail(f"feedback refused, status {response.status}: {shown}")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._fail(f"feedback not taken: {error or type(error).__name__}")

    def _fail(self, what: str) -> None:
        self._tell(Failure(time.monotonic(), what))
