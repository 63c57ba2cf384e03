"""The synthetic pool: a table in, answers with its qualities, latencies and prices out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml

from bandit.errors import InvalidInput, UnknownArm
from bandit.types import Price
from evaluation.answers import grade
from evaluation.synthetic import (
    CATEGORIES,
    DEFAULT_POOL,
    SyntheticModel,
    SyntheticSource,
    pool_from_table,
    sample_prompt,
)

MODEL = SyntheticModel("m", 0.6, 0.5, 0.3, 100.0, 1.0, 2.0, {"math": 0.9, "chat": 0.0})
N = 10_000


def answers(prompt, category=None, n=N):
    source, rng = SyntheticSource([MODEL]), np.random.default_rng(7)
    return [source.answer("m", prompt, category, rng, 0.0) for _ in range(n)]


@pytest.mark.parametrize(
    ("prompt", "category", "expected"),
    [
        ("[math] 1 + 1?", None, 0.9),
        ("[math] 1 + 1?", "chat", 0.0),
        ("1 + 1?", "math", 0.9),
        ("[poetry] a rhyme", None, 0.6),
        ("no tag [math]", None, 0.6),
    ],
)
def test_quality_has_the_tables_probability(prompt, category, expected):
    """With n = 10,000 and z = 4: the mean is within 4 sqrt(p (1 - p) / n) of p."""
    mean = np.mean([answer.quality for answer in answers(prompt, category)])
    assert abs(mean - expected) <= 4 * math.sqrt(expected * (1 - expected) / N)


def test_latency_is_lognormal_and_tokens_have_the_tables_mean():
    """With n = 10,000 and z = 4: mean log latency within 4 sigma / 100, tokens within 4 * 31 / 100 (their sd)."""
    drawn = answers("x")
    logs = np.log([answer.latency_s for answer in drawn])
    assert abs(logs.mean() - math.log(0.5)) <= 4 * 0.3 / 100
    assert logs.std() == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * N))
    assert abs(np.mean([answer.output_tokens for answer in drawn]) - 100) <= 4 * 31 / 100


def test_the_same_seed_gives_the_same_answers_and_texts_carry_grades():
    first, second = answers("[math] x", n=50), answers("[math] x", n=50)
    assert first == second
    assert all(grade(answer.text) == answer.quality for answer in first)
    assert first[0].input_tokens == 2


def test_prompts_name_their_category_and_differ_by_it():
    """Every category turns up, tagged, and the tag is what the source reads."""
    rng = np.random.default_rng(3)
    drawn = [sample_prompt(rng) for _ in range(500)]
    assert {category for _, category in drawn} == set(CATEGORIES)
    assert all(text.startswith(f"[{category}] ") for text, category in drawn)
    bodies = {
        category: {text.split("] ")[1].split()[0] for text, c in drawn if c == category} for category in CATEGORIES
    }
    assert bodies["math"].isdisjoint(bodies["code"])
    assert len({text for text, _ in drawn}) > 200


def test_the_default_pool_has_a_best_model_by_category():
    """No model is best at everything and cheapest: the pool is worth routing."""
    best = {c: max(DEFAULT_POOL, key=lambda m: m.quality_for(c)).name for c in CATEGORIES}
    assert len(set(best.values())) > 1
    source = SyntheticSource()
    assert all(source.price(name).output_per_million > 0 for name in source.models)


def test_a_table_comes_from_yaml():
    rows = yaml.safe_load("""
    - {name: a, default_quality: 0.5, latency_median_s: 1, latency_sigma: 0, output_tokens_mean: 10,
       quality: {math: 1}, input_per_million: 1, output_per_million: 2}
    - {name: b, default_quality: 1, latency_median_s: 0.1, latency_sigma: 0.2, output_tokens_mean: 5}
    """)
    source = SyntheticSource(pool_from_table(rows))
    assert source.models == ("a", "b")
    assert (source.price("a"), source.price("b")) == (Price(1, 2), None)
    answer = source.answer("a", "x", "math", np.random.default_rng(0), 0.0)
    assert (answer.quality, answer.latency_s) == (1.0, 1.0)


GOOD = {"name": "a", "default_quality": 0.5, "latency_median_s": 1, "latency_sigma": 0, "output_tokens_mean": 10}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"default_quality": 1.1}, "a.quality.default_quality"),
        ({"quality": {"math": -1}}, "a.quality.math"),
        ({"quality": [1]}, "a.quality"),
        ({"latency_median_s": math.nan}, "a.latency_median_s"),
        ({"latency_sigma": "wide"}, "a.latency_sigma"),
        ({"output_tokens_mean": 0}, "a.output_tokens_mean"),
        ({"input_per_million": 1}, "a.price"),
        ({"name": ""}, "name"),
        ({"colour": "red"}, "models[0]"),
    ],
)
def test_an_unsound_table_is_refused_with_the_place(change, field):
    with pytest.raises(InvalidInput) as caught:
        pool_from_table([GOOD | change])
    assert caught.value.field == field


def test_a_pool_needs_models_with_names_of_their_own():
    for pool in ([], [MODEL, MODEL]):
        with pytest.raises(InvalidInput):
            SyntheticSource(pool)


def test_a_table_knows_neither_other_models_nor_runs():
    source = SyntheticSource([MODEL])
    with pytest.raises(UnknownArm):
        source.answer("x", "", None, np.random.default_rng(0), 0.0)
    with pytest.raises(InvalidInput, match="no runs"):
        source.use_run("r1")
    assert (source.runs, source.run_at(1.0)) == ((), None)
