"""The token bucket: no 1,000 requests in a row cost more than 1.01 times their budget, whatever comes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.pacing import WINDOW, Pacer

law = settings(max_examples=40, deadline=None, derandomize=True, database=None)
B = 0.01
# Runs of requests that take the same share of what is allowed (0: free, 1: all of it), or cost so much if allowed.
RUNS = st.lists(
    st.tuples(
        st.integers(1, 700),
        st.one_of(st.tuples(st.just("share"), st.floats(0, 1)), st.tuples(st.just("usd"), st.floats(0, 50 * B))),
    ),
    min_size=1,
    max_size=12,
)


def wanted(runs):
    return [ask for times, ask in runs for _ in range(times)]


def within(ask, room_usd):
    kind, amount = ask
    room_usd = max(0.0, room_usd)
    return amount * room_usd if kind == "share" else min(amount, room_usd)


def keeps_its_promises(costs):
    total = np.concatenate([[0.0], np.cumsum(costs)])
    n = np.arange(len(total))
    first = n <= WINDOW
    assert (total[first] <= n[first] * B + 10 * B + 1e-9).all()
    if len(total) > WINDOW:
        assert (total[WINDOW:] - total[:-WINDOW] <= 1.01 * WINDOW * B + 1e-9).all()


@given(RUNS)
@law
def test_costs_within_the_room_never_overspend_a_window(runs):
    """Expected costs are anything, realised ones known at once and within the room of their decision."""
    pacer, costs = Pacer(B), []
    for step, ask in enumerate(wanted(runs)):
        cost = within(ask, pacer.room_usd(step))
        booked = 0.5 * cost if step % 3 else 2.0 * cost
        pacer.reserve(step, booked)
        pacer.settle(step, step + 1, booked, cost)
        costs.append(cost)
    keeps_its_promises(costs)


@given(RUNS, st.integers(0, 2**32 - 1), st.integers(1, 300))
@law
def test_neither_do_costs_within_what_was_booked_in_whatever_order_they_become_known(runs, seed, most_in_flight):
    """Realised costs are at most what was booked, and known up to 300 requests later, in any order, or never."""
    rng, pacer, costs, in_flight = np.random.default_rng(seed), Pacer(B), [], []
    for step, ask in enumerate(wanted(runs)):
        booked = within(ask, pacer.room_usd(step))
        pacer.reserve(step, booked)
        costs.append(booked * rng.random())
        in_flight.append((step, booked))
        while len(in_flight) > most_in_flight or (in_flight and rng.random() < 0.6):
            made_at, reserved = in_flight.pop(int(rng.integers(len(in_flight))))
            known = None if rng.random() < 0.1 else costs[made_at]
            pacer.settle(made_at, step + 1, reserved, known)
    keeps_its_promises(costs)


@given(RUNS, st.floats(0, 5))
@law
def test_what_costs_more_than_was_thought_possible_is_all_that_passes_the_bound(runs, excess):
    """Every seventh call costs `excess` times B more than its room: a window passes by no more than its own excesses.

    What has been overspent is taken from the requests that follow, which may then cost nothing.
    """
    pacer, costs, over = Pacer(B), [], []
    for step, ask in enumerate(wanted(runs)):
        cost = within(ask, pacer.room_usd(step))
        over.append(excess * B if step % 7 == 0 else 0.0)
        pacer.reserve(step, cost)
        pacer.settle(step, step + 1, cost, cost + over[-1])
        costs.append(cost + over[-1])
    total, more = (np.concatenate([[0.0], np.cumsum(values)]) for values in (costs, over))
    if len(total) > WINDOW:
        passed = total[WINDOW:] - total[:-WINDOW] - 1.01 * WINDOW * B
        assert (passed <= more[WINDOW:] - more[:-WINDOW] + 1e-9).all()
