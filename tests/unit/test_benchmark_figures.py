"""Figures of a run by hand, and how they are shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bandit.errors import InvalidInput
from evaluation.benchmark import Ending, chosen_items
from evaluation.benchmark_client import service_url
from evaluation.benchmark_figures import model_figures
from evaluation.benchmark_state import Result
from evaluation.benchmark_view import ProgressView, render_ending, render_figures
from evaluation.suites import Suite


def graded(i, quality, latency_s, cost_usd, category="x", **more):
    return Result("a", f"q{i}", category, "graded", quality=quality, latency_s=latency_s, cost_usd=cost_usd, **more)


RESULTS = [
    *(graded(i, float(i < 8), i + 1.0, 0.5) for i in range(10)),
    Result("a", "q10", "y", "failed", error="upstream_timeout"),
    Result("a", "q11", "y", "ungraded", error="judge_failed", latency_s=11.0, cost_usd=1.5, judge_cost_usd=0.25),
]


def test_figures_of_a_model():
    """8 of 10 right: Wilson 0.490 to 0.943 (Newcombe's table). Latencies 1 to 11: median 6, p95 10.5."""
    a, b = model_figures(["a", "b"], RESULTS)
    assert a["accuracy"] == {
        "mean": 0.8,
        "low": pytest.approx(0.4902, abs=1e-4),
        "high": pytest.approx(0.9433, abs=1e-4),
        "samples": 10,
    }
    assert a["latency_s"] == {"p50": 6.0, "p95": 10.5, "samples": 11}
    assert a["cost_usd_per_call"] == {"mean": pytest.approx(6.5 / 11), "samples": 11}
    assert (a["cost_usd"], a["judge_cost_usd"]) == (6.5, 0.25)
    assert a["errors"] == {"judge_failed": 1, "upstream_timeout": 1}
    assert [c["category"] for c in a["categories"]] == ["x", "y"]
    assert a["categories"][1]["accuracy"]["samples"] == 0
    assert b["accuracy"] == {"mean": None, "low": 0.0, "high": 1.0, "samples": 0}
    assert b["latency_s"]["p50"] is None


def shown(render, *arguments, **more):
    console = Console(file=io.StringIO(), highlight=False)
    render(*arguments, console, **more)
    return console.file.getvalue()


def test_the_table_has_a_row_per_model_and_keeps_long_names_whole():
    text = shown(render_figures, model_figures(["a", "m" * 120], RESULTS), by_category=True)
    assert "0.800  0.490 – 0.943   6.00  10.50" in text
    assert "0.5909" in text
    assert "m" * 120 in text
    assert "\n  x " in text
    assert "\n  x " not in shown(render_figures, model_figures(["a"], RESULTS), by_category=False)


def test_an_ending_says_what_is_left_and_how_to_go_on():
    ending = Ending(
        "budget", failing={"[b]": "10 items in a row failed"}, left_out=7, unposted=2, post_problem="status 503"
    )
    text = shown(render_ending, ending, spent_usd=1.25, judging_usd=0.25, resume="pointsman evaluate --resume")
    assert text.splitlines() == [
        "known cost: 1.250 USD, 0.2500 of it for judges",
        "[b] could not be evaluated: 10 items in a row failed",
        "stopped by --budget-usd; 7 answers are left out, the models equally far",
        "2 results are not with the service yet: status 503",
        "go on with: pointsman evaluate --resume",
    ]


def test_a_run_that_is_through_says_its_cost_alone():
    assert shown(render_ending, Ending(), spent_usd=0.0, judging_usd=0.0, resume="x") == "known cost: 0 USD\n"


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr("evaluation.benchmark_view.time.monotonic", lambda: now_s[0])
    console = Console(file=io.StringIO())
    with ProgressView(console, 9) as view:
        for done in range(9):
            now_s[0] += 4.0
            view.show(done, 0.001 * done, {"b": "why"} if done > 3 else {})
    assert console.file.getvalue().split("\n")[:2] == ["2 of 9 · 0.002000 USD", "5 of 9 · 0.005000 USD · given up: b"]


def test_a_smaller_sample_is_the_beginning_of_a_larger_one():
    suite = Suite("s", tuple(range(100)), "d")
    order = chosen_items(suite, None, 3)
    assert sorted(order) == list(range(100)) != list(order)
    assert chosen_items(suite, 10, 3) == order[:10]
    assert chosen_items(suite, 1000, 3) == order
    assert chosen_items(suite, 10, 4) != order[:10]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h:8080", "http://h:8080"),
        ("http://h:8080/", "http://h:8080"),
        (" https://h/prefix/v1/ ", "https://h/prefix"),
        ("http://[::1]:1", "http://[::1]:1"),
    ],
)
def test_a_services_url_may_end_as_clients_have_it(text, expected):
    assert service_url(text) == expected


@pytest.mark.parametrize("text", ["h:8080", "ftp://h", "http://", "http://h:99999", "http://h?x=1", "http://u:p@h", ""])
def test_a_url_that_is_none_is_refused(text):
    with pytest.raises(InvalidInput, match="--url: must be the service's base URL"):
        service_url(text)
