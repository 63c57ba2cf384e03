"""The most an attempt can cost, by hand: input 1 USD and output 10 USD per million."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bandit.types import Price
from serving.access.worst_case import WorstCase, worst_case

PRICE = Price(1.0, 10.0)


def call(kind="chat/completions", limit=None, **body):
    return SimpleNamespace(kind=kind, body=body, worst_input_tokens=1_000, max_output_tokens=limit)


@pytest.mark.parametrize(
    ("asked", "longest", "expected"),
    [
        (call(limit=100), None, WorstCase(0.002, 1_100)),
        (call(limit=100), 50, WorstCase(0.0015, 1_050)),
        (call(), 50, WorstCase(0.0015, 1_050, 50)),
        (call(), None, WorstCase(0.003, 1_200, 200)),
        (call(n=3), None, WorstCase(0.007, 1_600, 200)),
        (call("completions", prompt=["a", "b"], best_of=2), 50, WorstCase(0.003, 1_200, 50)),
        (call("completions", prompt=[1, 2, 3]), 50, WorstCase(0.0015, 1_050, 50)),
        (call("embeddings"), 50, WorstCase(0.001, 1_000)),
        (call("infer"), 50, WorstCase(0.0015, 1_050)),
        (call("infer"), None, WorstCase(0.003, 1_200)),
    ],
)
def test_it_is_the_whole_input_and_the_longest_answers(asked, longest, expected):
    found = worst_case(asked, PRICE, longest, 200)
    assert (found.tokens, found.max_tokens) == (expected.tokens, expected.max_tokens)
    assert found.usd == pytest.approx(expected.usd)


def test_an_unknown_price_is_an_unknown_cost_and_a_dearer_cache_counts():
    assert worst_case(call(limit=0), None, None, 200) == WorstCase(None, 1_000)
    assert worst_case(call(limit=0), Price(1.0, 10.0, 1.25), None, 200).usd == pytest.approx(0.00125)


def test_an_inference_call_paid_by_the_call_costs_just_that():
    assert worst_case(call("infer"), Price(0.0, 0.0, per_call=0.4), None, 200) == WorstCase(0.4, 1_000)
