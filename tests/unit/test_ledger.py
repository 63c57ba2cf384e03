"""Budgets: what is reserved, booked, refused and told; sums by hand."""

from __future__ import annotations

import orjson
import pytest
from metered_calls import ALICE, BOB, CAROL, NOON, Heard, at_once, budget, outcome, record

from serving.access.ledger import Ledger
from serving.access.principal import Principal
from serving.errors import BudgetExhausted, Unavailable

DAY = 86_400.0
MIDNIGHT = NOON + DAY / 2


def spend(ledger, usd, ts=NOON, principal=ALICE, **more):
    return ledger.outcome(record(principal, more.pop("mode", "bandit")), outcome(usd, ts, **more))


def counters(ledger, name=None, ts=NOON):
    (found,) = [b for b in ledger.listed(ts) if name is None or b["name"] == name]
    return {c["member"]: c for c in found["counters"]}


def test_what_is_reserved_and_spent_never_passes_a_hard_budget():
    """Of 1 USD 0.5 are spent and 0.3 reserved: 0.2 fit, one millionth of a cent more does not."""
    ledger = Ledger([budget()])
    spend(ledger, 0.5)
    at_once(ledger.reserve(ALICE, 0.3, 0, NOON))
    with pytest.raises(BudgetExhausted) as refusal:
        at_once(ledger.reserve(BOB, 0.200_000_01, 0, NOON))
    assert refusal.value.budget["spent"] == 0.5
    assert refusal.value.budget["reserved"] == 0.3
    assert refusal.value.budget["resets_at"] == MIDNIGHT
    at_once(ledger.reserve(BOB, 0.2, 0, NOON))


def test_a_release_gives_back_what_was_reserved_once():
    ledger = Ledger([budget()])
    first, second = at_once(ledger.reserve(ALICE, 0.6, 0, NOON)), at_once(ledger.reserve(ALICE, 0.4, 0, NOON))
    ledger.release(first)
    ledger.release(first)
    assert counters(ledger)[None]["reserved"] == 0.4
    ledger.release(second)
    assert counters(ledger)[None]["remaining"] == 1.0


def test_a_call_is_reserved_in_all_budgets_it_concerns_or_in_none():
    """The team has room for it, the user has not: the team's stays as it was."""
    ledger = Ledger([budget(scope="team", name="team"), budget(scope="user", match="alice", usd=0.1, name="alice")])
    with pytest.raises(BudgetExhausted, match="alice"):
        at_once(ledger.reserve(ALICE, 0.5, 0, NOON))
    assert counters(ledger, "team")["search"]["reserved"] == 0
    at_once(ledger.reserve(BOB, 0.5, 0, NOON))
    assert counters(ledger, "team")["search"]["reserved"] == 0.5


@pytest.mark.parametrize(
    ("scope", "match", "members"),
    [
        ("all", "*", {None: 0.7}),
        ("team", "*", {"search": 0.3, "ads": 0.4}),
        ("team", "search", {"search": 0.3}),
        ("user", "*", {"search/alice": 0.1, "search/bob": 0.2, "ads/carol": 0.4}),
        ("tier", "free", {"free": 0.4}),
        ("key", "key-bob", {"key-bob": 0.2}),
    ],
)
def test_a_budget_counts_those_it_is_about(scope, match, members):
    ledger = Ledger([budget(scope=scope, match=match)])
    for principal, usd in ((ALICE, 0.1), (BOB, 0.2), (CAROL, 0.4)):
        spend(ledger, usd, principal=principal)
    assert {member: c["spent"] for member, c in counters(ledger).items()} == members


def test_an_entry_may_be_about_one_tier_alone():
    ledger = Ledger([budget(scope="key", tier="free", tokens=10, usd=None)])
    for principal in (ALICE, CAROL):
        spend(ledger, None, principal=principal, input_tokens=3, output_tokens=4)
    assert {member: c["spent"] for member, c in counters(ledger).items()} == {"key-carol": 7}


def test_a_window_begins_anew_and_what_is_under_way_may_be_spent_in_it():
    ledger = Ledger([budget()])
    spend(ledger, 0.9)
    held = at_once(ledger.reserve(ALICE, 0.1, 0, NOON))
    assert counters(ledger, ts=MIDNIGHT)[None] | {"requests": 0} == {
        "member": None,
        "spent": 0,
        "reserved": 0.1,
        "remaining": 0.9,
        "requests": 0,
        "unpriced_calls": 0,
        "saved_usd": 0,
        "window_start": MIDNIGHT,
        "resets_at": MIDNIGHT + DAY,
    }
    with pytest.raises(BudgetExhausted):
        at_once(ledger.reserve(ALICE, 0.95, 0, MIDNIGHT))
    at_once(ledger.reserve(ALICE, 0.9, 0, MIDNIGHT))
    ledger.release(held)
    spend(ledger, 0.1, MIDNIGHT)
    assert counters(ledger, ts=MIDNIGHT)[None]["spent"] == 0.1


def test_an_unknown_cost_is_let_through_counted_and_stopped_once_the_budget_is_spent():
    ledger = Ledger([budget()])
    ledger.release(at_once(ledger.reserve(ALICE, None, 10, NOON)))
    spend(ledger, None)
    assert counters(ledger)[None]["unpriced_calls"] == 1
    spend(ledger, 1.0)
    with pytest.raises(BudgetExhausted):
        at_once(ledger.reserve(ALICE, None, 10, NOON))


def test_what_is_known_of_a_failed_attempt_is_booked_and_a_second_attempt_is_no_second_call():
    ledger = Ledger([budget()])
    spend(ledger, 0.25, status="cancelled")
    spend(ledger, None, status="error")
    spend(ledger, 0.5, attempt=1)
    assert counters(ledger)[None] | {} == counters(ledger)[None] | {"spent": 0.75, "requests": 2, "unpriced_calls": 0}


def test_a_cached_answer_costs_nothing_and_a_shadow_concerns_the_budgets_of_all_alone():
    ledger = Ledger([budget(name="all"), budget(scope="user", name="user")])
    spend(ledger, 0.0, mode="cached", saved_usd=0.3, input_tokens=5)
    spend(ledger, 0.125, mode="shadow")
    assert counters(ledger, "user")["search/alice"]["spent"] == 0
    assert counters(ledger, "user")["search/alice"]["saved_usd"] == 0.3
    assert counters(ledger, "all")[None]["spent"] == 0.125


def test_a_soft_budget_warns_and_refuses_nothing():
    ledger = Ledger([budget(kind="soft", name="soft")])
    assert ledger.headers(ALICE, NOON) == {}
    spend(ledger, 2.0)
    at_once(ledger.reserve(ALICE, 5.0, 0, NOON))
    assert ledger.headers(ALICE, NOON) == {"x-pointsman-budget-warning": "soft spent=2 kind=soft"}
    assert ledger.headers(ALICE, MIDNIGHT) == {}


def test_the_least_that_is_left_in_hard_budgets_is_told():
    ledger = Ledger([budget(name="all"), budget(scope="user", usd=0.5)])
    spend(ledger, 0.125)
    at_once(ledger.reserve(ALICE, 0.25, 0, NOON))
    assert ledger.headers(ALICE, NOON)["x-pointsman-budget-remaining-usd"] == "0.125000000"
    assert ledger.headers(BOB, NOON)["x-pointsman-budget-remaining-usd"] == "0.500000000"


def test_each_step_is_told_once_a_window():
    ledger, heard = Ledger([budget(name="b")]), Heard()
    ledger.notify = heard
    rows = [row["what"] for usd in (0.7, 0.1, 0.1) for row in spend(ledger, usd)]
    for _ in range(2):
        with pytest.raises(BudgetExhausted):
            at_once(ledger.reserve(ALICE, 0.2, 0, NOON))
    rows += [row["what"] for row in spend(ledger, 0.1) + spend(ledger, 0.8, MIDNIGHT)]
    assert rows == ["warned", "spent", "warned"]
    assert heard.said == [("b", "warned"), ("b", "refused"), ("b", "spent"), ("b", "warned")]


def changed_limit(limit, name="b"):
    return {"what": "limit", "subject": "budgets", "after": {"budget": name, "limit": limit}}


def test_a_limit_is_raised_while_the_service_runs_and_taken_back():
    ledger, heard = Ledger([budget(name="b")]), Heard()
    ledger.notify = heard
    spend(ledger, 1.0)
    ledger.changed(changed_limit(3.0))
    assert ledger.limit("b") == 3.0
    ledger.release(at_once(ledger.reserve(ALICE, 2.0, 0, NOON)))
    spend(ledger, 1.5)
    assert heard.said == [("b", "spent"), ("b", "warned")]
    ledger.changed(changed_limit(None))
    ledger.changed(changed_limit(9.0, "no such budget"))
    assert ledger.limit("b") == 1.0
    with pytest.raises(BudgetExhausted):
        at_once(ledger.reserve(ALICE, 0.0, 0, NOON))


def test_a_limit_too_small_to_count_is_one_unit_and_its_share_can_be_told():
    ledger = Ledger([budget(name="b", kind="soft")])
    ledger.changed(changed_limit(5e-324))
    (row,) = spend(ledger, 0.5)
    assert row["what"] == "spent"
    assert "spent=5e+11" in ledger.headers(ALICE, NOON)["x-pointsman-budget-warning"]


def test_its_state_goes_through_json_and_leaves_out_what_counts_otherwise_now():
    entries = [budget(name="a"), budget(name="b", scope="user", usd=None, tokens=100)]
    ledger = Ledger(entries)
    spend(ledger, 0.125, input_tokens=3, output_tokens=4)
    ledger.changed(changed_limit(50))
    at_once(ledger.reserve(ALICE, 0.5, 9, NOON))
    state = orjson.loads(orjson.dumps(ledger.state()))
    again = Ledger(entries)
    again.load(state)
    assert again.state() == ledger.state()
    assert again.limit("b") == 50
    assert counters(again, "a")[None]["reserved"] == 0, "calls under way ended with the process"
    other = Ledger([budget(name="a", per="month"), budget(name="b", scope="user", tokens=None, usd=1.0)])
    other.load(state)
    assert [c["spent"] for name in ("a", "b") for c in counters(other, name).values()] == [0]


def test_counters_are_bounded_and_one_whose_window_runs_is_never_forgotten():
    """A hundred users fit; another gets in only when their day is over."""
    ledger = Ledger([budget(scope="user")], max_counters=100)
    for i in range(100):
        spend(ledger, 0.5, principal=Principal(f"u{i}"))
    with pytest.raises(Unavailable):
        at_once(ledger.reserve(ALICE, 0.1, 0, NOON))
    held = at_once(ledger.reserve(Principal("u0"), 0.1, 0, NOON))
    at_once(ledger.reserve(ALICE, 0.1, 0, MIDNIGHT))
    assert set(counters(ledger, ts=MIDNIGHT)) == {"search/alice", "u0"}
    ledger.release(held)


def test_without_budgets_nothing_is_counted():
    ledger = Ledger()
    ledger.release(at_once(ledger.reserve(ALICE, 1e9, 1, NOON)))
    assert spend(ledger, 1.0) == ()
    assert ledger.listed(NOON) == []
