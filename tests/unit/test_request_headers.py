"""What callers say beside the body: read whole, or refused by its name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.types import RequestLimits
from serving.errors import InvalidRequest
from serving.request_headers import NO_LIMITS, Hints, read_hints, with_fields

COST, LATENCY, CONTEXT = "x-pointsman-max-cost-usd", "x-pointsman-max-latency-s", "x-pointsman-context"


def test_who_says_nothing_has_no_hints():
    assert read_hints({}) == Hints(None, {}, None, NO_LIMITS)
    assert not NO_LIMITS.set


def test_all_that_can_be_said_at_once():
    headers = {
        "x-pointsman-category": "math",
        "x-pointsman-tags": "a=1, b=2",
        COST: "2e-3",
        LATENCY: "5",
        CONTEXT: "1,-2.5",
    }
    assert read_hints(headers) == Hints("math", {"a": "1", "b": "2"}, (1.0, -2.5), RequestLimits(0.002, 5.0))


@given(st.floats(1e-6, 1e7))
def test_any_number_above_zero_is_a_limit(value):
    assert read_hints({COST: repr(value)}).limits == RequestLimits(value, None)
    assert read_hints({LATENCY: f" {value!r} "}).limits == RequestLimits(None, value)


@given(st.text(max_size=50))
def test_any_text_is_a_limit_above_zero_or_refused(text):
    try:
        limits = read_hints({COST: text}).limits
    except InvalidRequest as error:
        assert (error.param, error.code) == (COST, "invalid_header")  # noqa: PT017 - some texts are refused, others not
    else:
        assert limits.max_cost_usd == float(text) > 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=64))
def test_numbers_come_back_from_either_form(values):
    for text in (",".join(map(repr, values)), repr(values)):
        assert read_hints({CONTEXT: text}).vector == tuple(values)


@given(st.text(max_size=200) | st.lists(st.sampled_from(["1", "-2.5", "nan", "", "x", "1e999"])).map(",".join))
def test_any_text_is_a_vector_of_finite_numbers_or_refused(text):
    try:
        vector = read_hints({CONTEXT: text}).vector
    except InvalidRequest as error:
        assert (error.param, error.code) == (CONTEXT, "invalid_header")  # noqa: PT017 - as above
    else:
        assert 1 <= len(vector) <= 64
        assert all(map(math.isfinite, vector))


@pytest.mark.parametrize(
    "text", [",".join("1" * 65), "1" * 41, "[" * 100_000, "[" + "1," * 64 + "1]", "[true]", "{}", "[]"]
)
def test_a_vector_too_many_or_of_another_kind_is_refused(text):
    with pytest.raises(InvalidRequest, match=f"{CONTEXT} must be 1 to 64 finite numbers"):
        read_hints({CONTEXT: text})


def test_a_bodys_fields_add_to_the_headers():
    hints = Hints("math", {"a": "1"}, None, RequestLimits(0.5, None))
    body = {"max_latency_s": 3, "context": [1, 2.5], "model": "auto", "max_cost_usd": None}
    assert with_fields(hints, body) == Hints("math", {"a": "1"}, (1.0, 2.5), RequestLimits(0.5, 3))
    assert with_fields(hints, {"model": "auto"}) is hints


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_cost_usd": 1}, "also given by the header x-pointsman-max-cost-usd"),
        ({"context": [1]}, "also given by the header x-pointsman-context"),
        ({"max_latency_s": "1"}, "above 0"),
        ({"max_latency_s": -1}, "between 1e-06 and 1e[+]07"),
        ({"max_latency_s": False}, "above 0"),
    ],
)
def test_a_field_that_is_wrong_or_said_twice_is_named(body, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        with_fields(Hints(None, {}, (1.0,), RequestLimits(1.0, None)), body)
    assert (caught.value.param, caught.value.code) == (*body, "invalid_request")
