"""Graded benchmark answers, as `POST /admin/benchmarks` brings them: each is recorded once, whoever sends it how often.

Checks a post whole before any of it is recorded; what is acknowledged is durable. Knows nothing of suites or graders:
an answer comes with its grade. What a grade teaches is the library's to know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from serving.bodies import Body, Cost, Quality, Seconds, Tokens, validated
from serving.errors import UnknownModel
from serving.learner import Learner
from serving.metrics import Metrics
from serving.records import BenchmarkResult, benchmark_event
from serving.store import Store, Superseded

__all__ = ["BenchmarkDesk", "BenchmarkPost", "Recorded", "parse_results"]

_MAX_RESULTS = 1_000
_AT_ONCE = 8  # results between two turns of the event loop: about 2 ms for two pools


def _printable(value: str) -> str:
    if not value.isprintable():
        raise PydanticCustomError("printable", "must have no control characters")
    return value


Label = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
ShortLabel = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]


class BenchmarkItem(Body):
    item_id: Label
    model: Label
    category: ShortLabel | None = None
    quality: Quality | None = None
    latency_s: Seconds | None = None
    cost_usd: Cost | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    error: ShortLabel | None = None

    @model_validator(mode="after")
    def _graded_or_failed(self) -> BenchmarkItem:
        if (self.quality is None) == (self.error is None):
            raise PydanticCustomError("one_of", "give either quality or error")
        return self


class BenchmarkPost(Body):
    """The body of `POST /admin/benchmarks`."""

    suite: Label
    run: Label
    results: Annotated[list[BenchmarkItem], Field(min_length=1, max_length=_MAX_RESULTS)]


_post = TypeAdapter(BenchmarkPost)


def parse_results(body: Any) -> list[BenchmarkResult]:
    """The results of one post; raises InvalidFields with every problem's path."""
    post: BenchmarkPost = validated(_post, body)
    return [BenchmarkResult(suite=post.suite, run=post.run, **dict(result)) for result in post.results]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a post's results: how many are new, and how many were recorded before."""

    recorded: int
    duplicates: int


class BenchmarkDesk:
    """Records benchmark results, and knows again what it has recorded for as long as the store keeps it."""

    def __init__(self, learner: Learner, store: Store, metrics: Metrics) -> None:
        self._learner, self._store, self._metrics = learner, store, metrics
        # Recorded but not yet durable, by key: a duplicate must find it, and wait for the same write.
        self._unsettled: dict[str, asyncio.Future[None]] = {}

    async def accept(self, results: Sequence[BenchmarkResult], now: float) -> Recorded:
        """Record what is new; all of it, and what it repeats, is durable on return.

        Raises UnknownModel, and then nothing is recorded; StoreError or Unavailable, after which what was not recorded
        is new when it is sent again.
        """
        names = self._learner.roster.names
        for i, result in enumerate(results):
            if result.model not in names:
                raise UnknownModel(result.model, names, f"results[{i}].model")
        recorded, waiting = 0, set()
        for i, result in enumerate(results, 1):
            durable, new = self._take(result, now)
            recorded += new
            if durable is not None:
                waiting.add(durable)
            if i % _AT_ONCE == 0:
                await asyncio.sleep(0)
        for written in waiting:
            try:
                await asyncio.shield(written)  # others may wait for it, too
            except Superseded:  # another process has recorded the same
                recorded -= 1
        return Recorded(recorded, len(results) - recorded)

    def _take(self, result: BenchmarkResult, now: float) -> tuple[asyncio.Future[None] | None, bool]:
        """(what to wait for, whether it is new); nothing to wait for where it has long been durable."""
        key, status = result.key, "duplicate"
        durable = self._unsettled.get(key)
        if durable is None and not self._store.find(key):
            durable = self._learner.record([benchmark_event(result, now)])
            self._unsettled[key] = durable
            durable.add_done_callback(lambda done: self._settle(key, done))
            status = "graded" if result.error is None else "failed"
        self._metrics.benchmark_results.labels(result.model, status).inc()
        return durable, status != "duplicate"

    def _settle(self, key: str, durable: asyncio.Future[None]) -> None:
        del self._unsettled[key]
        if not durable.cancelled():
            durable.exception()  # whoever waits is told; it is not lost where nobody does any more
