"""Public originals become the canonical folders: on tiny files of the originals' shape, written here."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pytest

from benchmarks.datasets import SOURCES, Unconvertible, convert, main
from evaluation import RecordedSet


def write_lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def graded_prompt(prompt, source, **arms):
    """One line of ParetoBandit's files; they hold more fields than are read."""
    return {
        "prompt": prompt,
        "source": source,
        "best_arm": "a",
        "arms": {name: {"reward": r, "cost": c, "near_best": True} for name, (r, c) in arms.items()},
    }


@pytest.fixture
def bfcl(tmp_path):
    """Two runs; `good` answered all three prompts in both, `absent` only one category in the first run."""
    raw = tmp_path / "raw"
    write_lines(
        raw / "prompts/gorilla_openfunctions_v1_test_simple.json",
        {"question": "Area?", "function": {"name": "area"}},
        {"index": "simple_1", "question": "Größe?", "function": {"name": "size"}},
    )
    write_lines(
        raw / "prompts/gorilla_openfunctions_v1_test_java.json", {"question": "Run?", "function": [{"name": "run"}]}
    )
    for run, model, category, n, wrong in (
        ("2024-07-25", "good", "simple", 2, [2]),
        ("2024-07-25", "good", "java", 1, []),
        ("2024-07-25", "absent", "java", 1, []),
        ("2024-08-11", "good", "simple", 2, []),
        ("2024-08-11", "good", "java", 1, [1]),
        ("2024-08-11", "absent", "simple", 2, []),
        ("2024-08-11", "absent", "java", 1, []),
        ("2024-08-11", "good", "relevance", 1, []),
    ):
        name = f"gorilla_openfunctions_v1_test_{category}_result.json"
        answers = [
            {
                "id": f"{category}_{i}",
                "result": "f()",
                "input_token_count": 100 + i,
                "output_token_count": 10,
                "latency": 0.5,
            }
            for i in range(n)
        ]
        if run == "2024-08-11":
            answers[0] |= {"input_token_count": 0, "output_token_count": 0}
        write_lines(raw / run / "result" / model / name, *answers)
        summary = {"accuracy": 1 - len(wrong) / n, "correct_count": n - len(wrong), "total_count": n}
        errors = [{"id": i, "valid": False, "error": ["x"], "prompt": {"id": f"{category}_{i - 1}"}} for i in wrong]
        write_lines(raw / run / "score" / model / f"{category}_score.json", summary, *errors)
    return raw


@pytest.mark.parametrize("name", SOURCES)
def test_every_set_says_where_its_originals_are(name, capsys):
    assert main([name]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(word in told for word in SOURCES[name].licence.split())
    assert SOURCES[name].origin.split()[0] in told


def test_paretobandits_two_files_become_the_two_splits(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_lines(
        raw / "val.jsonl",
        graded_prompt("Say 'hi'", "mmlu", **{"x/a-1.0": (0.4, 3e-5), "y/b": (1.0, 2e-3)}),
        graded_prompt("Zwölf?", "gsm8k", **{"x/a-1.0": (0.5, 4e-5), "y/b": (0.9, 1e-3)}),
    )
    write_lines(
        raw / "test_holdout.jsonl", graded_prompt("Why?", "mmlu", **{"x/a-1.0": (0.0, 1e-5), "y/b": (0.7, 5e-3)})
    )
    assert main(["paretobandit", str(raw), str(out)]) == 0
    assert "outcomes.parquet" in capsys.readouterr().out
    recorded = RecordedSet.load(out)
    assert recorded.prompt_ids == ("warm-0", "warm-1", "test-0")
    assert recorded.prompts == ("Say 'hi'", "Zwölf?", "Why?")
    assert recorded.categories == ("mmlu", "gsm8k", "mmlu")
    assert recorded.splits == ("warm", "warm", "test")
    assert recorded.models == ("x/a-1.0", "y/b")
    np.testing.assert_allclose(recorded.quality[0], [[0.4, 0.5, 0.0], [1.0, 0.9, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(recorded.cost_usd[0], [[3e-5, 4e-5, 1e-5], [2e-3, 1e-3, 5e-3]], rtol=1e-6)
    assert np.isnan(recorded.latency_s).all()


def test_bfcl_takes_an_answer_for_right_unless_the_score_file_lists_it(bfcl, tmp_path):
    convert("bfcl", bfcl, tmp_path / "out")
    recorded = RecordedSet.load(tmp_path / "out")
    assert recorded.runs == ("2024-07-25", "2024-08-11")
    wrong = {
        (run, prompt_id)
        for run in recorded.runs
        for prompt_id in recorded.prompt_ids
        if recorded.outcome(run, "good", prompt_id).quality == 0.0
    }
    assert wrong == {("2024-07-25", "simple-2"), ("2024-08-11", "java-1")}


def test_bfcl_keeps_the_models_that_answered_everything_and_the_prompts_it_knows(bfcl, tmp_path):
    convert("bfcl", bfcl, tmp_path / "out")
    recorded = RecordedSet.load(tmp_path / "out")
    assert recorded.models == ("good",)
    assert sorted(recorded.prompt_ids) == ["java-1", "simple-1", "simple-2"]
    by_id = dict(zip(recorded.prompt_ids, recorded.prompts, strict=True))
    assert by_id["simple-1"] == 'Area?\n\nAvailable functions: {"name": "area"}'
    assert by_id["java-1"] == 'Run?\n\nAvailable functions: [{"name": "run"}]'
    assert set(recorded.splits) <= {"warm", "test"}


def test_bfcl_counts_zero_tokens_as_not_measured_and_prices_the_rest(bfcl, tmp_path):
    (bfcl / "prices.csv").write_text("model,input_per_million,output_per_million\ngood,3,15\n")
    convert("bfcl", bfcl, tmp_path / "out")
    recorded = RecordedSet.load(tmp_path / "out")
    measured = recorded.outcome("2024-07-25", "good", "simple-2")
    assert (measured.input_tokens, measured.output_tokens, measured.latency_s) == (101, 10, 0.5)
    assert measured.cost_usd == pytest.approx((101 * 3 + 10 * 15) / 1e6)
    unmeasured = recorded.outcome("2024-08-11", "good", "simple-1")
    assert (unmeasured.input_tokens, unmeasured.output_tokens, unmeasured.cost_usd) == (None, None, None)


def test_bfcl_costs_are_unknown_without_prices(bfcl, tmp_path):
    convert("bfcl", bfcl, tmp_path / "out")
    assert np.isnan(RecordedSet.load(tmp_path / "out").cost_usd).all()


def test_a_score_file_that_contradicts_itself_is_refused(bfcl, tmp_path):
    path = bfcl / "2024-07-25/score/good/simple_score.json"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(Unconvertible, match="2024-07-25 / good / simple"):
        convert("bfcl", bfcl, tmp_path / "out")


def test_llmperf_becomes_one_table_of_calls(tmp_path):
    call = {
        "error_code": None,
        "error_msg": "",
        "inter_token_latency_s": 0.01,
        "ttft_s": 0.2,
        "end_to_end_latency_s": 0.9,
        "request_output_throughput_token_per_s": 160.0,
        "number_total_tokens": 700,
        "number_output_tokens": 150,
        "number_input_tokens": 550,
    }
    short = call | {"error_code": -100, "error_msg": "Output too few tokens 39", "GEN_TEXT": "words"}
    (tmp_path / "groq_70b.json").write_text(json.dumps([call, call | {"ttft_s": 0.3}]))
    (tmp_path / "bedrock_13b.json").write_text(json.dumps([short]))
    convert("llmperf", tmp_path, tmp_path / "out")
    table = duckdb.read_parquet(str(tmp_path / "out/requests.parquet"))
    rows = table.select("endpoint", "i", "error_code", "ttft_s", "number_output_tokens").fetchall()
    assert rows == [
        ("bedrock_13b", 0, -100.0, 0.2, 150),
        ("groq_70b", 0, None, 0.2, 150),
        ("groq_70b", 1, None, 0.3, 150),
    ]


def test_open_bandit_logs_lose_only_their_row_numbers(tmp_path):
    log = tmp_path / "raw/random/men/men.csv"
    log.parent.mkdir(parents=True)
    log.write_text(
        ",timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_0\n"
        "0,2019-11-24 00:03:13.442536+00:00,14,3,0,0.029411764705882353,cef3,0.0\n"
        "1,2019-11-24 00:03:36.705207+00:00,10,3,1,0.029411764705882353,81ce,2.0\n"
    )
    convert("obd", tmp_path / "raw", tmp_path / "out")
    rows = duckdb.read_parquet(str(tmp_path / "out/random_men.parquet"))
    assert rows.columns[:3] == ["timestamp", "item_id", "position"]
    assert rows.fetchall()[1] == ("2019-11-24 00:03:36.705207+00:00", 10, 3, 1, 1 / 34, "81ce", 2.0)


@pytest.mark.parametrize("name", ["mmlu_pro", "paretobandit", "bfcl", "llmperf", "obd"])
def test_what_cannot_be_converted_exits_with_2_and_says_what_is_wanted(name, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    assert main([name, str(tmp_path / "raw"), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(name)
    assert "RAW_DIR:" in told


def test_raw_data_without_a_place_to_write_to_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        main(["bfcl", "somewhere"])
    assert "OUT_DIR" in capsys.readouterr().err
