"""The demo's pools: what their tables promise, the limits they set, and the configuration they make."""

from __future__ import annotations

import math

import duckdb
import numpy as np
import pytest
import yaml
from scipy.stats import lognorm

from bandit.errors import InvalidInput
from evaluation.demo import LATENCY_FACTOR
from evaluation.demo_pool import DEMO_MODELS, recorded_pool, simulated_pool
from evaluation.synthetic import CATEGORIES
from evaluation.upstream_process import config_yaml
from serving.settings import Settings

NAMES = [model.name for model in DEMO_MODELS]


def expected(pool, model, category="chat", *, factor=1.0):
    return pool.expected(model, "[chat] 12345678", category, factor, None)


def test_what_is_expected_of_a_simulated_model_follows_from_its_row():
    """Oak-medium: chat 0.90; 15 characters are 3 tokens at 0.80 and 150 at 3.20 a million; median 0.55 s · 0.2."""
    truth = expected(simulated_pool(), "oak-medium")
    assert truth.quality == 0.90
    assert truth.cost_usd == pytest.approx((3 * 0.80 + 150 * 3.20) / 1e6)
    assert truth.slow == pytest.approx(lognorm(0.25, scale=0.11).sf(0.4))


def test_the_simulated_table_is_as_the_demo_says():
    """One model too weak for any mix of prompts, one too slow, four that keep both limits, and a best one for each."""
    pool = simulated_pool()
    truth = {(name, c): expected(pool, name, c) for name in NAMES for c in CATEGORIES}
    assert all(truth["wren-tiny", c].quality < pool.min_accuracy - 0.3 for c in CATEGORIES)
    assert truth["summit-max", "chat"].slow > 0.5
    for name in ("reed-coder", "heron-math", "oak-medium", "atlas-large"):
        assert truth[name, "chat"].slow < 0.01
        assert expected(pool, name, factor=LATENCY_FACTOR).slow > 0.95
    usable = [name for name in NAMES if name not in ("wren-tiny", "summit-max")]
    worth = {
        c: max(usable, key=lambda name: truth[name, c].quality - 0.2 * truth[name, c].cost_usd / 0.004)
        for c in CATEGORIES
    }
    assert pool.favourite == "oak-medium"
    assert worth == {"chat": "oak-medium", "extraction": "oak-medium", "code": "reed-coder", "math": "heron-math"}


@pytest.mark.parametrize("arguments", [(), (0.3, 0.8)])
def test_the_simulated_pools_configuration_is_valid_and_has_its_limits(arguments):
    pool = simulated_pool(*arguments)
    text = config_yaml(pool.source, "http://127.0.0.1:1", **pool.config_options)
    settings = Settings.parse(yaml.safe_load(text))
    constraints = settings.pools[0].constraints
    assert (constraints.p95_latency_s, constraints.min_accuracy) == (arguments or (0.4, 0.7))
    assert constraints.accuracy_evidence == "feedback"
    assert settings.pools[0].policy.kind == "thompson"
    assert settings.pools[0].features.categories == CATEGORIES


@pytest.fixture
def folder(tmp_path):
    """Fourteen priced models and one without a price in both runs, one in r1 only; quality and latency by model."""
    models = [f"m{i:02}" for i in range(14)]
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            "CREATE TABLE prompts AS SELECT 'p' || i AS prompt_id, 'Question ' || i AS prompt,"
            " CASE i % 2 WHEN 0 THEN 'even' ELSE 'odd' END AS category, 'test' AS split FROM range(20) t(i);"
            "CREATE TABLE outcomes (prompt_id VARCHAR, model VARCHAR, run VARCHAR, quality DOUBLE, cost_usd DOUBLE,"
            " latency_s DOUBLE, input_tokens INTEGER, output_tokens INTEGER)"
        )
        rows = []
        for p in range(20):
            for run in ("r0", "r1", "r2"):
                for i, model in enumerate(models):
                    quality = 0.3 + 0.05 * i
                    latency = (1.0 + i) * (2.0 if run == "r2" else 1.0)
                    rows.append((f"p{p}", model, run, quality, (100 * 1.0 + 50 * (2.0 + i)) / 1e6, latency, 100, 50))
                rows.append((f"p{p}", "free", run, 1.0, None, 1.0, 100, 50))
            rows.append((f"p{p}", "gone", "r1", 1.0, 0.001, 1.0, 100, 50))
        connection.executemany("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for table in ("prompts", "outcomes"):
            connection.execute(f"COPY {table} TO '{tmp_path / table}.parquet'")
    return tmp_path


def test_a_recorded_pool_has_the_best_priced_models_of_the_last_two_runs(folder):
    pool = recorded_pool(folder)
    assert pool.runs == ("r1", "r2")
    assert pool.source.models == tuple(f"m{i:02}" for i in range(2, 14))
    assert recorded_pool(folder, "r0").runs == ("r0",)


def test_a_recorded_pools_limits_come_from_the_data_unless_given(folder):
    """Worst p95s are 6, 8, … 28 s, a third of the way 13.33 s, times 0.1; qualities' fifth quantile 0.51 less 0.05."""
    pool = recorded_pool(folder)
    assert (pool.p95_latency_s, pool.min_accuracy) == (1.33, 0.46)
    given = recorded_pool(folder, None, 0.5, 0.9)
    assert (given.p95_latency_s, given.min_accuracy) == (0.5, 0.9)
    settings = Settings.parse(yaml.safe_load(config_yaml(pool.source, "http://h", **pool.config_options)))
    assert settings.pools[0].features.categories == ("even", "odd")


def test_what_a_recorded_model_yields_is_what_was_recorded(folder):
    """Model m05 in r1: 6 s · 0.1 is within 1.33 s, and twice that too, but not in r2 at eight times."""
    pool = recorded_pool(folder)
    truth = pool.expected("m05", "Question 3", "odd", 1.0, "r1")
    assert (truth.quality, truth.slow) == (0.55, 0.0)
    assert truth.cost_usd == pytest.approx((100 * 1.0 + 50 * 7.0) / 1e6, rel=1e-3)
    assert pool.expected("m05", "Question 3", "odd", 1.0, "r2").slow == 0.0
    assert pool.expected("m05", "Question 3", "odd", 8.0, "r2").slow == 1.0


def test_every_recorded_prompt_is_asked_once_before_any_is_asked_again(folder):
    pool, rng = recorded_pool(folder), np.random.default_rng(1)
    first, second = ([pool.sample(rng) for _ in range(20)] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted((f"Question {i}", "odd" if i % 2 else "even") for i in range(20))
    assert first != second


def test_a_set_without_latencies_has_no_latency_limit(tmp_path):
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            "CREATE TABLE prompts AS SELECT 'p' AS prompt_id, 'Q' AS prompt, '' AS category, 'test' AS split;"
            "CREATE TABLE outcomes AS SELECT 'p' AS prompt_id, m AS model, 'r' AS run, 0.5 AS quality,"
            " NULL AS cost_usd, NULL AS latency_s, NULL AS input_tokens, NULL AS output_tokens"
            " FROM (VALUES ('a'), ('b')) t(m)"
        )
        for table in ("prompts", "outcomes"):
            connection.execute(f"COPY {table} TO '{tmp_path / table}.parquet'")
    pool = recorded_pool(tmp_path)
    assert pool.p95_latency_s is None
    assert pool.options["constraints"] == {"min_accuracy": 0.45, "accuracy_evidence": "feedback"}
    assert "features" not in pool.options
    truth = pool.expected("a", "Q", "", 1.0, "r")
    assert (truth.quality, truth.cost_usd, truth.slow) == (0.5, None, 0.0)
    assert not math.isnan(pool.options["objective"]["cost_reference_usd"])


def test_an_unknown_run_is_refused_with_those_there_are(folder):
    with pytest.raises(InvalidInput, match="r0, r1, r2"):
        recorded_pool(folder, "r9")
