"""Faults and latency shifts: their words, their shares, and control calls that change all or nothing."""

from __future__ import annotations

import math

import numpy as np
import orjson
import pytest

from bandit.errors import InvalidInput
from evaluation.faults import Conditions, Fault, LatencyShift, parse_faults
from evaluation.synthetic import SyntheticModel, SyntheticSource

SOURCE = SyntheticSource([SyntheticModel(name, 0.5, 0.1, 0.1, 10) for name in ("a", "b")])


def test_words_become_faults():
    specs = ["a=status-429:0.25", "org/b:8b=slow-1.5", "c=timeout", "*=reset:0"]
    assert parse_faults(specs) == {
        "a": Fault("status", 0.25, status=429),
        "org/b:8b": Fault("slow", slow_by_s=1.5),
        "c": Fault("timeout"),
        "*": Fault("reset", 0.0),
    }


@pytest.mark.parametrize(
    "specs",
    [
        ["a"],
        ["=stall"],
        ["a=explode"],
        ["a="],
        ["a=status"],
        ["a=status-x"],
        ["a=status-200"],
        ["a=status-nan"],
        ["a=stall-3"],
        ["a=slow-nan"],
        ["a=slow--1"],
        ["a=stall:2"],
        ["a=stall:nan"],
        ["a=stall:x"],
        ["a=stall", "a=reset"],
    ],
)
def test_other_words_are_refused(specs):
    with pytest.raises(InvalidInput):
        parse_faults(specs)


def test_a_fault_befalls_its_share_of_calls():
    """With n = 10,000 and z = 4: within 4 sqrt(0.3 * 0.7 / n) of 0.3."""
    conditions, rng = Conditions(SOURCE, {"a": Fault("stall", 0.3)}), np.random.default_rng(5)
    hits = sum(conditions.draw_fault("a", rng) is not None for _ in range(10_000))
    assert abs(hits / 10_000 - 0.3) <= 4 * math.sqrt(0.21 / 10_000)
    assert conditions.draw_fault("b", rng) is None


def test_a_models_own_fault_hides_that_of_all():
    conditions = Conditions(SOURCE, {"*": Fault("stall"), "a": Fault("reset", 0.0)})
    rng = np.random.default_rng(5)
    assert conditions.draw_fault("b", rng) == Fault("stall")
    assert conditions.draw_fault("a", rng) is None


def test_a_shift_begins_and_ends():
    shifts = [LatencyShift("a", 6.0, 20.0, 40.0), LatencyShift("*", 2.0, 30.0)]
    conditions = Conditions(SOURCE, shifts=shifts)
    factors = [conditions.latency_factor("a", t) for t in (19.9, 20.0, 30.0, 39.9, 40.0)]
    assert factors == [1.0, 6.0, 12.0, 12.0, 2.0]
    assert conditions.latency_factor("b", 25.0) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"multiplier": 0.0}, {"multiplier": math.nan}, {"start_s": -1.0}, {"start_s": 5.0, "end_s": 5.0}],
)
def test_an_unsound_shift_is_refused(wrong):
    with pytest.raises(InvalidInput):
        LatencyShift(**({"model": "a", "multiplier": 2.0} | wrong))


def test_faults_and_shifts_of_unknown_models_are_refused():
    with pytest.raises(InvalidInput, match="'x'"):
        Conditions(SOURCE, {"x": Fault("stall")})
    with pytest.raises(InvalidInput, match="'x'"):
        Conditions(SOURCE, shifts=[LatencyShift("x", 2.0)])


def test_control_changes_what_it_names_and_leaves_the_rest():
    conditions = Conditions(SOURCE, {"a": Fault("stall"), "b": Fault("reset")})
    body = {"faults": {"a": {"kind": "status-503", "share": 0.5}, "b": None}, "latency_multiplier": {"b": 4}}
    conditions.control(orjson.dumps(body))
    assert conditions.to_json(0.0) == {
        "run": None,
        "runs": (),
        "faults": {"a": {"kind": "status-503", "share": 0.5}},
        "latency_multiplier": {"a": 1.0, "b": 4.0},
    }
    conditions.control(b'{"latency_multiplier": {"*": 3}}')
    assert [conditions.latency_factor(m, 0.0) for m in ("a", "b")] == [3.0, 4.0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"colour": 1}', "colour"),
        (b'{"run": 7}', "run"),
        (b'{"run": "r1"}', "run"),
        (b'{"faults": {"x": null}}', "faults.x"),
        (b'{"faults": {"a": {"kind": "explode"}}}', "faults.a"),
        (b'{"faults": {"a": {"kind": "stall", "share": 2}}}', "faults.a.share"),
        (b'{"faults": {"a": {"share": 1}}}', "faults.a.kind"),
        (b'{"latency_multiplier": {"x": 1}}', "latency_multiplier.x"),
        (b'{"latency_multiplier": {"a": 0}}', "latency_multiplier.a"),
        (b'{"faults": {"a": null}, "latency_multiplier": {"a": -1}}', "latency_multiplier.a"),
    ],
)
def test_an_unsound_control_call_changes_nothing(body, field):
    conditions = Conditions(SOURCE, {"a": Fault("stall")})
    before = conditions.to_json(0.0)
    with pytest.raises(InvalidInput) as caught:
        conditions.control(body)
    assert caught.value.field == field
    assert conditions.to_json(0.0) == before
