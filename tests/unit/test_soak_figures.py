"""What a soak's samples say, counted by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.growth import projected
from benchmarks.soak_calls import unexpected
from benchmarks.soak_figures import files_of, line


def test_a_line_through_points_on_it_has_no_error():
    assert line([0, 1, 2, 3], [1.0, 3.0, 5.0, 7.0]) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-12))


def test_a_slope_and_its_standard_error():
    """X 0..3, y 0, 2, 1, 3: the mean is 1.5, Sxy 4, Sxx 5, the slope 0.8; the rest's squares add up to 1.8."""
    slope, error = line([0, 1, 2, 3], [0.0, 2.0, 1.0, 3.0])
    assert slope == pytest.approx(0.8)
    assert error == pytest.approx(math.sqrt(1.8 / 2 / 5))


def test_two_points_say_nothing():
    assert all(math.isnan(value) for value in line([0, 1], [0.0, 1.0]))


def test_answers_that_should_have_been_are_not_unexpected():
    good = {"call: 200": 5, "call: 400 refused": 2, "graded: 200": 3, "graded late: 200": 1, "revised: 200": 1}
    assert unexpected(good) == {}
    odd = {"call: 503": 1, "graded: 404": 2, "call: 400": 1}
    assert unexpected(good | odd) == odd


def test_files_that_are_not_there_have_no_size(tmp_path):
    (tmp_path / "router.sqlite").write_bytes(bytes(2_000_000))
    assert files_of(tmp_path) == {"store_mb": 2.0, "store_wal_mb": 0.0, "log_mb": 0.0, "log_wal_mb": 0.0}


def test_a_projection_goes_on_by_decades_and_leaves_out_what_ran_out():
    points = [{"size": 10**n, "cpu_us_per_call": 100.0 + 10 * n} for n in (4, 5, 6)]
    odd = {"size": 1_000, "cpu_us_per_call": 7.0, "ran_out": True}
    found = projected([odd, *points], 10**8)["projected"]
    assert (found["cpu_us_per_call"], found["us_a_decade"]) == (pytest.approx(180.0), pytest.approx(10.0))
    assert projected([odd, *points[:2]], 10**8) == {}
