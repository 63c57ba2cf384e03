"""A run of `evaluate`: every item to every model, in an order that keeps the models equally far, within a budget.

Owns what is asked next, when to stop, and what is posted when. How one item is asked and graded is
`benchmark_asking`'s, what is kept is `benchmark_state`'s. Never prints.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

import numpy as np

from evaluation.benchmark_asking import Asking, Dropped, ServiceGone, patiently
from evaluation.benchmark_budget import Budget
from evaluation.benchmark_client import CallFailed, ServiceClient, Unusable
from evaluation.benchmark_state import Result, StateFile
from evaluation.grades import Message
from evaluation.suites import Item, Suite

__all__ = ["ERRORS_IN_A_ROW", "Benchmark", "Ending", "Plan", "chosen_items"]

ERRORS_IN_A_ROW: Final = 10
"""Failed items in a row after which the rest of a model's items are left out; likewise for gradings by judges."""
POST_EVERY_S: Final = 1.0
POST_BATCH: Final = 200
POST_ATTEMPTS: Final = 4
GRACE_S: Final = 10.0
"""How long calls under way may take to end once the run is to stop: they are being paid for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: the items in the order they are asked, the models, and the bounds."""

    suite: Suite
    items: tuple[Item, ...]
    models: tuple[str, ...]
    concurrency: int
    retries: int
    budget_usd: float | None


@dataclass(slots=True)
class Ending:
    """How a run ended.

    `trouble`: what ended all of it, with the exit code that says so. `failing`: models given up, and why. `left_out`:
    items not done, over all models. `unposted`: results that the service has not acknowledged.
    """

    reason: Literal["complete", "stopped", "budget", "trouble"] = "complete"
    trouble: str | None = None
    exit_code: int = 0
    failing: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    unposted: int = 0
    post_problem: str | None = None


def chosen_items(suite: Suite, sample: int | None, seed: int) -> tuple[Item, ...]:
    """All items, or `sample` of them, shuffled by `seed`: whatever a run has done when it stops is a fair sample.

    A smaller sample of the same seed is the beginning of a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(suite))
    return tuple(suite.items[i] for i in order[: len(suite) if sample is None else sample])


class Benchmark:
    """One run over `client` and `state`. `tell` is called after every result."""

    def __init__(self, plan: Plan, client: ServiceClient, state: StateFile) -> None:
        self._plan, self._client, self._state = plan, client, state
        self.tell: Callable[[Result], None] = lambda _: None
        self._stop, self._drop, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        tags = f"benchmark_run={state.header.run}"
        self._asking = Asking(client, retries=plan.retries, stop=self._stop, tags=tags)
        self._under_way, self._judge_errors, self._refused = 0, 0, 0
        self._errors: Counter[str] = Counter()
        self._ending = Ending()
        self.budget = Budget(plan.budget_usd)
        for result in state.results.values():
            self.budget.add(result.model, None if result.cost_usd is None else result.known_cost_usd)
        # A graded answer stands, and what was posted does; a failed item is asked again, a kept answer graded again.
        graded = {key for key, result in state.results.items() if result.status == "graded"}
        self._settled = graded | state.posted
        self._waiting = deque(key for key in state.results if key in graded - state.posted)
        every = [(model, item) for item in plan.items for model in plan.models]
        self._jobs = deque((model, item) for model, item in every if (model, item.id) not in self._settled)
        self.total = len(every)

    @property
    def done(self) -> int:
        """How many of `total` have a result that stands."""
        return len(self._settled)

    @property
    def failing(self) -> dict[str, str]:
        """Models given up so far, and why."""
        return self._ending.failing

    def stop(self) -> None:
        """Start nothing more and end in order; a second time: drop what is under way."""
        if self._stop.is_set():
            self._drop.set()
        self._end("stopped")

    async def run(self) -> Ending:
        """Ask, grade and post until all is done or the run is to stop; what befalls a call is told, not raised."""
        workers = [asyncio.create_task(self._work()) for _ in range(self._plan.concurrency)]
        poster = asyncio.create_task(self._post_on())
        waits = [asyncio.create_task(event.wait()) for event in (self._stop, self._drop)]
        everything = asyncio.create_task(asyncio.wait(workers))
        try:
            await asyncio.wait([everything, waits[0]], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([everything, waits[1]], timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [*workers, poster, *waits, everything]
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome  # a mistake of ours: what can befall a call was dealt with
        await self._conclude()
        return self._ending

    async def _work(self) -> None:
        while (job := await self._next()) is not None:
            model, item = job
            cost_usd: float | None = None
            try:
                cost_usd = await self._one(model, item)
            except Dropped:
                pass
            except ServiceGone as error:
                self._drop.set()  # it was waited for long enough
                self._give_up(f"the service does not answer any more: {error}", exit_code=1)
            except Unusable as error:
                self._give_up(str(error), exit_code=2)
            finally:
                self._under_way -= 1
                self.budget.end(model, cost_usd)
                self._changed.set()

    async def _next(self) -> tuple[str, Item] | None:
        """The next model and item, once the budget admits it; None: nothing more is to be started."""
        while self._ending.reason == "complete":
            while self._jobs and self._jobs[0][0] in self.failing:
                self._jobs.popleft()
            if not self._jobs:
                return None
            model = self._jobs[0][0]
            if self.budget.admits(model):
                self._under_way += 1
                self.budget.start(model)
                return self._jobs.popleft()
            if not self._under_way:
                self._end("budget")
                return None
            self._changed.clear()
            await self._changed.wait()
        return None

    async def _one(self, model: str, item: Item) -> float | None:
        """Ask and grade one item, or grade the answer that was kept; what it cost now, None where unknown."""
        before = self._state.results.get((model, item.id))
        if before is not None and before.status == "ungraded" and before.message is not None:
            answer, message, paid_usd = before, Message.of(before.message), before.known_cost_usd
        else:
            paid_usd = 0.0
            try:
                answered = await self._asking.answer(model, item)
            except CallFailed as error:
                self._record(Result(model, item.id, item.category, "failed", error=error.code, reason=str(error)))
                return None
            message = answered.message
            answer = Result(
                model,
                item.id,
                item.category,
                "ungraded",
                error="judge_failed",
                reason="the run was stopped",
                latency_s=answered.latency_s,
                cost_usd=answered.cost_usd,
                input_tokens=answered.input_tokens,
                output_tokens=answered.output_tokens,
                message=message.to_json(),
            )
        try:
            result = await self._asking.graded(item, answer, message)
        except (asyncio.CancelledError, ServiceGone, Unusable):
            self._record(answer)  # it was paid for
            raise
        self._record(result)
        if self._plan.budget_usd is not None and self._asking.unpriced:
            names = ", ".join(sorted(self._asking.unpriced))
            self._give_up(f"nobody knows what calls of {names} cost, so --budget-usd cannot be kept", exit_code=2)
        return None if result.cost_usd is None else result.known_cost_usd - paid_usd

    def _record(self, result: Result) -> None:
        self._state.add(result)
        self._settled.add(result.key)
        if result.status == "graded":
            self._waiting.append(result.key)
        self._errors[result.model] = self._errors[result.model] + 1 if result.status == "failed" else 0
        if self._errors[result.model] >= ERRORS_IN_A_ROW:
            self.failing.setdefault(result.model, f"{ERRORS_IN_A_ROW} items in a row failed, the last: {result.reason}")
        if result.error == "judge_failed" and not self._stop.is_set():
            self._judge_errors += 1
            if self._judge_errors >= ERRORS_IN_A_ROW:
                message = f"{ERRORS_IN_A_ROW} gradings by a judge in a row failed, the last: {result.reason}"
                self._give_up(f"{message} (the answers are kept)", exit_code=1)
        elif result.status == "graded":
            self._judge_errors = 0
        self.tell(result)

    def _end(self, reason: Literal["stopped", "budget", "trouble"]) -> None:
        if self._ending.reason == "complete":
            self._ending.reason = reason
        if reason != "budget":  # whose calls under way still end, and may make room for one more attempt
            self._stop.set()
        self._changed.set()

    def _give_up(self, message: str, *, exit_code: int) -> None:
        if self._ending.trouble is None:
            self._ending.trouble, self._ending.exit_code = message, exit_code
        self._end("trouble")

    async def _post_on(self) -> None:
        while True:
            await asyncio.sleep(POST_EVERY_S)
            await self._post_waiting(1)

    async def _post_waiting(self, attempts: int) -> None:
        """Post what is graded and not yet the service's, a batch of one model at a time, until that fails."""
        while self._waiting:
            model = self._waiting[0][0]
            keys = [key for key in self._waiting if key[0] == model][:POST_BATCH]
            batch = [self._state.results[key].to_post() for key in keys]
            header = self._state.header
            try:
                post = partial(self._client.post, header.suite, header.run, batch)
                await patiently(post, attempts, self._drop)
            except CallFailed as error:
                if error.code != "model_not_found":
                    self._ending.post_problem = str(error)
                    return
                self.failing[model] = "the service does not know it any more"
                self._refused += sum(key[0] == model for key in self._waiting)
                keys = [key for key in self._waiting if key[0] == model]
            except (ServiceGone, Dropped) as error:
                self._ending.post_problem = str(error) or "the run was stopped"
                return
            except Unusable as error:
                self._give_up(str(error), exit_code=2)
                return
            else:
                self._state.add_posted(keys)
                self._ending.post_problem = None
            gone = set(keys)
            self._waiting = deque(key for key in self._waiting if key not in gone)

    async def _conclude(self) -> None:
        ending, results = self._ending, self._state.results
        if ending.reason == "complete":
            answering = {result.model for result in results.values() if result.status == "graded"}
            for result in results.values():
                if result.model not in answering:
                    self.failing.setdefault(result.model, f"no answer could be graded, the last: {result.reason}")
            # Only now: what the service has stays as it is, while a failed item may yet be answered when resumed.
            self._waiting.extend(
                key
                for key, result in results.items()
                if result.status != "graded" and key not in self._state.posted and result.model not in self.failing
            )
        await self._post_waiting(POST_ATTEMPTS)
        ending.unposted = len(self._waiting) + self._refused
        ending.left_out = self.total - self.done
        if ending.reason == "complete" and not ending.failing and not ending.unposted:
            self._state.finish()
