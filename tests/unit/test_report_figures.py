"""The figures of a report, each from a few rows that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hand_made_log import START_TS, HandMadeLog
from scipy.stats import chi2, norm

from bandit.errors import InvalidInput
from bandit.intervals import wilson
from evaluation.judgement import Standards
from evaluation.logs import opened
from evaluation.measures import Measures
from evaluation.report import report_data
from evaluation.report_calibration import Calibration
from evaluation.report_figures import bin_width_s
from evaluation.selection import Selection


@pytest.fixture
def log(tmp_path):
    return HandMadeLog(tmp_path / "log.duckdb")


def figures_of(*paths, limit_s=None, min_effective_samples=2.0, **selected):
    with opened(paths) as source:
        return report_data(
            source,
            Selection("auto", **selected),
            limits={"p95_latency_s": limit_s},
            measures_of=lambda _: Measures(latency_limit_s=limit_s),
            others=lambda *_: [],
            standards=Standards(min_effective_samples=min_effective_samples, replicates=50),
        )


@pytest.fixture
def figures(log):
    return lambda **options: figures_of(log.write(), **options)


def share(total, n):
    low, high = wilson(total, n)
    return {"mean": total / n, "low": low, "high": high, "samples": n}


def model(data, name):
    return next(row for row in data["models"] if row["model"] == name)


def by_model(rows, name):
    return next(row for row in rows if row["model"] == name)


# --- money, latency, failures


def test_spend_is_that_of_all_attempts_and_what_is_unknown_is_said(log, figures):
    """0.1 + 0.3 + 0.2 of a and 0.4 of b over three calls; the answer to a fourth has no price."""
    log.call("a", ("a", "ok", 1.0, 0.1))
    log.call("a", ("a", "error", 1.0, 0.3, 500), ("b", "ok", 1.0, 0.4), ts=START_TS + 100)
    log.call("a", ("a", "ok", 1.0, 0.2), ts=START_TS + 100)
    log.call("b", ("b", "ok", 1.0, None), ts=START_TS + 100)
    spend = figures()["spend"]
    assert (spend["usd"], spend["calls"], spend["answers_without_cost"]) == (pytest.approx(1.0), 4, 1)
    assert (spend["calls_with_cost"], spend["usd_per_call"]) == (3, pytest.approx(1 / 3))
    a, b = (by_model(spend["by_model"], name) for name in "ab")
    assert (a["calls"], a["usd"], a["share_of_spend"]) == (3, pytest.approx(0.6), pytest.approx(0.6))
    assert (b["calls"], b["priced"], b["usd_per_call"]) == (2, 1, pytest.approx(0.4))
    assert [row["cumulated_usd"] for row in spend["over_time"]] == pytest.approx([0.1, 1.0])


def test_latency_has_the_quantiles_of_answers_and_the_share_of_slow_calls(log, figures):
    """Of 1, 2, 4 s: p50 is 2, p95 nine tenths and p99 98 hundredths of the way from 2 to 4.

    A failure is slow, a call abandoned by its caller is neither.
    """
    for latency_s in (1.0, 2.0, 4.0):
        log.call("a", ("a", "ok", latency_s, 0.1))
    log.call("a", ("a", "timeout", 60.0, None))
    log.call("a", ("a", "cancelled", 0.5, None))
    latency = figures(limit_s=3.0)["latency"]
    (a,) = latency["by_model"]
    assert (a["p50"], a["p95"], a["p99"]) == (2.0, pytest.approx(3.8), pytest.approx(3.96))
    assert a["slow"] == share(2, 4)
    assert latency["overall"]["samples"] == 3
    assert figures_of(log.path)["latency"]["by_model"][0]["slow"]["mean"] is None


def test_failures_are_those_the_model_is_to_blame_for(log, figures):
    log.call("a", ("a", "error", 0.2, None, 500), ("b", "ok", 1.0, 0.1))
    log.call("a", ("a", "error", 0.2, None, 400))
    log.call("a", ("a", "timeout", 9.0, None))
    log.call("a", ("a", "ok", 1.0, 0.1))
    failures = figures()["failures"]
    told = {key: failures[key] for key in ("decisions", "with_fallback", "without_answer", "without_outcome")}
    assert told == {"decisions": 4, "with_fallback": 1, "without_answer": 2, "without_outcome": 0}
    a = by_model(failures["by_model"], "a")
    assert {key: a[key] for key in ("mean", "low", "high", "samples")} == share(2, 4)
    assert {(k["model"], k["status"], k["http_status"], k["attempts"], k["blamed"]) for k in failures["kinds"]} == {
        ("a", "error", 500, 1, True),
        ("a", "error", 400, 1, False),
        ("a", "timeout", None, 1, True),
    }


def test_quality_is_the_feedback_in_force_by_model_and_category(log, figures):
    """A revision replaces, an assumed quality does not count, a pinned call is nobody's traffic."""
    log.call("a", feedback=[(0.0, {}), (1.0, {})], category="math")
    log.call("a", feedback=[(0.5, {})], category="law")
    log.call("a", feedback=[(1.0, {"imputed": 1.0})], category="math")
    log.call("b", feedback=[(0.0, {})], category="math")
    log.call("b", feedback=[(1.0, {})], category="math", mode="pinned", propensity=1.0)
    data = figures()
    assert model(data, "a")["overall"]["quality"] == share(1.5, 2)
    assert model(data, "b")["overall"]["quality"] == share(0.0, 1)
    assert {c["category"]: c["quality"]["samples"] for c in model(data, "a")["categories"]} == {"law": 1, "math": 1}
    assert data["selection"]["quality"] == share(1.5, 3)
    assert (data["selection"]["decisions"], data["selection"]["left_out_by_mode"]) == (4, {"pinned": 1})
    overall = data["feedback"]["overall"]
    assert (overall["answered"], overall["with_feedback"], overall["assumed"]) == (4, 3, 1)
    assert overall["missing"] == share(1, 4)


def test_accuracy_is_that_of_each_items_latest_answer(log, figures):
    log.call("a")
    for quality, run in ((0.0, "1"), (1.0, "2"), (None, "3")):
        error = "timeout" if quality is None else None
        log.put(
            "benchmark_result", suite="s", run=run, item_id="1", model="a", category="x", quality=quality, error=error
        )
    log.put("benchmark_result", suite="s", run="1", item_id="2", model="a", category="x", quality=0.0)
    data = figures()
    assert model(data, "a")["overall"]["accuracy"] == share(1.0, 2)
    assert model(data, "a")["overall"]["benchmark_calls"] == 4
    assert model(data, "a")["categories"][1]["accuracy"] == share(1.0, 2)


def test_traffic_and_exploration_are_counted(log, figures):
    """Model b is predicted better: a got two calls where b was feasible; three went to the less likely model."""
    for chosen in "aabb":
        log.call(chosen, p={"a": 0.75, "b": 0.25}, predicted_quality=[0.4, 0.8])
    log.call("a", p={"a": 0.25, "b": 0.75}, predicted_quality=[0.4, 0.8], feasible=[True, False])
    data = figures()
    assert {row["model"]: row["calls"] for row in data["traffic"]["by_model"]} == {"a": 3, "b": 2}
    assert data["not_predicted_best"]["best_quality"] == {"calls": 5, "share": pytest.approx(0.4)}
    assert data["not_predicted_best"]["most_likely"] == {"calls": 5, "share": pytest.approx(0.6)}


# --- the time line


def test_states_are_spans_between_their_changes_and_drift_is_a_mark(log, figures):
    change = {"pool": "auto", "model": "a", "constraint_name": "p95_latency_s", "reason": "proved"}
    log.call("a", ts=START_TS)
    log.put("filter_event", ts=START_TS + 10, from_state="unknown", to_state="admitted", **change)
    log.put(
        "filter_event",
        ts=START_TS + 30,
        pool="auto",
        model="a",
        constraint_name="quality",
        reason="drift",
        evidence=0.2,
    )
    log.put("filter_event", ts=START_TS + 60, from_state="admitted", to_state="filtered", **change)
    log.put("filter_event", ts=START_TS + 70, from_state="admitted", to_state="filtered", **change | {"pool": "other"})
    log.call("b", ts=START_TS + 100)
    standing = figures()["standing"]
    a, b = standing["models"]
    spans = [(s["state"], s["from_ts"] - START_TS, s["to_ts"] - START_TS) for s in a["spans"]]
    assert spans == [("unknown", 0.0, 10.0), ("admitted", 10.0, 60.0), ("filtered", 60.0, 100.0)]
    assert [(r["ts"] - START_TS, r["head"], r["change"]) for r in a["resets"]] == [(30.0, "quality", 0.2)]
    assert [span["state"] for span in b["spans"]] == [None]
    assert standing["events"] == 3


def test_what_changed_before_the_time_is_the_state_it_begins_with(log, figures):
    change = {"pool": "auto", "model": "a", "reason": "proved"}
    log.put("filter_event", ts=START_TS - 50, from_state="unknown", to_state="filtered", **change)
    log.call("a", ts=START_TS)
    log.call("a", ts=START_TS + 100)
    standing = figures(since_ts=START_TS)["standing"]
    assert [(span["state"], span["to_ts"]) for span in standing["models"][0]["spans"]] == [("filtered", START_TS + 100)]
    assert standing["events"] == 0


# --- propensities


def test_calibration_of_two_models_is_the_binomial_test():
    """With two models χ² has one degree of freedom and is z² of the first: 60 of 100 draws at 1/2 are z = 2."""
    sums = Calibration(("a", "b"))
    sums.add(np.array([0] * 60 + [1] * 40), np.full((100, 2), 0.5))
    data = sums.data()
    a, b = data["by_model"]
    assert (a["drawn"], a["expected"], a["z"]["value"], b["z"]["value"]) == (
        60,
        50.0,
        pytest.approx(2.0),
        pytest.approx(-2.0),
    )
    assert data["test"]["statistic"] == pytest.approx(4.0)
    assert (data["test"]["degrees"], data["test"]["p_value"]) == (1, pytest.approx(chi2.sf(4.0, 1)))
    assert a["z"]["p_value"] == pytest.approx(2 * norm.sf(2.0))
    (only,) = data["bins"]  # both models are in it at every draw, so it is hit every time
    assert (only["pairs"], only["realised"], only["z"]["value"]) == (200, 0.5, None)


def test_calibration_of_constant_probabilities_is_pearsons_test():
    p, drawn = np.array([0.5, 0.3, 0.2]), np.array([90, 70, 40])
    sums = Calibration(("a", "b", "c"))
    sums.add(np.repeat(np.arange(3), drawn), np.tile(p, (200, 1)))
    test = sums.data()["test"]
    assert test["statistic"] == pytest.approx(((drawn - 200 * p) ** 2 / (200 * p)).sum())
    assert test["degrees"] == 2


def test_right_propensities_pass_and_wrong_ones_do_not():
    """20,000 draws of changing probabilities, seed fixed; then logged as if they were halfway to uniform."""
    rng = np.random.default_rng(5)
    p = rng.dirichlet([0.3, 1.0, 3.0], 20_000)
    chosen = (p.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    p_values = []
    for logged in (p, 0.5 * p + 0.5 / 3):
        sums = Calibration(("a", "b", "c"))
        for part in range(0, 20_000, 7_000):
            sums.add(chosen[part : part + 7_000], logged[part : part + 7_000])
        p_values.append(sums.data()["test"]["p_value"])
    assert p_values[0] > 0.01
    assert p_values[1] < 1e-9


def test_a_pool_that_never_draws_has_nothing_to_test(log, figures):
    for _ in range(30):
        log.call("a", p={"a": 1.0})
    test = figures()["calibration"]["test"]
    assert test == {"statistic": None, "degrees": 0, "p_value": None, "models": 0}


# --- estimates


def test_each_model_alone_is_estimated_beside_what_was_predicted(log, figures):
    """Uniform draws, a always costs 0.01 and b 0.03 with qualities 0.5 and 1: known exactly, whatever was drawn."""
    for i in range(400):
        chosen = "ab"[i % 2]
        cost = {"a": 0.01, "b": 0.03}[chosen]
        log.call(chosen, (chosen, "ok", 1.0, cost), feedback=[({"a": 0.5, "b": 1.0}[chosen], {})],
                 predicted_quality=[0.6, 0.9], predicted_cost_usd=[0.02, 0.04], ts=START_TS + i)  # fmt: skip
    data = figures(min_effective_samples=100.0)
    alone = data["single_models"]
    assert alone["logged"]["cost_usd"]["value"] == pytest.approx(0.02)
    a, b = alone["models"]
    assert a["cost_usd"]["estimate"]["value"] == pytest.approx(0.01, rel=1e-3)
    assert b["cost_usd"]["estimate"]["value"] == pytest.approx(0.03, rel=1e-3)
    assert b["saving_usd"]["value"] == pytest.approx(400 * 0.01, rel=1e-2)
    assert b["quality"]["difference"]["value"] == pytest.approx(0.25, rel=1e-2)
    assert (a["predicted_cost_usd"], b["predicted_quality"]) == (pytest.approx(0.02), pytest.approx(0.9))
    greedy, likeliest = data["exploration"]["policies"]
    assert greedy["policy"] == "greedy"
    assert greedy["metrics"]["quality"]["difference"]["value"] == pytest.approx(0.25, rel=1e-2)
    assert likeliest["metrics"]["quality"]["difference"]["value"] == pytest.approx(-0.25, rel=1e-2)  # ties: the first


def test_where_the_log_is_too_thin_there_is_a_reason_and_no_number(log, figures):
    log.call("a", feedback=[(1.0, {})])
    row = figures(min_effective_samples=200.0)["single_models"]["models"][0]
    assert row["quality"]["estimate"] is row["saving_usd"] is None
    assert "effective sample size" in row["quality"]["cannot_tell"]


def test_several_versions_of_the_features_leave_the_counted_figures(log, figures):
    log.call("a", context_version="v1")
    log.call("a", context_version="v2", context=[1.0, 2.0])
    data = figures()
    assert "several versions" in data["single_models"]["cannot_tell"]
    assert (data["spend"]["calls"], data["policies"]) == (2, [])


# --- selections


def test_where_and_times_choose_the_same_decisions_everywhere(log, figures):
    log.call("a", category="math", ts=START_TS)
    log.call("b", category="law", ts=START_TS + 10)
    log.call("b", category="law", ts=START_TS + 20)
    data = figures(where="category = 'law'", until_ts=START_TS + 20)
    assert (data["selection"]["decisions"], data["judged"]["decisions"], data["spend"]["calls"]) == (1, 1, 1)
    assert model(data, "a")["overall"]["calls"] == 0


@pytest.mark.parametrize(
    ("selected", "sentence"),
    [
        ({"where": "no such"}, "--where"),
        ({"where": "no_such_column = 1"}, "--where"),
        ({"since_ts": START_TS + 1}, "none of the 1 decisions"),
    ],
)
def test_a_selection_that_is_none_is_said(log, figures, selected, sentence):
    log.call("a")
    with pytest.raises(InvalidInput, match=sentence):
        figures(**selected)


def test_several_logs_are_one_even_where_their_ids_are_the_same(tmp_path):
    paths = []
    for i in range(2):
        log = HandMadeLog(tmp_path / f"{i}.duckdb")
        log.call("a", ("a", "ok", 1.0, 0.1), feedback=[(float(i), {})], ts=START_TS + i)
        log.put("benchmark_result", suite="s", run="1", item_id="1", model="a", quality=float(i), ts=START_TS + i)
        paths.append(log.write())
    data = figures_of(*paths)
    overall = model(data, "a")["overall"]
    assert (data["spend"]["usd"], overall["quality"]["samples"]) == (pytest.approx(0.2), 2)
    assert overall["accuracy"] == share(1.0, 1)


def test_parquet_files_of_decisions_and_outcomes_alone_suffice(log, tmp_path):
    import duckdb

    log.call("a", ("a", "error", 1.0, 0.1, 500))
    log.call("b", ("b", "ok", 1.0, 0.1), ts=START_TS + 5)
    with duckdb.connect(str(log.write()), read_only=True) as connection:
        for table in ("decisions", "outcomes"):
            connection.execute(f"COPY {table} TO '{tmp_path / table}.parquet' (FORMAT parquet)")
    data = figures_of(tmp_path / "decisions.parquet", tmp_path / "outcomes.parquet")
    assert (data["spend"]["calls"], data["standing"]["events"], data["feedback"]["overall"]["with_feedback"]) == (
        2,
        0,
        0,
    )
    alone = figures_of(tmp_path / "decisions.parquet")
    assert (alone["spend"]["usd"], alone["failures"]["without_outcome"]) == (None, 2)


def test_a_log_of_a_later_version_is_refused(log):
    import duckdb

    log.call("a")
    with duckdb.connect(str(log.write())) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(InvalidInput, match="schema version 99"):
        figures_of(log.path)


@pytest.mark.parametrize("span_s", [0.0, 1.0, 59.0, 3_600.0, 86_400.0, 1e7, 1e9])
def test_there_are_at_most_49_bins_of_time(span_s):
    width = bin_width_s(START_TS, START_TS + span_s)
    assert width > 0
    assert math.floor((START_TS + span_s) / width) - math.floor(START_TS / width) <= 48
