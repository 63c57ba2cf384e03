"""What arrives after a decision: quality from `/reward`, outcomes of calls the caller made itself from `/outcome`.

Finds the decision and says which case it is (new, duplicate, revision, unknown, expired, conflicting); an accepted item
is durable before it is acknowledged. The bodies are pydantic models: this is the edge.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from bandit.types import Feedback, Outcome
from serving.bodies import Body, Cost, Quality, Seconds, Tokens, validated
from serving.errors import Conflict, ExpiredDecision, ServiceError, Unavailable, UnknownDecision
from serving.imputation import IMPUTED, is_imputed
from serving.learner import Learner
from serving.records import Record, made_at_s
from serving.store import Superseded

__all__ = ["MAX_BATCH", "FeedbackDesk", "OutcomeItem", "RewardItem", "parse_outcome", "parse_rewards"]

MAX_BATCH = 1_000
_MAX_METRICS = 50
_MOST_TIMES = 100  # that another process may be first: each time it has changed something
Accepted = Literal["recorded", "revised", "duplicate"]
DecisionId = Annotated[str, Field(min_length=1, max_length=64)]


class RewardItem(Body):
    """Feedback for one decision: a quality, metrics, or both."""

    decision_id: DecisionId
    quality: Quality | None = None
    metrics: dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[float, Field(allow_inf_nan=False)]] = (
        Field(default_factory=dict, max_length=_MAX_METRICS)
    )
    revise: bool = False

    @model_validator(mode="after")
    def _something(self) -> RewardItem:
        if self.quality is None and not self.metrics:
            raise ValueError("give quality, metrics, or both")
        if IMPUTED in self.metrics:
            raise ValueError(f"the metric {IMPUTED} is set by the service alone")
        return self


class OutcomeItem(Body):
    """The outcome of a call the caller made itself, after `/v1/route`."""

    decision_id: DecisionId
    status: Literal["ok", "error", "timeout", "cancelled"] = "ok"
    latency_s: Seconds | None = None
    time_to_first_token_s: Seconds | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cost_usd: Cost | None = None
    http_status: Annotated[int, Field(ge=100, le=599)] | None = None
    error: Annotated[str, Field(max_length=200)] | None = None


_one_reward = TypeAdapter(RewardItem)
_many_rewards = TypeAdapter(Annotated[list[RewardItem], Field(min_length=1, max_length=MAX_BATCH)])
_outcome = TypeAdapter(OutcomeItem)


def parse_rewards(body: Any) -> RewardItem | list[RewardItem]:
    """One item or a list of up to 1,000; raises InvalidFields with every problem's path."""
    items: RewardItem | list[RewardItem] = validated(_many_rewards if isinstance(body, list) else _one_reward, body)
    return items


def parse_outcome(body: Any) -> OutcomeItem:
    """One outcome; raises InvalidFields."""
    item: OutcomeItem = validated(_outcome, body)
    return item


class FeedbackDesk:
    """Accepts feedback and outcomes for decisions of the last `horizon_s` seconds."""

    def __init__(
        self,
        learner: Learner,
        quality_metrics: Mapping[str, Mapping[str, float]],
        horizon_s: float,
    ) -> None:
        self._learner = learner
        self.configure(quality_metrics, horizon_s)
        # Accepted but not yet durable: a duplicate must wait for the same write, and must find what it repeats.
        self._unsettled: dict[str, tuple[Record, asyncio.Future[None]]] = {}

    def configure(self, quality_metrics: Mapping[str, Mapping[str, float]], horizon_s: float) -> None:
        """Go by these from now on."""
        self._quality_metrics, self._horizon_s = quality_metrics, horizon_s

    async def accept(self, item: RewardItem, now: float, tenant: str | None = None) -> Accepted:
        """Record one item; durable on return. Raises UnknownDecision, ExpiredDecision, Conflict.

        `tenant`: whose decisions may be spoken of; those of others are unknown to it. None: everybody's.
        """
        return await _agreed(lambda: self._take(item, now, tenant))

    async def accept_batch(
        self, items: Sequence[RewardItem], now: float, tenant: str | None = None
    ) -> list[Accepted | ServiceError]:
        """Record many, each on its own; all durable on return. The result says of each what became of it."""
        results: list[Accepted | ServiceError] = []
        waiting: list[tuple[int, asyncio.Future[None]]] = []
        for i, item in enumerate(items):
            try:
                status, durable = self._take(item, now, tenant)
            except ServiceError as error:
                results.append(error)
                continue
            results.append(status)
            if durable is not None:
                waiting.append((i, durable))
        for i, durable in waiting:
            if not await _stands(durable):
                try:
                    results[i] = await self.accept(items[i], now, tenant)
                except ServiceError as error:
                    results[i] = error
        return results

    async def accept_outcome(self, item: OutcomeItem, now: float, tenant: str | None = None) -> Accepted:
        """Record the outcome of a call the caller made; durable on return. Raises as `accept` does."""
        return await _agreed(lambda: self._take_outcome(item, now, tenant))

    def assume(
        self, decision_id: str, pool: str, quality: float, wait_s: float, now: float
    ) -> asyncio.Future[None] | None:
        """Take `quality` for a good call of `pool` that got no feedback within `wait_s`; resolves once that is durable.

        None where nothing is missing: the decision has feedback, is another pool's or pinned, has no good answer that
        long ago, or is past its horizon. Feedback that comes later replaces it. Raises as the learner does.
        """
        try:
            record, _ = self._find(decision_id, now, None)
        except (UnknownDecision, ExpiredDecision):
            return None
        decision, outcome = record.decision, record.outcome
        if decision.pool != pool or decision.mode in ("pinned", "cached", "shadow") or record.feedback is not None:
            return None
        if outcome is None or outcome.status != "ok" or outcome.ts > now - wait_s:
            return None
        feedback = Feedback(decision_id, now, quality, metrics={IMPUTED: 1.0})
        durable = self._learner.record_feedback(record, feedback)
        self._settle_later(record, durable)
        return durable

    def _take_outcome(
        self, item: OutcomeItem, now: float, tenant: str | None
    ) -> tuple[Accepted, asyncio.Future[None] | None]:
        record, durable = self._find(item.decision_id, now, tenant)
        if record.in_flight:
            raise Conflict("the service makes this call itself and will record its outcome", None)
        outcome = self._outcome(record, item, now)
        if record.outcome is None:
            durable = self._learner.record_outcome(record, outcome)
            self._settle_later(record, durable)
            return "recorded", durable
        if not _same_outcome(record.outcome, outcome):
            raise Conflict("an outcome was recorded for this decision before", {"status": record.outcome.status})
        return "duplicate", durable

    def _outcome(self, record: Record, item: OutcomeItem, now: float) -> Outcome:
        cost_usd = item.cost_usd
        pool = self._learner.pools.get(record.decision.pool)
        if cost_usd is None and pool is not None:
            cost_usd = _list_cost_usd(pool.arms, record.decision.chosen, item)
        return Outcome(
            decision_id=item.decision_id,
            ts=now,
            model=record.decision.chosen,
            status=item.status,
            latency_s=item.latency_s,
            time_to_first_token_s=item.time_to_first_token_s,
            input_tokens=item.input_tokens,
            output_tokens=item.output_tokens,
            cost_usd=cost_usd,
            http_status=item.http_status,
            error=item.error,
        )

    def _take(self, item: RewardItem, now: float, tenant: str | None) -> tuple[Accepted, asyncio.Future[None] | None]:
        record, pending = self._find(item.decision_id, now, tenant)
        known = record.feedback
        posted = _posted(known)
        merged, status = _merged(posted, item)
        if status == "duplicate":
            return status, pending
        old = posted.quality if posted is not None else None
        quality = old if item.quality is None else item.quality
        if item.quality is None and (old is None or status == "revised"):  # else metrics would replace it unasked
            from_metrics = self._quality_of(record, merged)
            quality = old if from_metrics is None else from_metrics
        if known is not None and quality is None and is_imputed(known):  # metrics alone: it is still assumed
            quality, merged = known.quality, merged | {IMPUTED: 1.0}
        feedback = Feedback(
            decision_id=item.decision_id,
            ts=now,
            quality=quality,
            metrics=merged,
            revision=0 if known is None else known.revision + 1,
            revises=None if known is None else known.quality,
        )
        durable = self._learner.record_feedback(record, feedback)
        self._settle_later(record, durable)
        return status, durable

    def _settle_later(self, record: Record, durable: asyncio.Future[None]) -> None:
        decision_id, entry = record.decision.decision_id, (record, durable)

        def settle(done: asyncio.Future[None]) -> None:
            if not done.cancelled():
                done.exception()  # whoever waits is told; it is not lost where nobody does any more
            if self._unsettled.get(decision_id) is entry:  # else there is a later one to wait for
                del self._unsettled[decision_id]

        self._unsettled[decision_id] = entry
        durable.add_done_callback(settle)

    def _find(self, decision_id: str, now: float, tenant: str | None) -> tuple[Record, asyncio.Future[None] | None]:
        made_at = made_at_s(decision_id)
        if made_at is None:
            raise UnknownDecision(decision_id)
        if now - made_at > self._horizon_s:
            raise ExpiredDecision(decision_id, self._horizon_s)
        known = self._unsettled.get(decision_id)
        record = self._learner.find(decision_id) if known is None else known[0]
        if record is None or tenant not in (None, record.labels.principal.tenant):
            raise UnknownDecision(decision_id)
        return (record, None) if known is None else known

    def _quality_of(self, record: Record, metrics: Mapping[str, float]) -> float | None:
        weights = self._quality_metrics.get(record.decision.pool)
        if not weights or not all(name in metrics for name in weights):
            return None
        scale = max(1.0, *(abs(metrics[name]) for name in weights))  # sums of what may be posted could overflow
        mean = math.fsum(weights[name] * (metrics[name] / scale) for name in weights) / math.fsum(weights.values())
        return min(1.0, max(0.0, mean * scale))


async def _agreed(take: Callable[[], tuple[Accepted, asyncio.Future[None] | None]]) -> Accepted:
    """Take it until it stands; others may be first a few times. Raises Unavailable where that never ends."""
    for _ in range(_MOST_TIMES):
        status, durable = take()
        if durable is None or await _stands(durable):
            return status
    raise Unavailable("what is known of this decision here is not what the store has; try again later")


async def _stands(durable: asyncio.Future[None]) -> bool:
    """Wait until it is durable; False where another process was first, and what it says is known by now."""
    try:
        await asyncio.shield(durable)  # others may wait for it, too: a caller who goes away must not cancel it
    except Superseded:
        return False
    return True


def _posted(known: Feedback | None) -> Feedback | None:
    """What callers have said: `known` without a quality that was only assumed."""
    if known is None or not is_imputed(known):
        return known
    return replace(known, quality=None, metrics={name: v for name, v in known.metrics.items() if name != IMPUTED})


def _merged(known: Feedback | None, item: RewardItem) -> tuple[dict[str, float], Accepted]:
    """All metrics after `item`, and what it is to what was `known`; Conflict where it contradicts unasked."""
    merged = dict(known.metrics) if known else {}
    contradicted = {
        name: merged[name] for name, value in item.metrics.items() if name in merged and merged[name] != value
    }
    new = any(name not in merged for name in item.metrics)
    if item.quality is not None:
        if known is None or known.quality is None:
            new = True
        elif known.quality != item.quality:
            contradicted["quality"] = known.quality
    if contradicted and not item.revise:
        raise Conflict('other feedback was recorded before; send "revise": true to replace it', contradicted)
    return merged | item.metrics, "revised" if contradicted else "recorded" if new else "duplicate"


def _list_cost_usd(arms: Sequence[Any], model: str, item: OutcomeItem) -> float | None:
    price = next((arm.price for arm in arms if arm.name == model), None)  # it may have left the pool since
    if price is None or item.input_tokens is None or item.output_tokens is None:
        return None
    return float(price.cost_usd(item.input_tokens, item.output_tokens))


def _same_outcome(known: Outcome, new: Outcome) -> bool:
    names = ("model", "status", "latency_s", "time_to_first_token_s", "input_tokens", "output_tokens", "cost_usd")
    return all(getattr(known, name) == getattr(new, name) for name in names)
