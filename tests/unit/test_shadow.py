"""Shadow calls: which calls get one, what they may cost, what is logged of them, and how they are graded."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from steered_pools import Steered

from bandit.types import Outcome
from serving.errors import UpstreamError
from serving.traffic.shadow import Shadows, agreement, answer_text

SHADOW = {"model": "c", "share": 1.0, "max_usd_per_day": 1.0, "max_concurrent": 2}
DAY_S = 86_400.0


class Upstream:
    """Answers shadow calls with `text`, once let go; books their cost as the service does."""

    def __init__(self, service, text="a b c", cost_usd=0.01):
        self.service, self.text, self.cost_usd = service, text, cost_usd
        self.calls, self.grades, self.gate = [], {}, asyncio.Event()
        self.gate.set()

    async def perform(self, call, caller, decision, labels):
        self.calls.append((call, caller, decision, labels))
        record, _ = self.service.learner.record_decision(decision, labels)
        await self.gate.wait()
        if self.text is None:
            raise UpstreamError("c", "down")
        outcome = Outcome(decision.decision_id, decision.ts, "c", "ok", 0.1, output_tokens=5, cost_usd=self.cost_usd)
        self.service.learner.note_outcome(record, outcome)
        return SimpleNamespace(body=orjson.dumps({"choices": [{"message": {"content": self.text}}]}))

    async def grade(self, decision_id, metrics):
        self.grades[decision_id] = metrics


@pytest.fixture
async def made(held_store):
    def made(shadow=None, text="a b c", **more):
        more = {"weights": {"a": 1}} | more
        service = Steered(held_store, shadow=SHADOW | (shadow or {}), **more)
        upstream = Upstream(service, text)
        shadows = Shadows(
            service.learner,
            service.traffic,
            perform=upstream.perform,
            grade=upstream.grade,
            rng=np.random.default_rng(5),
        )
        return service, shadows, upstream

    return made


def _drawn(service, shadows, ts=10.0, **more):
    decision, labels = service.decide(ts=ts, **more)
    return shadows.draw(service.call, decision, labels, ts)


async def _settled(shadows):
    for _ in range(20):  # turns of the loop: nothing here waits for anything else
        await asyncio.sleep(0)
    assert shadows.under_way == 0


async def test_a_shadow_is_a_decision_of_its_own_that_names_its_origin_and_moves_no_clock(made):
    service, shadows, upstream = made()
    plan = _drawn(service, shadows, team="t")
    step = service.pool.step
    shadows.send(plan, "a b d", 10.0)
    await _settled(shadows)
    ((call, caller, decision, labels),) = upstream.calls
    assert (decision.mode, decision.chosen, decision.propensity) == ("shadow", "c", 1.0)
    assert (decision.decision_id, labels.origin) == (plan.decision_id, plan.origin.decision_id)
    assert decision.context is plan.origin.context  # so that its outcome teaches the model's heads
    assert (caller.principal.team, labels.principal.team, call.stream) == (None, "t", False)
    assert upstream.grades == {plan.decision_id: {"agreement": pytest.approx(2 / 3)}}
    assert service.pool.step == step
    assert service.pool.heads.counts(2, service.pool.step)[2] > 0.0


async def test_the_days_spending_is_bounded_also_by_what_is_under_way(made):
    """Worst case of a call: about 30 bytes of input, 4,096 tokens of output at 10 USD a million: 0.041 USD."""
    service, shadows, upstream = made({"max_usd_per_day": 0.06})
    first = _drawn(service, shadows)
    upstream.gate.clear()
    shadows.send(first, "a", 10.0)
    assert _drawn(service, shadows) is None  # two worst cases are more than there is
    upstream.gate.set()
    await _settled(shadows)
    second = _drawn(service, shadows)
    assert second is not None  # the first has cost 0.01
    shadows.send(second, "a", 10.0)
    await _settled(shadows)
    assert service.own.shadow_spent_usd == pytest.approx(0.02)
    assert _drawn(service, shadows) is None
    assert _drawn(service, shadows, ts=DAY_S + 1.0) is not None
    service.store.commit()
    assert made({"max_usd_per_day": 0.06})[0].own.shadow_left_usd(20.0) == pytest.approx(0.04)


async def test_shadows_beyond_the_bound_are_dropped_and_end_with_the_service(made):
    service, shadows, upstream = made()
    upstream.gate.clear()
    for _ in range(2):
        shadows.send(_drawn(service, shadows), "a", 10.0)
    assert _drawn(service, shadows) is None
    await shadows.close()
    assert shadows.under_way == 0
    assert upstream.grades == {}


async def test_a_shadow_that_fails_is_nobodys_error(made):
    service, shadows, upstream = made(text=None)
    shadows.send(_drawn(service, shadows), "a", 10.0)
    await _settled(shadows)
    assert upstream.grades == {}


async def test_calls_that_get_none(made):
    service, shadows, _ = made()
    assert _drawn(service, shadows, model="a") is None  # pinned
    service.change("weights", {"c": 1})
    assert _drawn(service, shadows) is None  # it is on that model already
    service.change("weights", {"a": 1})
    service.change("disabled", ["c"])
    assert _drawn(service, shadows) is None


async def test_the_share_is_kept(made):
    """N = 2,000 draws of p = 0.25: the standard deviation is 0.0097, and 5 of those 0.048."""
    service, shadows, _ = made({"share": 0.25})
    drawn = [_drawn(service, shadows) is not None for _ in range(2_000)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.048)


def test_agreement_is_the_f1_of_words():
    assert agreement("The cat sat.", "the CAT sat") == 1.0
    assert agreement("a b c d", "a b") == pytest.approx(2 * 2 / 6)
    assert agreement("a a", "a") == pytest.approx(2 / 3)
    assert (agreement("a", "b"), agreement("", "a"), agreement("", "")) == (0.0, 0.0, 1.0)


def test_an_answers_text_is_read_whole_and_from_events():
    assert answer_text(b'{"choices": [{"text": "hi"}]}') == "hi"
    assert answer_text(b'{"choices": [{"message": {"content": null}}]}') == ""
    events = (
        b'data: {"choices": [{"delta": {"content": "a "}}]}\n\ndata: {"choices": [{"delta": {"content": "b"}}]}\n\n'
    )
    assert answer_text(events + b"data: [DONE]\n\n") == "a b"
    assert answer_text(b"\xff") == ""
