"""The soak's callers: so many calls with what follows them, and what they noticed.

Of a hundred calls ten are streams and one is refused by the upstream; of those answered, seventy-six are graded at
once, ten late, eight twice (the second replaces the first), six never. What each call is follows from its number.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import time
from array import array
from collections.abc import Iterator

import aiohttp
import orjson

from benchmarks.soak_upstream import REFUSED

__all__ = ["Callers"]

_QUESTION = "Why do trains in the mountains run on rack rails, and since when? "
_CATEGORIES = ("facts", "math", "code", "chat")
_MOST_UNDER_WAY = 256  # at a stated rate; beyond it the rate is not kept, and says so
_LATE_POSTERS = 2


class Callers:
    """Calls the service at `url` with `key`, `concurrency` at a time, or `rate` a second where it is not 0.

    `latencies_s` and `overheads_ms` have one value for each answered call, in order; `statuses` counts all answers,
    by kind; `late_s` is how long late feedback waits, about.
    """

    def __init__(self, url: str, key: str, *, concurrency: int, rate: float, late_s: float) -> None:
        self._url, self._late_s, self._rate = url, late_s, rate
        self._concurrency = _MOST_UNDER_WAY if rate else concurrency
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._late: collections.deque[tuple[float, bytes]] = collections.deque()
        self._stop = False
        self.latencies_s, self.overheads_ms = array("f"), array("f")
        self.statuses: collections.Counter[str] = collections.Counter()
        self.done = 0

    def stop(self) -> None:
        """Begin no more calls."""
        self._stop = True

    async def run(self, calls: int) -> None:
        """Until so many calls are done, or `stop`; late feedback is posted to the end, early at the end."""
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers) as session:
            numbers, begun = iter(range(calls)), time.perf_counter()
            posters = [asyncio.create_task(self._post_late(session)) for _ in range(_LATE_POSTERS)]
            await asyncio.gather(*(self._caller(session, numbers, begun) for _ in range(self._concurrency)))
            self._stop = True
            await asyncio.gather(*posters)

    async def _caller(self, session: aiohttp.ClientSession, numbers: Iterator[int], begun: float) -> None:
        for number in numbers:
            if self._rate:
                await asyncio.sleep(max(0.0, begun + number / self._rate - time.perf_counter()))
            if self._stop:
                return
            try:
                await self._call(session, number)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.statuses[f"call: {type(error).__name__}"] += 1
            self.done += 1

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        kind = number * 37 % 100  # all kinds among any hundred in a row
        refused, stream = kind == 0, kind % 10 == 7
        text = REFUSED if refused else _QUESTION * (1 + number % 5)
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], "stream": stream}
        begun = time.perf_counter()
        headers = {"x-pointsman-category": _CATEGORIES[number % 4]}
        path = f"{self._url}/v1/chat/completions"
        async with session.post(path, data=orjson.dumps(body), headers=headers) as response:
            await response.read()
            took_s = time.perf_counter() - begun
            self.statuses[f"call: {response.status}{' refused' if refused else ''}"] += 1
            if response.status != 200:
                return
            self.latencies_s.append(took_s)
            self.overheads_ms.append(float(response.headers.get("x-pointsman-overhead-ms", "nan")))
            decision_id = response.headers["x-pointsman-decision-id"]
        await self._grade(session, decision_id, number)

    async def _grade(self, session: aiohttp.ClientSession, decision_id: str, number: int) -> None:
        fate = number * 41 % 50
        item = {"decision_id": decision_id, "quality": float(number % 10 > 1)}
        if fate < 5:
            self._late.append((time.perf_counter() + self._late_s * (0.5 + number % 7 / 7), orjson.dumps(item)))
        elif fate >= 8:
            await self._post(session, orjson.dumps(item), "graded")
            if fate >= 46:
                await self._post(session, orjson.dumps(item | {"quality": 0.5, "revise": True}), "revised")

    async def _post_late(self, session: aiohttp.ClientSession) -> None:
        while self._late or not self._stop:
            if not self._late or (self._late[0][0] > time.perf_counter() and not self._stop):
                await asyncio.sleep(0.05)
                continue
            _, item = self._late.popleft()
            await self._post(session, item, "graded late")

    async def _post(self, session: aiohttp.ClientSession, item: bytes, what: str) -> None:
        try:
            async with session.post(f"{self._url}/reward", data=item) as response:
                await response.read()
                self.statuses[f"{what}: {response.status}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.statuses[f"{what}: {type(error).__name__}"] += 1


def unexpected(statuses: dict[str, int]) -> dict[str, int]:
    """The answers that should not have been: all but 200, and 400 where the upstream refused."""
    good = ("call: 200", "call: 400 refused", "graded: 200", "graded late: 200", "revised: 200")
    return dict(itertools.filterfalse(lambda entry: entry[0] in good, statuses.items()))
