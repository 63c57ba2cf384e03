"""The price on spending and the bucket: steps by hand, what is withheld, and which order of settling is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import snapshot
from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.pacing import WINDOW, Pacer

B = 0.01  # USD per request
STEP, SMALLEST = 0.003, 0.01


def settled(pacer, step, cost_usd, **kwargs):
    pacer.reserve(step, cost_usd)
    pacer.settle(step, step + 1, cost_usd, cost_usd, **kwargs)


def test_the_multiplier_steps_by_the_relative_gap_times_itself():
    """λ ← [λ + 0.003·(λ + 0.01)·gap]₊ by hand: gap 2 adds 6e-5; then 0.003·0.01006·(−1); gap 0 changes nothing."""
    pacer = Pacer(B)
    seen = []
    for step, cost in enumerate((0.03, 0.0, 0.01, 0.02)):
        settled(pacer, step, cost)
        seen.append(pacer.multiplier)
    first = 6e-5
    second = first - STEP * (first + SMALLEST)
    assert seen == pytest.approx([first, second, second, second + STEP * (second + SMALLEST)], rel=1e-12)


def test_a_large_multiplier_moves_in_proportion_and_never_below_0():
    pacer = Pacer(B)
    pacer.multiplier = 1.0
    settled(pacer, 0, 0.02)
    assert pacer.multiplier == pytest.approx(1.0 + STEP * 1.01)
    pacer.multiplier = 1e-5
    settled(pacer, 1, 0.0)
    assert pacer.multiplier == 0.0


def test_one_very_dear_call_counts_as_four_budgets_over():
    pacer = Pacer(B)
    settled(pacer, 0, 100.0)
    assert pacer.multiplier == pytest.approx(STEP * SMALLEST * 4)


def test_what_the_bucket_withheld_counts_as_wanted():
    """Spent half a budget because one and a half were withheld: the gap is +1, not −½, and λ must not unwind."""
    held, free = Pacer(B), Pacer(B)
    settled(held, 0, 0.005, withheld_usd=0.015)
    settled(free, 0, 0.005)
    assert held.multiplier == pytest.approx(STEP * SMALLEST)
    assert free.multiplier == 0.0
    assert held.room_usd(1) == free.room_usd(1)  # withheld is not spent


def test_a_further_attempt_costs_but_brings_no_second_budget():
    """A failed attempt for nothing and one of 0.02: c/B − 1 = +1 in all, where two budgets would make it 0."""
    pacer = Pacer(B)
    pacer.multiplier = 1.0
    pacer.reserve(0, 0.015)
    pacer.settle(0, 1, 0.015, 0.0)
    pacer.settle_more(0, 1, 0.02)
    expected = 1.0 - STEP * 1.01
    assert pacer.multiplier == pytest.approx(expected + STEP * (expected + SMALLEST) * 2)
    assert pacer.state()["usd"][0] == pytest.approx(0.02)
    pacer.settle_more(0, 1, None)
    assert pacer.state()["usd"][0] == pytest.approx(0.02)


def test_the_bucket_starts_with_what_the_window_may_overspend():
    """1,000·B count as spent, 0.5 % is kept back: 5·B and the budget of the request itself remain."""
    pacer = Pacer(B)
    assert pacer.room_usd(0) == pytest.approx(6 * B)
    settled(pacer, 0, 4 * B)
    assert pacer.room_usd(1) == pytest.approx(3 * B)
    settled(pacer, 1, 0.0)
    assert pacer.room_usd(2) == pytest.approx(4 * B)


def test_savings_expire_after_the_window():
    """1,000 calls for nothing leave 1,005·B to spend, and spending all of it at once leaves nothing for 999 calls."""
    pacer = Pacer(B)
    for step in range(WINDOW):
        settled(pacer, step, 0.0)
    assert pacer.room_usd(WINDOW) == pytest.approx(1005 * B)
    settled(pacer, WINDOW, 1005 * B)
    for step in range(WINDOW + 1, 2 * WINDOW):
        assert pacer.room_usd(step) == pytest.approx(0.0, abs=1e-9)
        settled(pacer, step, 0.0)
    assert pacer.room_usd(2 * WINDOW) == pytest.approx(1005 * B)


def test_expected_cost_is_booked_until_the_real_one_is_known_in_any_order():
    """Three requests in flight, settled last first; one never: the same as had they been known at once."""
    late, known = Pacer(B), Pacer(B)
    for step, cost in enumerate((0.02, 0.004, 0.03)):
        late.reserve(step, 0.01)
        known.reserve(step, cost)
    assert late.room_usd(3) == pytest.approx(6 * B)
    late.settle(2, 3, 0.01, 0.03)
    late.settle(0, 3, 0.01, 0.02)
    late.settle(1, 3, 0.01, None)  # unknown: what was booked stays
    assert late.room_usd(3) == pytest.approx(known.room_usd(3) - (0.01 - 0.004))


def test_a_cost_that_comes_after_its_window_moves_the_multiplier_only():
    pacer = Pacer(B)
    pacer.reserve(0, B)
    for step in range(1, WINDOW):
        settled(pacer, step, B)
    room = pacer.room_usd(WINDOW)
    pacer.settle(0, WINDOW, B, 2 * B)  # still in its slot, which is the oldest and leaves with the next request
    assert pacer.room_usd(WINDOW) == pytest.approx(room)
    settled(pacer, WINDOW, B)
    before = pacer.state()["usd"]
    multiplier = pacer.multiplier
    pacer.settle(0, WINDOW + 1, B, 3 * B)
    np.testing.assert_array_equal(pacer.state()["usd"], before)
    assert pacer.multiplier > multiplier


def test_a_state_round_trips_byte_by_byte_and_dollars_stay_dollars_under_another_budget():
    rng, pacer = np.random.default_rng(0), Pacer(0.00083)
    for step in range(1500):
        settled(pacer, step, float(rng.random() * 0.002))
    twin, richer = Pacer(0.00083), Pacer(0.00166)
    for other in (twin, richer):
        other.load(snapshot.loads(snapshot.dumps({"p": pacer.state()}))["p"])
    assert snapshot.dumps(twin.state()) == snapshot.dumps(pacer.state())
    assert twin.room_usd(1500) == pytest.approx(pacer.room_usd(1500), rel=1e-9)
    assert richer.room_usd(1500) == pytest.approx(pacer.room_usd(1500) + 1005 * 0.00083)
    with pytest.raises(SnapshotMismatch):
        twin.load({"multiplier": 0.0, "usd": np.zeros(999)})


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_must_be_positive(budget):
    with pytest.raises(InvalidInput, match="usd_per_request"):
        Pacer(budget)
