"""Sweeps: which values a text stands for, and which results nothing else beats."""

from __future__ import annotations

import pytest

from bandit.errors import InvalidInput
from evaluation.frontier import Point, efficient, plot, sweep_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,3", ("1", "2", "3")),
        ("uniform, linucb", ("uniform", "linucb")),
        ("null", ("null",)),
        ("0:1:5", ("0", "0.25", "0.5", "0.75", "1")),
        ("1:0:3", ("1", "0.5", "0")),
        ("1e-4:1:5:log", ("0.0001", "0.001", "0.01", "0.1", "1")),
        ("{kind: weighted, weights: {a: 1, b: 2}},{kind: uniform}", None),
    ],
)
def test_a_sweep_is_a_list_or_a_range(text, values):
    """A comma inside brackets parts nothing."""
    if values is None:
        values = ("{kind: weighted, weights: {a: 1, b: 2}}", "{kind: uniform}")
    assert sweep_values(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,,2", "empty value"),
        ("", "empty value"),
        ("0:1:1", "at least 2 values"),
        ("0:1:3:log", "above 0 for log"),
        ("0:1:100000", "at most 200"),
        (",".join("1" * 201), "at most 200"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        sweep_values(text)


def test_a_point_is_efficient_where_no_other_is_as_cheap_and_as_good():
    """Dear and worse, as dear and worse, dearer and as good: each is beaten. Equal ones do not beat each other."""
    nan = float("nan")
    points = [
        ("cheapest", 1.0, 0.5, True),
        ("better", 2.0, 0.7, True),
        ("as dear, worse", 2.0, 0.6, False),
        ("dearer, as good", 2.5, 0.7, False),
        ("best", 3.0, 0.9, True),
        ("its twin", 3.0, 0.9, True),
        ("dear and worse", 4.0, 0.1, False),
        ("of unknown cost", nan, 1.0, False),
    ]
    assert efficient([Point(*point[:3]) for point in points]) == tuple(point[3] for point in points)


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_a_plot_is_a_file_of_its_kind(tmp_path, suffix, start):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"frontier{suffix}"
    points = [Point("1", 0.01, 0.5), Point("2", 1.0, 0.7, 0.1, 0.01), Point("?", float("nan"), 0.3)]
    plot(path, "Pool auto", points, [Point("small", 0.3, 0.4)])
    assert path.read_bytes().startswith(start)


def test_another_kind_of_plot_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"must end in \.svg or \.png"):
        plot(tmp_path / "frontier.pdf", "", [], [])
