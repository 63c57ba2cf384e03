"""Shadow calls: a share of a pool's calls is sent to one more model, whose answer is graded, logged and thrown away.

They start once the caller's answer is there, in tasks of their own: bounded in number and in what they spend in a day,
dropped rather than queued. Decides nothing about the call they accompany, and keeps no answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import orjson

from bandit.policy import one_hot
from bandit.types import Context, Decision, Price
from serving.admission import Principal
from serving.errors import ServiceError
from serving.learner import Learner
from serving.providers.kinds import served_by
from serving.records import Caller, Labels
from serving.store import StoreError
from serving.traffic.settings import ShadowSettings
from serving.traffic.state import Traffic
from serving.wire import Call, Kind

__all__ = ["ShadowPlan", "Shadows", "agreement", "answer_text"]

_log = logging.getLogger("pointsman.shadow")
_UNSAID_OUTPUT_TOKENS = 4_096  # where a call sets no bound, what its answer is taken to cost until it is known
_MAX_TEXT = 100_000  # characters of an answer that are compared
_MODES = ("bandit", "weighted", "canary", "sticky")
_OPERATOR = Caller(Principal())  # who asked for them, and pays: no caller's budget or rate
_NO_FEATURES = np.zeros(0, dtype=np.float32)


class _Answer(Protocol):
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ShadowPlan:
    """A shadow call to come: its id is known before the answer it accompanies is sent."""

    decision_id: str
    call: Call
    origin: Decision
    labels: Labels
    settings: ShadowSettings
    worst_usd: float


class Shadows:
    """Sends shadow calls by `perform` and posts their grades by `grade`; `rng` draws which calls get one."""

    def __init__(
        self,
        learner: Learner,
        traffic: Traffic,
        *,
        perform: Callable[[Call, Caller, Decision, Labels], Awaitable[_Answer]],
        grade: Callable[[str, dict[str, float]], Awaitable[Any]],
        rng: np.random.Generator,
    ) -> None:
        self._learner, self._traffic = learner, traffic
        self._perform, self._grade, self._rng = perform, grade, rng
        self._under_way: dict[asyncio.Task[None], ShadowPlan] = {}

    def draw(self, call: Call, decision: Decision, labels: Labels, now: float) -> ShadowPlan | None:
        """The shadow of a call that goes to a pool's model at unix time `now`; None for most."""
        traffic = self._traffic.pools.get(decision.pool)
        settings = None if traffic is None else traffic.settings.shadow
        if traffic is None or settings is None or decision.mode not in _MODES or decision.chosen == settings.model:
            return None
        if self._rng.random() >= settings.share or not self._traffic.usable(decision.pool, settings.model):
            return None
        price = self._price(settings.model, call.kind)
        mine = [plan for plan in self._under_way.values() if plan.origin.pool == decision.pool]
        if price is None or len(mine) >= settings.max_concurrent:
            return None
        output_tokens = _UNSAID_OUTPUT_TOKENS if call.max_output_tokens is None else call.max_output_tokens
        worst_usd = price.cost_usd(call.worst_input_tokens, output_tokens)
        if worst_usd + sum(plan.worst_usd for plan in mine) > traffic.shadow_left_usd(now):
            return None
        return ShadowPlan(self._learner.ids.new(now), call, decision, labels, settings, worst_usd)

    def send(self, plan: ShadowPlan, answer: str, now: float) -> None:
        """Begin a shadow call beside `answer`, the text that the caller got."""
        task = asyncio.create_task(self._shadow(plan, answer[:_MAX_TEXT], now))
        self._under_way[task] = plan
        task.add_done_callback(lambda done: self._under_way.pop(done, None))

    @property
    def under_way(self) -> int:
        """How many there are."""
        return len(self._under_way)

    async def close(self, *, when_idle: bool = False) -> None:
        """End those under way, whose outcomes say cancelled; with `when_idle` let them end."""
        tasks = list(self._under_way)
        for task in () if when_idle else tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _shadow(self, plan: ShadowPlan, answer: str, now: float) -> None:
        body = _unstreamed(plan.call.body) if plan.call.stream else plan.call.body
        call = replace(plan.call, stream=False, wants_usage=True, timeout_s=None, body=body)
        labels = replace(plan.labels, session=None, experiment=None, origin=plan.origin.decision_id)
        try:
            shadow = await self._perform(call, _OPERATOR, self._decision(plan, now), labels)
            if plan.settings.grade == "agreement" and answer:
                metrics = {"agreement": agreement(answer_text(shadow.body), answer)}
                await self._grade(plan.decision_id, metrics)
        except (ServiceError, StoreError) as error:
            _log.info("shadow call of pool %s: %s", plan.origin.pool, type(error).__name__)
        except Exception:  # noqa: BLE001 - the boundary of a task
            _log.exception("shadow call of pool %s", plan.origin.pool)

    def _decision(self, plan: ShadowPlan, now: float) -> Decision:
        """The origin's, for the shadow's model; one that is not of the pool has no features: it teaches nothing."""
        origin, model = plan.origin, plan.settings.model
        own: dict[str, Any] = {"decision_id": plan.decision_id, "ts": now, "mode": "shadow", "chosen": model}
        own |= {"propensity": plan.settings.share, "withheld_usd": 0.0, "infeasible": False}
        if model in origin.arms:
            return replace(origin, **own, probabilities=one_hot(origin.arms.index(model), len(origin.arms)))
        unknown = np.full(1, np.nan)
        predicted: dict[str, Any] = dict.fromkeys(
            ("predicted_quality", "predicted_cost_usd", "predicted_latency_s"), unknown
        )
        context = Context(_NO_FEATURES, "none", origin.context.input_tokens, origin.context.category)
        one = np.ones(1)
        return replace(
            origin, **own, **predicted, context=context, arms=(model,), feasible=one > 0.0, probabilities=one
        )

    def _price(self, model: str, kind: Kind) -> Price | None:
        """The price of a model that serves such calls; None where there is none, or no such model."""
        settings = self._learner.roster.model(model)
        return None if settings is None or kind not in served_by(settings) else settings.to_arm().price


def agreement(first: str, second: str) -> float:
    """How far two answers agree, from 0 to 1: F1 of their bags of words, as SQuAD grades (Rajpurkar et al., 2016).

    Words in another order agree, words of another meaning that look alike do, and paraphrases do not: a sign, no proof.
    """
    words, others = (Counter(re.findall(r"\w+", text[:_MAX_TEXT].lower())) for text in (first, second))
    common = (words & others).total()
    if not common:
        return float(not words and not others)
    return 2.0 * common / (words.total() + others.total())


def answer_text(body: bytes) -> str:
    """The text of an answer, or of a stream's events one after the other; empty where there is none."""
    events = body.split(b"\n") if body.startswith(b"data:") else [body]
    texts: list[str] = []
    for event in events:
        try:
            answer = orjson.loads(event.removeprefix(b"data:").strip())
        except orjson.JSONDecodeError:
            continue
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, dict):
            message = choice.get("message") or choice.get("delta") or {}
            text = message.get("content") if isinstance(message, dict) else None
            text = choice.get("text") if text is None else text
            texts.append(text if isinstance(text, str) else "")
    return "".join(texts)


def _unstreamed(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
