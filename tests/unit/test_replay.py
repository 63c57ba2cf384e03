"""Replay of a log: what candidates are given, what judgements say, and the command's answers and exit codes."""

from __future__ import annotations

import json
from math import isclose

import duckdb
import numpy as np
import pytest
import yaml
from logged_traffic import CONFIG, MODELS, pool, workload, write_log
from typer.testing import CliRunner

from bandit import Objective, Price
from bandit.errors import InvalidInput
from evaluation.candidates import named, of_callable
from evaluation.judgement import Standards
from evaluation.learning import Learning
from evaluation.logs import opened
from evaluation.measures import Measures
from evaluation.replay import replay
from evaluation.selection import SelectedRounds, Selection
from serving.cli import main


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.duckdb"
    return path, write_log(path, 3_000)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "pointsman.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def judge(path, *candidates, selection=None, chunk_rows=700, **standards):
    with opened([path]) as log:
        rounds = SelectedRounds(log, selection or Selection("auto"))
        made = [make(rounds) for make in candidates]
        return replay(rounds, made, Standards(**standards), chunk_rows=chunk_rows)


def by_name(spec, measures=None):
    return lambda rounds: named(spec, rounds.arms, measures or Measures())


def test_the_log_itself_is_judged_as_what_it_was(logged):
    path, trace = logged
    (found,) = judge(path, by_name("logged", Measures(latency_limit_s=2.0)))
    assert found.effective_samples == pytest.approx(3_000)
    assert (found.mean_weight, found.largest_weight, found.gap_share) == (1.0, 1.0, 0.0)
    for metric, values in (
        ("quality", trace.quality),
        ("cost_usd", trace.cost_usd),
        ("slow", trace.latency_s > 2.0),
    ):
        judged = found.metrics[metric]
        assert judged.logged.value == pytest.approx(values.mean())
        assert next(e for e in judged.estimates if e.estimator == "IPS").value == pytest.approx(values.mean())
        assert judged.difference is not None


@pytest.mark.parametrize("model", MODELS)
def test_a_single_model_is_estimated_near_its_truth(logged, model):
    """DR's interval of a fixed model holds the mean of what that model would have yielded on the very calls."""
    (found,) = judge(logged[0], by_name(f"fixed:{model}"), min_effective_samples=50, alpha=0.001)
    calls, row = workload(3_000), MODELS.index(model)
    for metric, values in (("quality", calls.quality), ("cost_usd", calls.cost_usd)):
        headline = found.metrics[metric].headline
        assert headline is not None
        assert values[row].mean() in headline.intervals[0]


def test_categories_are_judged_apart(logged):
    """The small model is good at math and bad at law (0.9 and 0.4)."""
    (found,) = judge(logged[0], by_name("fixed:small"), min_effective_samples=50)
    groups = {g.group: g for g in found.metrics["quality"].groups["category"]}
    assert {g.rounds for g in groups.values()} == {1_500}
    assert groups["math"].estimate.value == pytest.approx(0.9, abs=0.06)
    assert groups["law"].estimate.value == pytest.approx(0.4, abs=0.12)


def test_chunks_make_no_difference(logged):
    one = judge(logged[0], by_name("uniform"), chunk_rows=10_000)[0]
    many = judge(logged[0], by_name("uniform"), chunk_rows=171)[0]
    for metric, judged in one.metrics.items():
        for a, b in zip(judged.estimates, many.metrics[metric].estimates, strict=True):
            assert a.estimator == b.estimator
            assert isclose(a.value, b.value, rel_tol=1e-9)
            for i, j in zip(a.intervals, b.intervals, strict=True):
                assert (i.low, i.high) == pytest.approx((j.low, j.high), rel=1e-6)


def test_a_pool_that_is_the_logs_own_gives_the_logged_probabilities(logged):
    """Taught the same events in the same order, it believes at each decision what the service believed."""
    (found,) = judge(logged[0], lambda _: Learning("own", pool, Measures()))
    assert found.largest_weight == pytest.approx(1.0, abs=1e-9)
    assert found.effective_samples == pytest.approx(3_000, rel=1e-9)


def test_it_learns_from_what_was_not_selected(logged):
    selection = Selection("auto", since_ts=1_700_002_000.0)
    (found,) = judge(logged[0], lambda _: Learning("own", pool, Measures()), selection=selection)
    assert found.rounds == 1_000
    assert found.largest_weight == pytest.approx(1.0, abs=1e-9)


def test_a_pool_with_a_budget_spends_its_own_money_not_the_logs(logged):
    """Half of what the log spends: its expected cost comes down to its budget, though the log's never does."""
    path, trace = logged
    budget = 0.5 * trace.cost_usd.mean()
    candidate = Learning("cheap", lambda: pool(budget={"usd_per_request": budget}), Measures())
    (found,) = judge(path, lambda _: candidate, min_effective_samples=20)
    headline = found.metrics["cost_usd"].headline
    assert headline is not None
    assert headline.value < 1.1 * budget


def test_benchmark_answers_in_the_log_are_evidence_from_their_place_on(logged, tmp_path):
    """Sixty wrong answers of one model in the middle of the log: it is filtered there, and keeps its probes."""
    path = tmp_path / "graded.duckdb"
    path.write_bytes(logged[0].read_bytes())
    with duckdb.connect(str(path)) as connection:
        (middle,) = connection.execute("SELECT seq FROM decisions ORDER BY seq LIMIT 1 OFFSET 1500").fetchone()
        connection.execute(
            "INSERT INTO benchmark_results BY NAME SELECT $1 AS seq, 0.0 AS ts, 'suite' AS suite, 'i' || i AS item_id,"
            " 'large' AS model, 'math' AS category, 0.0 AS quality FROM range(60) t(i)",
            [middle - 1],
        )
    limits = {"min_accuracy": 0.6, "accuracy_evidence": "benchmarks"}
    with opened([path]) as log:
        rounds = SelectedRounds(log, Selection("auto"))
        candidate = Learning("own", lambda: pool(constraints=limits), Measures(), answers=rounds.answers())
        (chunk,) = rounds.chunks(5_000)
    of_large = candidate.probabilities(chunk)[:, rounds.arms.index("large")]
    assert of_large[1_400:1_500].mean() > 0.2
    assert of_large[1_500:].max() < 0.1


def test_own_prices_and_objective_measure_the_log_too(logged):
    path, trace = logged
    double = {name: Price(2.0, 2.0 * price) for name, price in zip(MODELS, (1.0, 10.0, 5.0), strict=True)}
    goal = Objective(quality=1.0, cost=1.0, cost_reference_usd=0.01)
    (found,) = judge(path, by_name("logged", Measures(goal, double)))
    assert found.metrics["cost_usd"].logged.value == pytest.approx(2 * trace.cost_usd.mean())
    reward = 0.5 * trace.quality + 0.5 * (1 - np.minimum(2 * trace.cost_usd / 0.01, 1))
    assert found.metrics["reward"].logged.value == pytest.approx(reward.mean())


def test_rejection_replay_is_there_where_the_log_is_uniform(tmp_path):
    path = tmp_path / "uniform.duckdb"
    write_log(path, 2_000, policy={"kind": "uniform", "seed": 1})
    learner, fixed = judge(path, lambda _: Learning("own", pool, Measures()), by_name("fixed:large"))
    for found in (learner, fixed):
        estimate = found.metrics["quality"].estimates[-1]
        assert estimate.estimator == "rejection"
        assert estimate.rounds == pytest.approx(2_000 / 3, abs=100)
    assert fixed.metrics["quality"].estimates[-1].value == pytest.approx(0.8, abs=0.05)


def test_a_policy_unlike_the_log_cannot_be_told(logged):
    (found,) = judge(logged[0], by_name("fixed:slow"), min_effective_samples=2_000)
    assert "effective sample size" in found.cannot_tell
    assert all(not metric.estimates for metric in found.metrics.values())


def test_zero_support_cannot_be_told(logged):
    def make(rounds):
        rounds.admit(["newcomer"])
        return named("fixed:newcomer", rounds.arms, Measures())

    (found,) = judge(logged[0], make)
    assert found.gaps == pytest.approx({"newcomer": 1.0})
    assert "100.0% of the policy's choices are models that the log could not have drawn" in found.cannot_tell


def test_feedback_that_is_missing_counts_through_the_rest(tmp_path, logged):
    """Every other reward of one model is taken away: the mean of what is left stands for it."""
    path = tmp_path / "partly.duckdb"
    path.write_bytes(logged[0].read_bytes())
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "DELETE FROM rewards USING decisions d WHERE d.decision_id = rewards.decision_id AND d.chosen = 'small'"
            " AND hash(d.decision_id) % 2 = 0"
        )
    whole, part = (judge(p, by_name("uniform"))[0].metrics["quality"] for p in (logged[0], path))
    assert part.observed < whole.observed
    assert part.headline.value == pytest.approx(whole.headline.value, abs=0.05)
    assert part.logged.value == pytest.approx(whole.logged.value, abs=0.02)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("best", "'best' is none of logged, uniform"),
        ("fixed:huge", "no model is called 'huge'; the log has large, slow, small"),
        ("weighted:small", "'small' is no MODEL=SHARE"),
        ("weighted:small=-1", "is no MODEL=SHARE"),
        ("weighted:small=0", "one share must be above 0"),
    ],
)
def test_a_policy_that_is_none_is_refused(spec, message):
    with pytest.raises(InvalidInput, match=message):
        named(spec, ("large", "slow", "small"), Measures())


FUNCTIONS = """
import numpy as np

def good(contexts, arms, feasible):
    return np.tile([1.0, 0.0, 0.0], (len(contexts), 1))

def short(contexts, arms, feasible):
    return np.ones((len(contexts), 2))

def unnormalised(contexts, arms, feasible):
    p = np.tile([1.0, 0.0, 0.0], (len(contexts), 1))
    p[2, 1] = 0.5
    return p

def broken(contexts, arms, feasible):
    raise KeyError("oops")

value = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "my_policies.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"returned shape \(700, 2\); \(decisions, models\) is \(700, 3\)"),
        ("unnormalised", r"row 2: probabilities sum to 1.5, not 1 .*columns are large, slow, small"),
        ("broken", "raised KeyError: 'oops'"),
        ("nothing", "has no attribute 'nothing'"),
        ("value", "value is not callable"),
    ],
)
def test_a_function_that_returns_no_policy_is_refused(logged, functions, name, message):
    with pytest.raises(InvalidInput, match=message):
        judge(logged[0], lambda _: of_callable(f"python:my_policies:{name}", Measures()))


def test_a_function_of_a_users_own(logged, functions):
    own, fixed = judge(logged[0], lambda _: of_callable("python:my_policies:good", Measures()), by_name("fixed:large"))
    assert own.metrics["quality"].headline.value == fixed.metrics["quality"].headline.value


# --- the command


def run(*arguments):
    return CliRunner().invoke(main, ["replay", *map(str, arguments)])


def test_the_command_prints_and_writes_the_same(logged, config, tmp_path):
    out = tmp_path / "out.json"
    result = run(logged[0], "--policy", "uniform", "--policy", f"config:{config}#auto", "-c", config, "--json", out)
    assert result.exit_code == 0, result.output
    data = json.loads(out.read_text())
    assert data["selection"]["decisions"] == 3_000
    assert [policy["policy"] for policy in data["policies"]] == ["uniform", f"config:{config}#auto"]
    quality = data["policies"][0]["metrics"]["quality"]
    headline = next(e for e in quality["estimates"] if e["estimator"] == quality["headline"])
    assert f"{headline['value']:.4f}" in result.output
    assert {i["kind"] for i in headline["intervals"]} == {"bootstrap", "bernstein", "anytime"}
    assert all(i["assumes"] for i in headline["intervals"])


def test_it_cannot_tell_with_exit_code_3_and_no_number(logged, config, tmp_path):
    out = tmp_path / "out.json"
    result = run(logged[0], "--policy", "fixed:slow", "--min-effective-samples", 2500, "--json", out)
    assert result.exit_code == 3
    assert "cannot tell, because the effective sample size is" in result.output
    (policy,) = json.loads(out.read_text())["policies"]
    assert policy["cannot_tell"]
    assert all(metric["estimates"] == [] for metric in policy["metrics"].values())


def test_a_changed_pool(logged, config):
    """With cost weighing ten times as much the dear model is chosen less."""
    result = run(logged[0], "--policy", f"config:{config}#auto?objective.cost=2", "--min-effective-samples", 50)
    assert result.exit_code == 0, result.output
    assert "DR - logged" in result.output


def test_a_pool_with_a_model_the_log_never_knew_beside_another_policy(logged, tmp_path):
    path = tmp_path / "more.yaml"
    models = [*CONFIG["models"], {"name": "unseen", "endpoint": "http://127.0.0.1:9/v1"}]
    pools = [CONFIG["pools"][0] | {"models": [*MODELS, "unseen"]}]
    path.write_text(yaml.safe_dump({"models": models, "pools": pools}))
    out = tmp_path / "out.json"
    result = run(logged[0], "--policy", "fixed:large", "--policy", f"config:{path}#auto", "--json", out)
    assert result.exit_code == 3
    assert "never in the log, so nothing is known of: unseen" in result.output
    fixed, pooled = json.loads(out.read_text())["policies"]
    assert (fixed["policy"], fixed["cannot_tell"]) == ("fixed:large", None)
    assert pooled["gaps"]["unseen"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LOG"], "--policy: name at least one"),
        (["--policy", "uniform"], "log: name at least one"),
        (["LOG", "--policy", "uniform", "--pool", "other"], "no decision of a pool 'other'"),
        (["LOG", "--policy", "uniform", "--since", "yesterday"], "--since: 'yesterday' is no time"),
        (["LOG", "--policy", "uniform", "--json", "nowhere/out.json"], "its folder does not exist"),
        (["LOG", "--policy", "uniform", "--until", "2001-01-01"], "none of the 3,000 decisions"),
        (["LOG", "--policy", "config:CONFIG"], "must be config:FILE#POOL"),
        (["LOG", "--policy", "config:CONFIG#best"], "has no pool 'best'; there are auto"),
        (["LOG", "--policy", "config:CONFIG#auto?objective.costs=1"], "objective.costs"),
        (["LOG", "--policy", "config:nowhere.yaml#auto"], "nowhere.yaml"),
        (["LOG", "--policy", "config:CONFIG#auto?features.categories=[a]"], "prompts are not logged"),
        (["LOG", "--policy", "uniform", "--url", "http://127.0.0.1:9"], "leave out LOG"),
        (["--policy", "uniform", "--url", "ftp://127.0.0.1"], "is no http or https URL"),
        (["--policy", "uniform", "--url", "http://127.0.0.1:9"], "cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(logged, config, arguments, message):
    filled = [str(a).replace("LOG", str(logged[0])).replace("CONFIG", str(config)) for a in arguments]
    result = run(*filled)
    assert result.exit_code == 2, result.output
    assert message in result.output.replace("\n", " ")


def test_ages_and_times():
    from serving.commands.policies import parse_time

    assert parse_time(None, "--since") is None
    assert parse_time("1700000000", "--since") == 1_700_000_000.0
    assert parse_time("2023-11-14T22:13:20", "--since") == 1_700_000_000.0
    assert parse_time("2023-11-14T23:13:20+01:00", "--since") == 1_700_000_000.0
    assert parse_time("2h", "--since") == pytest.approx(parse_time("0h", "--since") - 7_200, abs=5)
