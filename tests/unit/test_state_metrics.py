"""Gauges that are read from the service's parts when Prometheus asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from metered_calls import ALICE, BOB, CAROL, NOON, at_once, budget, outcome, record

from bandit import Arm, Constraints, Pool, Price
from bandit.pacing import Pacer
from serving.access.ledger import Ledger
from serving.state_metrics import StateMetrics


def samples(state, name):
    (family,) = [family for family in state.collect() if family.name == f"pointsman_{name}"]
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_parts_that_are_not_there_show_nothing_but_their_names():
    families = list(StateMetrics().collect())
    assert len(families) > 15
    assert [family.name for family in families if family.samples] == []


def test_each_model_is_in_one_state_and_those_that_left_in_none():
    pool = Pool([Arm("a", Price(1.0, 1.0)), Arm("b")], name="auto", constraints=Constraints(max_error_rate=0.2))
    state = StateMetrics(pools={"auto": pool})
    shown = samples(state, "filter_state")
    assert len(shown) == 2 * 4
    assert {key for key, value in shown.items() if value} == {("auto", "a", "unknown"), ("auto", "b", "unknown")}
    pool.remove_arm("a")
    assert {model for _, model, _ in samples(state, "filter_state")} == {"b"}


def test_a_pools_budget_counts_as_spent_at_the_start_and_then_is_what_was_spent():
    pacer = Pacer(0.01)
    assert pacer.spent_share == pytest.approx(1.0)
    pacer.reserve(1, 0.0)
    assert pacer.spent_share == pytest.approx(0.999)


@pytest.fixture
def ledger():
    return Ledger([budget(name="all", usd=1.0), budget(name="each", scope="user", usd=None, tokens=100)])


def test_a_budget_shows_the_member_that_has_least_left_and_names_nobody(ledger):
    state = StateMetrics(ledger=ledger, wall=lambda: NOON)
    assert samples(state, "budget_left_ratio") == {("all",): 1.0, ("each",): 1.0}
    for who, tokens in ((ALICE, 30), (BOB, 75), (CAROL, 10)):
        ledger.outcome(record(who), outcome(0.1, input_tokens=tokens))
    assert samples(state, "budget_left_ratio") == {("all",): pytest.approx(0.7), ("each",): 0.25}
    assert samples(state, "budget_left_usd") == {("all",): pytest.approx(0.7)}
    assert samples(state, "budget_left_tokens") == {("each",): 25}
    assert samples(state, "budget_members") == {("all",): 1, ("each",): 3}


def test_what_is_set_aside_is_not_left_and_an_overspent_budget_has_nothing_left(ledger):
    at_once(ledger.reserve(ALICE, 0.5, 60, NOON))
    assert [least.share for least in ledger.least_left(NOON)] == [pytest.approx(0.5), pytest.approx(0.4)]
    ledger.outcome(record(ALICE), outcome(3.0, input_tokens=1_000))
    assert [least.share for least in ledger.least_left(NOON)] == [0.0, 0.0]
    assert [least.share for least in ledger.least_left(NOON + 86_400)] == [pytest.approx(0.5), pytest.approx(0.4)]


def test_stores_and_gate_are_shown_as_they_are_now():
    store = SimpleNamespace(pending=3, healthy=True)
    log = SimpleNamespace(lag_events=7, failed_flushes=1, busy_flushes=2, rejected_events=3)
    gate = SimpleNamespace(limit=10, in_use=4, waiting=5, pace=SimpleNamespace(busy_share=0.25))
    state = StateMetrics(store=store, store_limit=100, log=log, gate=gate)
    assert samples(state, "store_healthy") == {(): 1.0}
    assert samples(state, "loop_busy_share") == {(): 0.25}
    store.healthy = False
    assert samples(state, "store_healthy") == {(): 0.0}
    assert samples(state, "store_pending_events") == {(): 3}
    assert samples(state, "store_queue_limit_events") == {(): 100}
    assert samples(state, "log_trouble") == {("failed",): 1, ("in_use",): 2, ("rejected",): 3}
    assert samples(state, "gate_calls") == {("running",): 4, ("waiting",): 5}
