"""What an outcome teaches, by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from small_pools import make, rng

from bandit import Outcome, Price, Prompt
from bandit.lessons import billed_tokens, booked_usd, head_values, log_ratios
from bandit.posterior import LATENCY, TOKENS

PRICE = Price(1.0, 4.0)


def outcome(**kwargs):
    return Outcome("d", 0.0, "m", "ok", kwargs.pop("latency_s", None), **kwargs)


def test_tokens_and_seconds_are_learned_as_logarithms():
    assert head_values(outcome(latency_s=2.0, output_tokens=99), PRICE, 10) == {TOKENS: log(100), LATENCY: log(2.0)}
    assert head_values(outcome(latency_s=0.0), PRICE, 10) == {LATENCY: log(1e-4)}
    assert head_values(outcome(), PRICE, 10) == {}


def test_a_cost_without_a_count_is_counted_in_output_tokens():
    """0.0014 USD less 1,000 input tokens at 1 USD a million leaves 0.0004: 100 tokens at 4 USD a million."""
    assert head_values(outcome(cost_usd=0.0014), PRICE, 1000)[TOKENS] == pytest.approx(log(101))
    # its own count of input tokens goes before the estimate
    assert head_values(outcome(cost_usd=0.0014, input_tokens=600), PRICE, 1000)[TOKENS] == pytest.approx(log(201))
    assert head_values(outcome(cost_usd=0.0005), PRICE, 1000) == {TOKENS: 0.0}  # a discount is not a negative count
    for price in (None, Price(1.0, 0.0)):
        assert billed_tokens(0.0014, price, 1000) is None
        assert head_values(outcome(cost_usd=0.0014), price, 1000) == {}


def test_what_is_booked_is_what_a_log_keeps_of_the_chosen_arms_expected_cost():
    pool = make(2)
    d = pool.choose(Prompt("x", 100), rng())
    expected = d.predicted_cost_usd[d.arms.index(d.chosen)]
    assert expected.dtype == np.float32
    assert booked_usd(d) == float(expected)
    pool.set_prices({"m0": None, "m1": None})
    assert booked_usd(pool.choose(Prompt("x", 100), rng())) == 0.0


def test_bounds_learn_from_what_the_decision_expected_of_the_model_that_served():
    pool = make(2)
    d = pool.choose(Prompt("x", 100), rng())
    expected = {
        name: (float(np.float32(c)), float(np.float32(s)))
        for name, c, s in zip(d.arms, d.predicted_cost_usd, d.predicted_latency_s, strict=True)
    }
    for model, (cost, seconds) in expected.items():
        o = Outcome("d", 0.0, model, "ok", 2 * seconds, cost_usd=3 * cost)
        assert log_ratios(d, o) == pytest.approx({0: log(3), 1: log(2)})
    assert log_ratios(d, Outcome("d", 0.0, "m0", "ok", None)) == {}
    assert log_ratios(d, Outcome("d", 0.0, "m0", "ok", 0.0, cost_usd=0.0)) == {}
    assert log_ratios(d, Outcome("d", 0.0, "gone", "ok", 1.0)) == {}
    least = log_ratios(d, Outcome("d", 0.0, "m0", "ok", 5e-324))  # by a quotient it would be 0, which has no logarithm
    assert least == pytest.approx({1: log(5e-324) - log(expected["m0"][1])})
