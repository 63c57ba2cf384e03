"""A steady load for end-to-end tests: so many calls a second, whatever became of those before, and what each got.

Every call carries its number as a tag, so that the service's log tells whether it was accepted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass(slots=True)
class Load:
    """`answered[n]`: the status of call n; `whole`: those of 200 with all of an answer; `lost[n]`: why none came."""

    answered: dict[int, int] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)
    said: dict[int, str] = field(default_factory=dict)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(self.answered.values())


async def steady_load(
    url: str, seconds: float, headers: Mapping[str, str], *, per_second: int = 200, bodies: list[dict[str, Any]]
) -> Load:
    """Make calls, each with the next of `bodies`, for some seconds; returns once all have ended."""
    load, loop = Load(), asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def call(n: int) -> None:
            body = bodies[n % len(bodies)]
            own = {**headers, "x-pointsman-tags": f"n={n}"}
            try:
                async with session.post(f"{url}/v1/chat/completions", json=body, headers=own) as response:
                    load.answered[n] = response.status
                    raw = await response.read()
            except (aiohttp.ClientError, OSError) as error:
                load.lost[n] = f"{type(error).__name__}: {error}"
                return
            end = b"data: [DONE]\n\n" if body.get("stream") else b"}"
            if load.answered[n] == 200 and raw.endswith(end):
                load.whole.add(n)
            else:
                load.said[n] = raw.decode()[-500:]

        began, calls = loop.time(), []
        for n in range(int(seconds * per_second)):
            await asyncio.sleep(max(0.0, began + n / per_second - loop.time()))
            calls.append(asyncio.create_task(call(n)))
        await asyncio.gather(*calls)
    return load


def accepted(events: list[dict[str, Any]]) -> dict[int, str]:
    """By its number, the decision of each call that the log has."""
    found = {}
    for event in events:
        if event["kind"] == "decision" and "n" in event["payload"]["tags"]:
            found[int(event["payload"]["tags"]["n"])] = event["decision_id"]
    return found
