"""The loader of recorded outcomes, and the source that answers from them."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest

from bandit.errors import InvalidInput, UnknownArm
from bandit.types import Price
from evaluation.answers import grade
from evaluation.recorded import UNMEASURED_LATENCY_S, RecordedOutcome, RecordedSet, RecordedSource

PROMPTS = [
    ("p1", "What is 2 + 2?", "math", "warm"),
    ("p2", "Say hello.", "chat", "test"),
    ("p3", "Name a river.", "chat", "test"),
]
# Costs of alpha follow 2 USD in, 8 USD out per million: (100 * 2 + 10 * 8) / 1e6 = 0.00028, and so on.
OUTCOMES = [
    ("p1", "alpha", "r1", 0.25, 0.00028, 0.4, 100, 10),
    ("p2", "alpha", "r1", 1.0, 0.00036, 0.6, 100, 20),
    ("p3", "alpha", "r1", 0.7, 0.00064, 0.9, 200, 30),
    ("p1", "alpha", "r2", 0.75, 0.00028, 1.4, 100, 10),
    ("p1", "beta", "r1", 0.5, None, None, None, None),
    ("p2", "beta", "r1", None, None, 0.2, 7, 9),
    ("p1", "gamma", "r2", 1.0, 0.001, None, None, None),
    ("p3", "gamma", "r2", 0.0, 0.003, None, None, None),
]


def write(folder, prompts=PROMPTS, outcomes=OUTCOMES):
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            "CREATE TABLE prompts (prompt_id VARCHAR, prompt VARCHAR, category VARCHAR, split VARCHAR);"
            "CREATE TABLE outcomes (prompt_id VARCHAR, model VARCHAR, run VARCHAR, quality DOUBLE, cost_usd DOUBLE,"
            " latency_s DOUBLE, input_tokens INTEGER, output_tokens INTEGER)"
        )
        connection.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?)", prompts)
        connection.executemany("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", outcomes)
        for name in ("prompts", "outcomes"):
            connection.table(name).write_parquet(str(folder / f"{name}.parquet"))
    return folder


@pytest.fixture
def recorded(tmp_path):
    return RecordedSet.load(write(tmp_path))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_prompts_keep_their_order_and_names_are_sorted(recorded):
    assert recorded.prompt_ids == ("p1", "p2", "p3")
    assert recorded.categories == ("math", "chat", "chat")
    assert recorded.models == ("alpha", "beta", "gamma")
    assert recorded.runs == ("r1", "r2")
    assert recorded.quality.shape == (2, 3, 3)


def test_a_split_selects_its_prompts_in_order(recorded):
    assert recorded.rows().tolist() == [0, 1, 2]
    assert recorded.rows("test").tolist() == [1, 2]
    with pytest.raises(InvalidInput, match="test, warm"):
        recorded.rows("train")


def test_an_outcome_is_what_was_written(recorded):
    assert recorded.outcome("r1", "alpha", "p3") == RecordedOutcome(0.7, 0.00064, 0.9, 200, 30)
    assert recorded.outcome("r1", "beta", "p1") == RecordedOutcome(0.5, None, None, None, None)
    assert recorded.outcome("r2", "alpha", "p2") is None
    assert recorded.quality[0, 0].tolist() == [0.25, 1.0, 0.7]
    for names in (("r9", "alpha", "p1"), ("r1", "omega", "p1"), ("r1", "alpha", "p9")):
        with pytest.raises(InvalidInput, match="was not recorded"):
            recorded.outcome(*names)


def test_models_by_run(recorded):
    assert recorded.models_in("r1") == ("alpha", "beta")
    assert recorded.models_in("r2") == ("alpha", "gamma")
    assert recorded.models_in_all_runs() == ("alpha",)


def test_the_list_price_is_found_from_costs(recorded):
    """Costs made from 2 and 8 USD per million give back 2 and 8; no cost gives no price."""
    assert recorded.list_price("alpha") == Price(2.0, 8.0)
    assert recorded.list_price("beta") is None


def test_a_price_without_tokens_reproduces_the_total_cost(recorded):
    """Tokens made up as characters / 4 at that one price cost in total what was recorded: 0.004 USD."""
    price = recorded.list_price("gamma")
    assert price.input_per_million == price.output_per_million
    made_up = [len("What is 2 + 2?") // 4, len("Name a river.") // 4]
    assert sum(price.cost_usd(n, n) for n in made_up) == pytest.approx(0.004, rel=1e-4)


@pytest.mark.parametrize(
    ("prompts", "outcomes", "message"),
    [
        ([*PROMPTS, ("p1", "again", "x", "test")], OUTCOMES, "twice"),
        (PROMPTS, [*OUTCOMES, ("p1", "alpha", "r1", 1.0, None, None, None, None)], "two rows"),
        (PROMPTS, [*OUTCOMES, ("p9", "alpha", "r1", 1.0, None, None, None, None)], "p9"),
        (PROMPTS, [*OUTCOMES, ("p2", "alpha", "r2", 1.5, None, None, None, None)], "quality"),
        (PROMPTS, [*OUTCOMES, ("p2", "alpha", "r2", 1.0, None, -1.0, None, None)], "latency_s"),
    ],
)
def test_unsound_data_is_refused_with_its_reason(tmp_path, prompts, outcomes, message):
    with pytest.raises(InvalidInput, match=message):
        RecordedSet.load(write(tmp_path, prompts, outcomes))


def test_a_missing_file_and_a_missing_column_are_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"prompts\.parquet: not found"):
        RecordedSet.load(tmp_path)
    write(tmp_path)
    duckdb.sql("SELECT 1 AS model").write_parquet(str(tmp_path / "outcomes.parquet"))
    with pytest.raises(InvalidInput, match="prompt_id, model, run"):
        RecordedSet.load(tmp_path)


def test_a_known_prompt_gets_what_was_recorded(recorded, rng):
    answer = RecordedSource(recorded, run="r1").answer("alpha", "Name a river.", None, rng, 0.0)
    assert (answer.quality, answer.latency_s, answer.input_tokens, answer.output_tokens) == (0.7, 0.9, 200, 30)
    assert grade(answer.text) == 0.7
    assert "recorded quality" in answer.text


def test_an_unknown_prompt_gets_averages_and_says_so(recorded, rng):
    """Medians 0.6 s, 100 and 20 tokens; mean quality (0.25 + 1 + 0.7) / 3 = 0.65."""
    answer = RecordedSource(recorded, run="r1").answer("alpha", "Name a river. ", None, rng, 0.0)
    assert (answer.latency_s, answer.input_tokens, answer.output_tokens) == (0.6, 100, 20)
    assert grade(answer.text) == answer.quality == pytest.approx(0.65)
    assert "not among the recorded" in answer.text
    assert "estimated quality" in answer.text


def test_what_was_not_measured_is_estimated(recorded, rng):
    """Tokens from characters, latency from the model's other calls, else a constant; quality from its mean."""
    source = RecordedSource(recorded, run="r1")
    unmeasured = source.answer("beta", "What is 2 + 2?", None, rng, 0.0)
    assert (unmeasured.input_tokens, unmeasured.output_tokens, unmeasured.latency_s) == (3, 3, 0.2)
    ungraded = source.answer("beta", "Say hello.", None, rng, 0.0)
    assert (ungraded.quality, ungraded.input_tokens, ungraded.output_tokens) == (0.5, 7, 9)
    assert RecordedSource(recorded).answer("gamma", "Name a river.", None, rng, 0.0).latency_s == UNMEASURED_LATENCY_S


def test_the_last_run_is_the_default_and_lacks_what_it_lacks(recorded, rng):
    source = RecordedSource(recorded)
    assert source.run_at(0.0) == "r2"
    assert source.models == ("alpha", "gamma")
    with pytest.raises(UnknownArm, match="alpha, gamma"):
        source.answer("beta", "Say hello.", None, rng, 0.0)


def test_the_run_changes_at_its_time(recorded, rng):
    """Ten seconds in, the second run's figures are served, by the models that both runs have."""
    source = RecordedSource(recorded, run="r1", then_run="r2", after_s=10.0)
    assert source.models == ("alpha",)
    assert source.answer("alpha", "What is 2 + 2?", None, rng, 9.9).latency_s == 0.4
    assert source.answer("alpha", "What is 2 + 2?", None, rng, 10.0).latency_s == 1.4


def test_a_run_chosen_by_hand_ends_the_plan(recorded):
    source = RecordedSource(recorded, run="r1", then_run="r2", after_s=10.0)
    source.use_run("r1")
    assert source.run_at(99.0) == "r1"
    with pytest.raises(InvalidInput, match="r1, r2"):
        source.use_run("r3")
    assert source.run_at(99.0) == "r1"


def test_unknown_names_are_refused_at_the_start(recorded):
    for wrong in ({"run": "r3"}, {"run": "r1", "then_run": "r3"}, {"run": "r1", "models": ["gamma"]}):
        with pytest.raises(InvalidInput):
            RecordedSource(recorded, **wrong)


def test_of_two_prompts_with_one_text_the_first_is_served(tmp_path, rng):
    folder = write(
        tmp_path,
        [("a", "same", "x", "test"), ("b", "same", "x", "test")],
        [("a", "m", "r", 0.1, None, 1.0, 1, 1), ("b", "m", "r", 0.9, None, 1.0, 1, 1)],
    )
    assert RecordedSource(RecordedSet.load(folder)).answer("m", "same", None, rng, 0.0).quality == 0.1
