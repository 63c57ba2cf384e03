"""The policy benchmark: yardsticks by hand and brute force, every scenario on a tiny set, the form of its rows."""

from __future__ import annotations

import json
from math import isclose, isnan, nan

import duckdb
import numpy as np
import pytest

from bandit.errors import InvalidInput
from bandit.filters import Transition
from benchmarks.policy import SCENARIOS, main, measured
from benchmarks.policy_jobs import Options, Result, aggregated
from benchmarks.policy_limits import _filtering, least_violating
from benchmarks.policy_onboarding import adoption
from benchmarks.policy_players import Trace
from benchmarks.policy_scenarios import _first_cost
from benchmarks.policy_streams import Stream, study_of, swapped
from benchmarks.policy_yardsticks import figures, hull, mixed, oracle, utilisation

MODELS = ("cheap", "dear", "middling")
COST_USD = np.array([1e-5, 1e-3, 1e-4])
QUALITY = np.array([0.5, 0.95, 0.75])
LATENCY_S = np.array([0.5, 3.0, 1.0])
KEYS = {
    "set",
    "scenario",
    "setting",
    "policy",
    "seeds",
    "quality",
    "cost_usd_per_call",
    "budget_utilisation",
    "p95_latency_s",
    "violating_share",
    "regret",
    "decisions_per_s",
}


def write_set(folder, *, runs=("1",), n=240, latency=True):
    """Three models, qualities 0/1, two categories, splits of a third and two; in a second run dear is quick."""
    rng = np.random.default_rng(0)
    prompts = [(f"p{i}", f"How many trains pass point {i}? " * (1 + i % 3), "ab"[i % 2], i) for i in range(n)]
    rows = [
        (pid, model, run, quality, cost, slow, 40, tokens)
        for run in runs
        for pid, _, category, _ in prompts
        for m, model in enumerate(MODELS)
        for quality in [float(rng.random() < QUALITY[m] - 0.2 * (category == "b") * (m < 1))]
        for tokens in [int(rng.integers(50, 150))]
        for cost in [COST_USD[m] * tokens / 100]
        for slow in [LATENCY_S[m] * (0.3 if run == "2" and m == 1 else 1.0) if latency else None]
    ]
    folder.mkdir()
    with duckdb.connect(":memory:") as db:
        db.execute("CREATE TABLE p (prompt_id VARCHAR, prompt VARCHAR, category VARCHAR, split VARCHAR)")
        warm = n // 3
        db.executemany("INSERT INTO p VALUES (?,?,?,?)", [(*p[:3], "warm" if p[3] < warm else "test") for p in prompts])
        columns = "prompt_id VARCHAR, model VARCHAR, run VARCHAR, quality DOUBLE, cost_usd DOUBLE, latency_s DOUBLE"
        db.execute(f"CREATE TABLE o ({columns}, input_tokens BIGINT, output_tokens BIGINT)")
        db.executemany("INSERT INTO o VALUES (?,?,?,?,?,?,?,?)", rows)
        for name, file in (("p", "prompts"), ("o", "outcomes")):
            db.execute(f"COPY {name} TO '{folder / file}.parquet' (FORMAT parquet)")
    return str(folder)


def stream_of(quality, cost_usd, latency_s=None, part=None):
    quality, cost_usd = np.array(quality, dtype=float), np.array(cost_usd, dtype=float)
    n = quality.shape[1]
    latency = np.full(quality.shape, nan) if latency_s is None else np.array(latency_s, dtype=float)
    parts = np.zeros(n, dtype=int) if part is None else np.array(part)
    return Stream(np.arange(n), parts, quality, cost_usd, latency, np.full(quality.shape, nan))


def trace_of(chosen, transitions=(), flagged=None):
    flags = np.zeros(len(chosen), dtype=bool) if flagged is None else np.array(flagged)
    return Trace(np.array(chosen), flags, tuple(transitions), 0.5)


def moved(arm, to_state):
    return Transition(
        arm, "p95_latency_s", "unknown", to_state, "test", calls=1, rate=0.5, limit_rate=0.05, evidence=100.0
    )


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "tiny2", runs=("1", "2"), n=180)


def test_figures_of_three_calls_by_hand():
    """Models 0, 1, 0 give 1, 0.5, 0 for 1, 4, 2 USD; a budget of 2 USD a call is used to 7/6; 3 choices in 0.5 s."""
    stream = stream_of([[1, 1, 0], [0, 0.5, 1]], [[1, 1, 2], [4, 4, 4]], [[1, 1, 1], [3, 3, 3]])
    violating = np.array([[False, False, True], [True, True, True]])
    found = figures(stream, trace_of([0, 1, 0]), budget=2.0, violating=violating)
    assert found["quality"] == 0.5
    assert isclose(found["cost_usd_per_call"], 7 / 3)
    assert isclose(found["budget_utilisation"], 7 / 6)
    assert isclose(found["violating_share"], 2 / 3)
    assert isclose(found["p95_latency_s"], 2.8)  # of 1, 1, 3: 1 + 0.9·(3 − 1)
    assert found["decisions_per_s"] == 6.0


def test_the_worst_window_is_that_of_the_dearest_thousand_calls():
    """1,500 calls at 1 USD with 100 at 3 USD in the middle: mean 1.1333 of a budget of 1, worst window 1.2."""
    cost = np.ones(1500)
    cost[700:800] = 3.0
    average, worst = utilisation(cost, 1.0)
    assert isclose(average, 1700 / 1500)
    assert isclose(worst, 1.2)


def test_a_window_of_fewer_calls_is_all_of_them():
    assert utilisation(np.array([1.0, 3.0]), 4.0) == (0.5, 0.5)


@pytest.mark.parametrize("budget", [0.05, 0.2, 0.35, 0.9, 3.0])
def test_the_hull_is_the_best_mix_of_two_that_brute_force_finds(budget):
    """Five random models, all pairs, shares in steps of 1/1,000; the hull is at least as good, and within 0.002."""
    rng = np.random.default_rng(3)
    stream = stream_of(rng.random((5, 40)), rng.random((5, 40)) * np.array([[0.1], [0.4], [1.0], [2.0], [3.0]]))
    weights = hull(stream, budget)
    quality, cost = stream.quality.mean(axis=1), stream.cost_usd.mean(axis=1)
    assert isclose(weights.sum(), 1.0)
    assert np.count_nonzero(weights) <= 2
    found = [
        (1 - s) * quality[i] + s * quality[j]
        for i in range(5)
        for j in range(5)
        for s in np.linspace(0, 1, 1001)
        if (1 - s) * cost[i] + s * cost[j] <= budget
    ]
    if found:
        assert weights @ cost <= budget * (1 + 1e-9)
        assert max(found) - 1e-9 <= weights @ quality <= max(found) + 0.002
    else:
        assert weights.argmax() == cost.argmin()


def test_the_hull_mixes_in_hindsight_exactly():
    """0.5 for 1 USD and 0.9 for 5 USD under 2 USD: a quarter of the dear one, 0.6 for 2 USD."""
    stream = stream_of([[0.5, 0.5], [0.9, 0.9]], [[1, 1], [5, 5]])
    found = mixed(stream, hull(stream, 2.0), budget=2.0)
    assert isclose(found["quality"], 0.6)
    assert isclose(found["cost_usd_per_call"], 2.0)
    assert isclose(found["budget_utilisation"], 1.0)


def test_the_oracle_takes_the_cheapest_of_the_best():
    stream = stream_of([[1, 1, 0], [1, 0, 1]], [[1, 1, 1], [2, 2, 2]])
    assert oracle(stream.quality, stream.cost_usd, None).chosen.tolist() == [0, 0, 1]


def test_the_oracle_keeps_its_budget_and_is_within_one_call_of_the_best():
    """Two models, ten calls: brute force over all 1,024 choices; the Lagrangian's may miss one call's gain."""
    rng = np.random.default_rng(5)
    quality, cost = rng.random((2, 10)), np.array([[1.0] * 10, rng.uniform(2, 6, 10)])
    chosen = oracle(quality, cost, 2.5).chosen
    each = np.arange(10)
    assert cost[chosen, each].mean() <= 2.5
    choices = [np.array([(number >> i) & 1 for i in range(10)]) for number in range(1024)]
    best = max(quality[c, each].mean() for c in choices if cost[c, each].mean() <= 2.5)
    assert quality[chosen, each].mean() >= best - 0.1


def test_the_oracle_never_chooses_what_was_not_measured():
    stream = stream_of([[nan, 0.1], [0.5, nan]], [[1, 1], [2, 2]])
    assert oracle(stream.quality, stream.cost_usd, None).chosen.tolist() == [1, 0]


def test_a_swap_changes_the_quality_of_two_models_from_the_middle_on():
    stream = swapped(stream_of([[0.9] * 4, [0.1] * 4], [[1] * 4, [2] * 4]), 0, 1)
    assert stream.quality.tolist() == [[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9]]
    assert stream.part.tolist() == [0, 0, 1, 1]
    assert stream.cost_usd[0].tolist() == [1.0] * 4


def test_the_first_cost_of_a_quality_lies_between_two_budgets():
    """0.6 lies half way from 0.5 at 1 USD to 0.7 at 3 USD; 0.9 is never reached; 0.4 is from the first on."""
    points = np.array([[1.0, 0.5], [3.0, 0.7], [4.0, 0.8]])
    assert isclose(_first_cost(points, 0.6), 2.0)
    assert isnan(_first_cost(points, 0.9))
    assert _first_cost(points, 0.4) == 1.0


def test_adoption_is_when_a_hundred_calls_have_half_the_long_run_share():
    """It takes all from its 150th call on: 30 of the last 100, half of 0.6, after 180; the window has to be full."""
    taken = np.arange(400) >= 150
    assert adoption(taken, 0.6) == 180
    assert adoption(np.ones(400, dtype=bool), 0.6) == 100
    assert adoption(np.zeros(400, dtype=bool), 0.6) is None
    assert adoption(np.ones(400, dtype=bool), 0.01) is None


def test_filtering_is_told_by_onset_recovery_and_falseness():
    """Two parts of 6 calls.

    Model 0 goes bad in the second and is filtered at call 9, its 3rd own since. Model 1 is bad from the start, filtered
    at its 3rd call, and back at call 10, 5 calls in. Model 2 always keeps its limits, and is filtered for good.
    """
    stream = stream_of(np.ones((3, 12)), np.ones((3, 12)), part=[0] * 6 + [1] * 6)
    transitions = [(2, moved(1, "filtered")), (3, moved(2, "filtered")), (9, moved(0, "filtered"))]
    transitions.append((10, moved(1, "probing")))
    trace = trace_of([1, 1, 1, 2, 0, 0, 0, 0, 2, 0, 1, 2], transitions)
    found = _filtering(trace, stream, np.array([[True, False, True], [False, True, True]]))
    assert found["filter_own_calls"] == 3.0  # median of model 0's 3 and model 1's 3
    assert found["filtered_onsets"] == 1.0
    assert found["readmit_calls"] == 5.0
    assert found["readmitted"] == 0.5  # model 2 should have come back too
    assert found["false_filtered"] == 0.25  # of four pairs of a part and a model within its limits


def test_least_violating_counts_from_the_first_flag_on():
    excess = np.array([[0.5, 0.2]])
    stream = stream_of(np.ones((2, 4)), np.ones((2, 4)))
    found = least_violating(trace_of([0, 0, 1, 1], flagged=[False, True, True, False]), stream, excess)
    assert found["answered_share"] == 1.0
    assert found["flagged_share"] == 0.5
    assert found["first_flag_call"] == 1.0
    assert isclose(found["flagged_since"], 2 / 3)
    assert isclose(found["least_since"], 2 / 3)
    assert isclose(found["mean_excess"], 0.35)


def test_rows_have_means_standard_errors_and_the_highest_utilisation():
    """Qualities 0.4 and 0.6: mean 0.5, standard error 0.1414/√2 = 0.1; what is never measured is None."""
    rows = aggregated(
        [
            Result("s", "p", seed, {"quality": 0.4 + 0.2 * seed, "budget_utilisation": 1.0 + 0.1 * seed, "regret": nan})
            for seed in (0, 1)
        ]
    )
    (row,) = rows
    assert row["seeds"] == 2
    assert isclose(row["quality"], 0.5)
    assert isclose(row["quality_se"], 0.1)
    assert row["budget_utilisation_max"] == 1.1
    assert row["regret"] is None
    assert row["regret_se"] is None


def test_models_need_a_cost_under_a_budget_and_names_must_be_known(one_run):
    assert study_of(one_run, priced=True).models == MODELS
    with pytest.raises(InvalidInput, match="train"):
        study_of(one_run, ("train",))


def test_stationary_compares_cold_and_warm_with_the_best_single_model(one_run):
    rows, _ = measured(Options(one_run, "stationary", ("pointsman", "pointsman_text", "squarecb"), seeds=2, clusters=3))
    assert {row["setting"] for row in rows} == {"cold, all prompts", "warm, test split"}
    by = {row["policy"]: row for row in rows if row["setting"].startswith("warm")}
    assert by["single dear"]["regret"] == 0.0
    assert isclose(by["pointsman"]["regret"], by["single dear"]["quality"] - by["pointsman"]["quality"], abs_tol=1e-5)
    assert by["oracle"]["quality"] >= by["pointsman"]["quality"] > by["single cheap"]["quality"]


def test_a_budget_is_kept_and_dearer_ones_buy_quality(one_run):
    rows, _ = measured(Options(one_run, "budget", ("pointsman", "litellm_adaptive"), seeds=2, budgets=(5e-5, 5e-4)))
    by = {(row["policy"], row["setting"]): row for row in rows}
    small, large = by["pointsman", "budget 5e-05"], by["pointsman", "budget 0.0005"]
    assert small["budget_utilisation_max"] < 1.1  # 160 calls: the bucket's 10 budgets are 6 %
    assert large["quality"] > small["quality"]
    assert by["hull", "budget 5e-05"]["regret"] == 0.0
    assert by["litellm_adaptive", "no budget"]["budget_utilisation"] is None


def test_without_budgets_a_sweep_says_what_the_same_quality_costs(one_run):
    rows, _ = measured(Options(one_run, "budget", ("pointsman",), seeds=1))
    found = [row for row in rows if row["setting"] == "97% of the best model's quality"]
    assert [row["policy"] for row in found] == ["pointsman", "hull", "oracle"]
    assert found[-1]["cost_share"] < 1.0


@pytest.mark.parametrize("folder", ["one_run", "two_runs"])
def test_drift_is_recorded_or_simulated_and_named_so(folder, request):
    rows, _ = measured(Options(request.getfixturevalue(folder), "drift", ("pointsman",), seeds=1))
    assert rows[0]["setting"].startswith("simulated" if folder == "one_run" else "1, then 2")
    by = {row["policy"]: row for row in rows}
    assert by["best single of each part"]["regret"] == 0.0
    assert by["pointsman"]["quality_part_2"] is not None


def test_limits_are_judged_by_what_every_run_recorded(two_runs):
    """p95 ≤ 2.5 s and accuracy ≥ 0.6: dear (3 s, then 0.9 s) violates in the first run, cheap always by accuracy."""
    rows, _ = measured(Options(two_runs, "constrained", ("pointsman",), seeds=1, p95_s=2.5, min_accuracy=0.6))
    first = {row["policy"]: row for row in rows if row["setting"].endswith("1, then 2")}
    assert first["single dear"]["violating_share"] == 0.5
    assert first["single cheap"]["violating_share"] == 1.0
    assert first["oracle that switches at once"]["regret"] == 0.0
    assert 0.0 < first["pointsman"]["violating_share"] < 0.5
    infeasible = [row for row in rows if row["setting"].endswith("infeasible")]
    assert infeasible[0]["answered_share"] == 1.0


def test_limits_on_latency_need_latencies(tmp_path):
    folder = write_set(tmp_path / "silent", latency=False, n=30)
    with pytest.raises(InvalidInput, match="latencies"):
        measured(Options(folder, "constrained", ("pointsman",)))


def test_onboarding_compares_with_the_run_without_the_newcomer(one_run):
    rows, results = measured(Options(one_run, "onboarding", ("pointsman", "river_ucb"), seeds=1, newcomers=("dear",)))
    (row,) = rows  # peers cannot take one in
    assert row["policy"] == "pointsman"
    assert isclose(row["regret_percent"], 100 * row["regret"] / (row["quality"] + row["regret"]), rel_tol=1e-3)
    assert row["share_from_start"] > 0.05
    assert results[0].curves["newcomer's share"][0] <= 1.0


def test_calibration_reports_coverage_by_model_too(two_runs):
    """Lengths vary evenly in 50…150 tokens, so a 95 % quantile covers most and not less than 85 % of 360 calls."""
    rows, _ = measured(Options(two_runs, "calibration", (), seeds=1))
    by = {row["policy"]: row for row in rows if row["setting"].startswith("requests")}
    assert 0.85 < by["uniform"]["cost_coverage"] <= 1.0
    assert {f"uniform: {model}" for model in MODELS} <= set(by)


def test_every_scenario_is_on_the_command_line_and_writes_rows_of_one_form(one_run, tmp_path, capsys):
    assert set(SCENARIOS) == {"stationary", "budget", "drift", "constrained", "onboarding", "calibration"}
    path = tmp_path / "out.json"
    main([one_run, "--scenario", "stationary", "--policies", "best_feasible", "--seeds", "1", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report
    for row in report:
        assert set(row) >= KEYS | {"commit", "python"}
        assert row["set"] == "tiny"
        assert row["command"].startswith("python -m benchmarks.policy tiny --scenario stationary")
    assert "best_feasible" in capsys.readouterr().out


def test_plots_are_written_as_files(one_run, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.policy_plots import write_plots

    written = write_plots(
        tmp_path, *measured(Options(one_run, "onboarding", ("best_feasible",), seeds=1, newcomers=("dear",)))
    )
    assert [path.name for path in written] == [
        "tiny_onboarding_quality_cost.png",
        "tiny_onboarding_newcomers_share.png",
    ]
    assert all(path.stat().st_size > 1000 for path in written)
