"""Laws of the ledger: however calls overlap no hard budget is passed, and what is booked sums up the outcomes."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from metered_calls import ALICE, BOB, CAROL, NOON, at_once, budget, outcome, record

from serving.access.ledger import Ledger
from serving.errors import BudgetExhausted

WHO = (ALICE, BOB, CAROL)
ENTRIES = [
    budget(name="all", per="minute"),
    budget(name="team", scope="team", usd=0.6),
    budget(name="user", scope="user", usd=None, tokens=50, per="total"),
]
LIMITS = {"all": 1.0, "team": 0.6, "user": 50}
# what a call does: who, its worst case in micro-USD and tokens, which part of it is used; then what happens when
calls = st.tuples(st.sampled_from(WHO), st.integers(0, 400_000), st.integers(0, 30), st.integers(0, 4))
steps = st.lists(st.one_of(calls, st.integers(0, 9), st.just("tick")), max_size=60)


def run(steps):
    """Play `steps`: a call starts, the i-th one under way ends, or time passes. Yields (ledger, outcomes, now)."""
    ledger, now = Ledger(ENTRIES), NOON
    under_way, done = [], []
    for step in steps:
        if step == "tick":
            now += 25.0
        elif isinstance(step, int):
            if step < len(under_way):
                principal, usd, tokens, quarters, held = under_way.pop(step)
                used = outcome(usd * quarters / 4e6, now, input_tokens=tokens * quarters // 4)
                ledger.outcome(record(principal), used)
                ledger.release(held)
                done.append((principal, used))
        else:
            principal, usd, tokens, _ = step
            try:
                held = at_once(ledger.reserve(principal, usd / 1e6, tokens, now))
            except BudgetExhausted:
                pass
            else:
                under_way.append((*step, held))
        yield ledger, done, now, len(under_way)


def shown(ledger, now):
    return {(b["name"], c["member"]): c for b in ledger.listed(now) for c in b["counters"]}


@given(steps)
def test_no_interleaving_passes_a_limit(steps):
    for ledger, _, now, under_way in run(steps):
        for (name, _), counter in shown(ledger, now).items():
            assert counter["spent"] + counter["reserved"] <= LIMITS[name] + 1e-12
            assert under_way or counter["reserved"] == 0


@given(steps)
def test_what_is_booked_is_the_sum_of_the_outcomes(steps):
    for ledger, done, now, _ in run(steps):
        for (name, member), counter in shown(ledger, now).items():
            since, until = counter["window_start"], counter["resets_at"] or 1e18
            mine = [o for p, o in done if member in (None, p.team if name == "team" else f"{p.team}/{p.user}")]
            mine = [o for o in mine if since <= o.ts < until]
            total = sum(o.input_tokens for o in mine) if name == "user" else sum(Fraction(o.cost_usd) for o in mine)
            assert abs(Fraction(counter["spent"]) - total) < Fraction(1, 10**10)


@given(steps, st.integers(0, 60))
def test_a_replay_of_the_outcomes_is_what_was_booked_live(steps, cut):
    """Also from a snapshot taken anywhere."""
    snapshot = Ledger(ENTRIES).state(), 0
    ledger, done, now = Ledger(ENTRIES), [], NOON
    for i, (ledger, done, now, _) in enumerate(run(steps)):  # noqa: B007 - the last ones are used
        if i == cut:
            snapshot = ledger.state(), len(done)
    again = Ledger(ENTRIES)
    again.load(snapshot[0])
    for principal, used in done[snapshot[1] :]:
        again.outcome(record(principal), used)
    booked = {key: c["spent"] for key, c in shown(ledger, now).items() if c["spent"]}
    assert {key: c["spent"] for key, c in shown(again, now).items() if c["spent"]} == booked
