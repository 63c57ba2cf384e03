"""One item, one model: asked with patience, and graded, by a judge where the item has one.

Owns retries, waits and what counts as a failure of the model, of the grading or of the service. Knows nothing of
budgets, of other items, or of what becomes of a result.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from evaluation.benchmark_client import Answered, CallFailed, ServiceClient
from evaluation.benchmark_state import Result
from evaluation.grades import Grade, Grading, GradingFailed, Message
from evaluation.judge import Judge
from evaluation.suites import Item

__all__ = ["GRADING_LIMIT_S", "Asking", "Dropped", "ServiceGone", "patiently"]

GONE_ATTEMPTS: Final = 6
"""Attempts, over about 15 s, until a service that nobody answers at is taken to be gone."""
BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
MAX_RETRY_AFTER_S: Final = 60.0
GRADING_LIMIT_S: Final = 60.0
"""Time that a function or schema of the suite's author gets for one answer."""

T = TypeVar("T")


class Dropped(Exception):
    """The run was stopped while this call waited for its next attempt."""


class ServiceGone(Exception):
    """Nobody answers at the service's address any more."""


class Asking:
    """Asks and grades. `stop` ends every wait for a next attempt; `tags` go with each call, for the service's log.

    `unpriced`: models (or judges) that answered without a known cost.
    """

    def __init__(self, client: ServiceClient, *, retries: int, stop: asyncio.Event, tags: str) -> None:
        self._client, self._retries, self._stop, self._tags = client, retries, stop, tags
        self.unpriced: set[str] = set()

    async def answer(self, model: str, item: Item) -> Answered:
        """What the model answers. Raises CallFailed after the last attempt, Dropped, ServiceGone and Unusable."""
        headers = {"x-pointsman-tags": self._tags}
        if item.category is not None:
            headers["x-pointsman-category"] = item.category
        body = {"model": model, **item.body}
        return await self._complete(body, headers)

    async def graded(self, item: Item, result: Result, message: Message) -> Result:
        """`result` with the grade of `message`, or ungraded, with the message kept.

        Raises ServiceGone and Unusable, where a judge had to be asked.
        """
        kept = replace(result, status="ungraded", message=message.to_json())
        judge = item.judge
        try:
            if judge is not None:
                return await self._judged(judge, item, result, message)
            grade = await self._grade(item, message)
        except GradingFailed as error:
            return replace(kept, error="grading_failed", reason=str(error))
        except _JudgeFailed as failed:
            cost_usd = result.judge_cost_usd + failed.cost_usd
            return replace(kept, error="judge_failed", reason=str(failed), judge_cost_usd=cost_usd)
        except Dropped:
            return replace(kept, error="judge_failed", reason="the run was stopped")
        return _with(result, grade)

    async def _complete(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answered:
        answered = await patiently(lambda: self._client.complete(body, headers), self._retries + 1, self._stop)
        if answered.cost_usd is None:
            self.unpriced.add(str(body["model"]))
        return answered

    async def _judged(self, judge: Judge, item: Item, result: Result, message: Message) -> Result:
        body = judge.question(item.body["messages"], item.answer, message)
        headers = {"x-pointsman-tags": self._tags}
        try:
            said = await self._complete(body, headers)
        except CallFailed as error:
            raise _JudgeFailed(f"the judge {judge.model} did not answer: {error}", 0.0) from None
        cost_usd = said.cost_usd or 0.0
        try:
            grade = judge.verdict(said.message)
        except GradingFailed as error:
            raise _JudgeFailed(str(error), cost_usd) from None
        return _with(replace(result, judge_cost_usd=result.judge_cost_usd + cost_usd), grade)

    async def _grade(self, item: Item, message: Message) -> Grade:
        grading = item.grading
        if grading is None:
            raise GradingFailed("nobody grades this item")
        if not item.may_block:
            return grading(message)
        try:
            async with asyncio.timeout(GRADING_LIMIT_S):
                return await _in_thread(grading, message)
        except TimeoutError:
            raise GradingFailed(f"grading took more than {GRADING_LIMIT_S:g} s") from None


class _JudgeFailed(Exception):
    def __init__(self, message: str, cost_usd: float) -> None:
        super().__init__(message)
        self.cost_usd = cost_usd


async def patiently(attempt: Callable[[], Awaitable[T]], attempts: int, stop: asyncio.Event) -> T:
    """What `attempt` yields, tried up to `attempts` times, with growing waits, or as long as the service asks for.

    Nobody there is tried GONE_ATTEMPTS times. Raises the last CallFailed, ServiceGone, or Dropped when `stop` is set.
    """
    tried = 0
    while True:
        tried += 1
        try:
            return await attempt()
        except CallFailed as error:
            if error.gone and tried >= GONE_ATTEMPTS:
                raise ServiceGone(str(error)) from None
            if not error.gone and (not error.passing or tried >= attempts):
                raise
            wait_s = min(BACKOFF_S * 2 ** (tried - 1), MAX_BACKOFF_S) * random.uniform(0.5, 1.0)
            if error.retry_after_s is not None:
                wait_s = min(error.retry_after_s, MAX_RETRY_AFTER_S)
        try:
            async with asyncio.timeout(wait_s):
                await stop.wait()
        except TimeoutError:
            continue
        raise Dropped


async def _in_thread(grading: Grading, message: Message) -> Grade:
    """As `asyncio.to_thread`, in a thread that does not keep the program from ending should it never return."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Grade] = loop.create_future()

    def tell(outcome: Any) -> None:
        if future.done():
            return
        if isinstance(outcome, Grade):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    def work() -> None:
        try:
            outcome: Any = grading(message)
        except GradingFailed as error:
            outcome = error
        except Exception as error:  # a thread's boundary: the loop has to be told  # noqa: BLE001
            outcome = GradingFailed(f"{type(error).__name__}: {error}")
        loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=work, name="grading", daemon=True).start()
    return await future


def _with(result: Result, grade: Grade) -> Result:
    return replace(result, status="graded", quality=grade.quality, reason=grade.reason, error=None, message=None)
