"""From a folder of recorded outcomes to calls in order: which prompts, which models, at whose prices."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
from recorded_folders import write_folder

from bandit import Features, Price
from bandit.errors import InvalidInput
from evaluation.recorded_calls import read_calls

PRICE = Price(10.0, 20.0)  # of 20 and 100 tokens: 2.2e-3 USD; recorded as 1e-3


def read(folder, names=("a", "b"), prices=None, **more):
    return read_calls(folder, {name: (name,) for name in names}, dict.fromkeys(names, PRICE) | (prices or {}), **more)


def workload(recorded, **more):
    contexts = tuple(Features().extract(prompt) for prompt in recorded.prompts)
    return recorded.workload(contexts, np.random.default_rng(0), **more)


def test_every_prompt_of_split_test_is_called_once(tmp_path):
    calls = read(write_folder(tmp_path, {"a": 1.0, "b": 0.5}))
    made, part = workload(calls)
    assert sorted(made.prompts.tolist()) == list(range(1, 30, 2))
    assert made.models == ("a", "b")
    assert made.quality.tolist() == [[1.0] * 15, [0.5] * 15]
    assert part.tolist() == [0] * 15
    assert "split test" in calls.source


def test_without_such_a_split_all_prompts_are(tmp_path):
    folder = write_folder(tmp_path, {"a": 1.0, "b": 0.5}, warm=False)
    replace(folder, "* REPLACE (CAST(NULL AS VARCHAR) AS split)", table="prompts")
    assert len(workload(read(folder))[0]) == 30
    with pytest.raises(InvalidInput, match="split"):
        read(folder, split="warm")


def test_more_calls_than_prompts_are_passes_in_other_orders(tmp_path):
    """Of 15 prompts 40 calls: two whole passes and ten of a third."""
    made, _ = workload(read(write_folder(tmp_path, {"a": 1.0, "b": 0.5})), calls=40)
    passes = [made.prompts[:15].tolist(), made.prompts[15:30].tolist(), made.prompts[30:].tolist()]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(1, 30, 2))
    assert passes[0] != passes[1]
    assert len(set(passes[2])) == 10


def test_runs_follow_each_other(tmp_path):
    folder = write_folder(tmp_path, {"a": {"r1": 0.25, "r2": 0.75}, "b": 0.5}, runs=("r1", "r2"))
    made, part = workload(read(folder, runs=("r2", "r1")), calls=3)
    assert made.quality.tolist() == [[0.75] * 3 + [0.25] * 3, [0.5] * 6]
    assert part.tolist() == [0, 0, 0, 1, 1, 1]
    assert workload(read(folder))[0].quality[0, 0] == 0.75, "by default the last one"


def test_costs_are_tokens_at_the_given_price(tmp_path):
    calls = read(write_folder(tmp_path, {"a": 1.0, "b": 0.5}), prices={"b": None})
    made, _ = workload(calls)
    np.testing.assert_allclose(made.cost_usd[0], 2.2e-3)
    np.testing.assert_allclose(made.cost_usd[1], 1e-3)
    assert [note for note in calls.notes if "without a price" in note] == [
        "without a price, so their recorded costs are used: b"
    ]


def test_calls_without_tokens_cost_what_was_recorded(tmp_path):
    folder = write_folder(tmp_path, {"a": 1.0, "b": 0.5})
    replace(folder, "* REPLACE (CASE WHEN model = 'a' THEN NULL ELSE output_tokens END AS output_tokens)")
    calls = read(folder)
    made, _ = workload(calls)
    np.testing.assert_allclose(made.cost_usd[:, 0], [1e-3, 2.2e-3])
    assert any("without recorded tokens" in note and note.endswith(": a") for note in calls.notes)


def test_what_was_not_measured_is_said(tmp_path):
    folder = write_folder(tmp_path, {"a": 1.0, "b": 0.5})
    replace(folder, "* REPLACE (CAST(NULL AS DOUBLE) AS latency_s)")
    notes = read(folder).notes
    assert any(note.startswith("no latency_s was recorded for any model") for note in notes)


def test_a_model_that_is_not_recorded_is_left_out(tmp_path):
    calls = read(write_folder(tmp_path, {"a": 1.0, "b": 0.5}), names=("c", "b"))
    assert calls.models == ("b",)
    assert calls.notes[0] == "not recorded in run r1, so left out: c"


def test_a_model_is_found_by_its_upstreams_name(tmp_path):
    folder = write_folder(tmp_path, {"vendor-a": 1.0})
    calls = read_calls(folder, {"small": ("small", "vendor-a")}, {"small": PRICE})
    assert calls.models == ("small",)


def test_prompts_nobody_answered_are_left_out(tmp_path):
    folder = write_folder(tmp_path, {"a": 1.0, "b": 0.5})
    replace(folder, "* ", "WHERE prompt_id <> 'p3' AND NOT (prompt_id = 'p5' AND model = 'a')")
    calls = read(folder)
    made, _ = workload(calls)
    assert sorted(set(range(1, 30, 2)) - set(made.prompts.tolist())) == [3]
    assert np.isnan(made.quality[0, made.prompts == 5]).all()
    assert "1 prompts without any outcome in run r1 are left out" in calls.notes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"names": ("x", "y")}, "none of x, y is recorded in run r1; there are a, b"),
        ({"runs": ("r9",)}, "'r9' was not recorded; there are r1"),
        ({"split": "nono"}, "no prompt is in 'nono'; there are test, warm"),
    ],
)
def test_names_that_are_not_there_are_refused(tmp_path, more, message):
    with pytest.raises(InvalidInput, match=message):
        read(write_folder(tmp_path, {"a": 1.0, "b": 0.5}), **more)


def replace(folder, columns, where="", table="outcomes"):
    """Rewrite a table with other columns or fewer rows."""
    path = folder / f"{table}.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t AS SELECT {columns} FROM '{path}' {where}")  # noqa: S608  of our own words
        connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")
