"""Whoever calls, pays, grades and converses in whatever order: no budget, session or feedback crosses tenants."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import HeldStore
from hypothesis import given
from hypothesis import strategies as st
from metered_calls import at_once, budget
from steered_pools import Steered

from serving.access.ledger import Ledger
from serving.access.principal import Principal
from serving.errors import BudgetExhausted, UnknownDecision
from serving.feedback import FeedbackDesk, OutcomeItem, RewardItem

PEOPLE = [
    Principal("ada", "search", "paid", "key-1"),
    Principal("ada", "ads", "paid", "key-2"),  # called as another team's
    Principal("bo", "ads", "free", "key-3"),
    Principal("search", None, None, "key-4"),  # called as a team is
    Principal("ads/ada", None, None, "key-5"),  # as a team and its user are
    Principal("ada", None, None, "key-6"),
    Principal("ada", "ads/x", None, "key-7"),
    Principal("x/ada", "ads", None, "key-8"),
    Principal(None, None, None, "key-9"),
    Principal(None, None, None, "key-10"),
]
MICRO = 10**6
LIMITS = {"user": 40, "team": 60, "key": 50}  # millionths of a USD
ENTRIES = [budget(name=scope, scope=scope, usd=limit / MICRO, per="total") for scope, limit in LIMITS.items()]
NOW = 10.0
who = st.sampled_from(PEOPLE)
calls = st.tuples(st.just("call"), who, st.sampled_from([None, "talk", "other"]), st.integers(0, 25))
words = st.tuples(st.sampled_from(["reward", "outcome"]), who, st.integers(0, 30), st.sampled_from([0.0, 0.5, 1.0]))
steps = st.lists(st.one_of(calls, calls, words, st.just(("restart",))), max_size=40)


class Durable(HeldStore):
    """A store that is as fast as it is said to be slow in other tests."""

    def append(self, events, placed=None):
        durable = super().append(events, placed)
        self.commit()
        return durable

    def append_nowait(self, events, placed=None):
        super().append_nowait(events, placed)
        self.commit()


class World:
    """The parts under test, and beside them what each tenant did, by itself."""

    def __init__(self):
        self.store = Durable()
        self.made = []  # (decision id, whose)
        self.spent = Counter()
        self.on = {}  # by tenant and session: the model
        self.grades = {}
        self.start()

    def start(self):
        self.ledger = Ledger(ENTRIES)
        shares = {"a": 1, "b": 1, "c": 1}
        self.service = Steered(self.store, seed=self.store.position, folds=(self.ledger,), weights=shares)
        self.desk = FeedbackDesk(self.service.learner, {}, 10**10)

    def payers(self, principal):
        """What this caller's calls are counted under; nothing of another tenant's."""
        user = None if principal.user is None else (principal.team, principal.user)
        payers = {"user": user, "team": principal.team, "key": principal.key_id}
        return [(scope, payer) for scope, payer in payers.items() if payer is not None]

    def call(self, principal, session, micro):
        fits = all(
            self.spent[payer] + micro <= LIMITS[payer[0]] > self.spent[payer] for payer in self.payers(principal)
        )
        if not fits:
            with pytest.raises(BudgetExhausted):
                at_once(self.ledger.reserve(principal, micro / MICRO, 0, NOW))
            return
        held = at_once(self.ledger.reserve(principal, micro / MICRO, 0, NOW))
        names = {name: getattr(principal, name) for name in ("user", "team", "tier", "key_id")}
        decision, _ = self.service.decide(session, **names)
        self.service.outcome(cost_usd=micro / MICRO)
        self.ledger.release(held)
        self.spent.update(dict.fromkeys(self.payers(principal), micro))
        self.made.append((decision.decision_id, principal))
        known = self.on.get((principal.tenant, session))
        assert (decision.mode == "sticky") == (known is not None)
        assert known in (None, decision.chosen)
        if session is not None:
            self.on[principal.tenant, session] = decision.chosen

    async def say(self, what, principal, number, quality):
        decision_id, of = self.made[number % len(self.made)]
        before = self.service.learner.find(decision_id)
        was = before.outcome, before.feedback
        item = RewardItem(decision_id=decision_id, quality=quality, revise=True)
        saying = (
            self.desk.accept(item, NOW, principal.tenant)
            if what == "reward"
            else self.desk.accept_outcome(OutcomeItem(decision_id=decision_id), NOW, principal.tenant)
        )
        if principal.tenant != of.tenant:
            with pytest.raises(UnknownDecision):
                await saying
            after = self.service.learner.find(decision_id)
            assert (after.outcome, after.feedback) == was
        elif what == "reward":
            assert await saying in {"recorded", "revised", "duplicate"}
            self.grades[decision_id] = quality
        else:
            saying.close()  # it is its own: what is said of it is another test's matter

    def check(self):
        for entry in self.ledger.listed(NOW):
            booked = Counter(round(counter["spent"] * MICRO) for counter in entry["counters"] if counter["requests"])
            own = {payer for _, principal in self.made for payer in self.payers(principal) if payer[0] == entry["name"]}
            assert booked == Counter(self.spent[payer] for payer in own)
        kept = [session for session, *_ in self.service.own.sessions.state()]
        assert len(kept) == len(self.on)
        for decision_id, _ in self.made:
            feedback = self.service.learner.find(decision_id).feedback
            assert (None if feedback is None else feedback.quality) == self.grades.get(decision_id)


@given(steps)
async def test_nothing_crosses_tenants(steps):
    """Also over restarts, each of which rebuilds everything from the log."""
    world = World()
    for what, *rest in steps:
        if what == "restart":
            world.start()
        elif what == "call":
            world.call(*rest)
        elif world.made:
            await world.say(what, *rest)
        world.check()
