"""Where the public data sets come from, and how their originals become the folders that the benchmarks read.

    python -m benchmarks.datasets NAME                    where the originals of one set are; all: every set
    python -m benchmarks.datasets NAME RAW_DIR OUT_DIR    turn the originals in RAW_DIR into the folder OUT_DIR

Nothing is downloaded and no data file belongs to the project. A set's converter exists only where the originals'
shape could be read; the sets with prompts and outcomes become what `evaluation.RecordedSet` loads.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import duckdb

__all__ = ["SOURCES", "Source", "Unconvertible", "convert", "main"]

WARM_SHARE: Final = 4
"""Of the prompts of a set without a split of its own, one in so many is `warm`, by a hash of its id."""

_BFCL_CATEGORIES: Final = (
    "executable_multiple_function",
    "executable_parallel_function",
    "executable_parallel_multiple_function",
    "executable_simple",
    "java",
    "javascript",
    "multiple_function",
    "parallel_function",
    "parallel_multiple_function",
    "rest",
    "simple",
)
_OBD_LOGS: Final = tuple(f"{policy}/{campaign}" for policy in ("random", "bts") for campaign in ("all", "men", "women"))


class Unconvertible(Exception):
    """The originals are not as expected, or no converter exists; the message says what to do."""


Converter = Callable[[duckdb.DuckDBPyConnection, Path, Path], None]


@dataclass(frozen=True, slots=True)
class Source:
    """One public set: where its originals are (`origin`), under which licence, which files RAW_DIR must hold."""

    title: str
    origin: str
    licence: str
    files: str
    converter: Converter | None


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, or 2 where nothing could be converted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datasets", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*SOURCES, "all"])
    parser.add_argument("raw_dir", type=Path, nargs="?")
    parser.add_argument("out_dir", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    if options.raw_dir is None:
        for name in SOURCES if options.name == "all" else [options.name]:
            print(_described(name))
        return 0
    if options.out_dir is None or options.name == "all":
        parser.error("give one set's NAME, RAW_DIR and OUT_DIR")
    try:
        convert(options.name, options.raw_dir, options.out_dir)
    except Unconvertible as problem:
        print(f"{problem}\n\n{_described(options.name)}", file=sys.stderr)
        return 2
    for path in sorted(options.out_dir.glob("*.parquet")):
        print(f"wrote {path}")
    return 0


def convert(name: str, raw_dir: Path, out_dir: Path) -> None:
    """Turn a set's originals into parquet files in `out_dir`, which is made if need be.

    Raises Unconvertible when a file is missing or not as expected, and for a set without a converter.
    """
    converter = SOURCES[name].converter
    if converter is None:
        raise Unconvertible(f"{name}: there is no converter, since the shape of its originals could not be checked")
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(":memory:") as connection:
            converter(connection, raw_dir, out_dir)
    except (duckdb.Error, OSError, KeyError, ValueError) as error:
        raise Unconvertible(f"{name}: {raw_dir} is not as expected: {error}") from error


def _paretobandit(connection: duckdb.DuckDBPyConnection, raw_dir: Path, out_dir: Path) -> None:
    """Its validation split is `warm`, its hold-out `test`; qualities and costs are kept in single precision."""
    holdout = next((raw_dir / f for f in ("test_holdout.jsonl", "test.jsonl") if (raw_dir / f).is_file()), None)
    if holdout is None:
        raise Unconvertible(f"paretobandit: {raw_dir} holds neither test_holdout.jsonl nor test.jsonl")
    connection.execute(
        """CREATE TABLE rows (prompt_id VARCHAR, prompt VARCHAR, category VARCHAR, split VARCHAR,
                              arms MAP(VARCHAR, STRUCT(reward FLOAT, cost FLOAT)))"""
    )
    for split, path in (("warm", raw_dir / "val.jsonl"), ("test", holdout)):
        connection.execute(
            """INSERT INTO rows SELECT $split || '-' || (row_number() OVER () - 1), prompt, source, $split, arms
            FROM read_json($path, format = 'newline_delimited', columns = {prompt: 'VARCHAR', source: 'VARCHAR',
                           arms: 'MAP(VARCHAR, STRUCT(reward FLOAT, cost FLOAT))'})""",
            {"split": split, "path": str(path)},
        )
    connection.execute(
        """CREATE TABLE outcomes AS SELECT prompt_id, arm.key AS model, '2026' AS run, arm.value.reward AS quality,
               arm.value.cost AS cost_usd, CAST(NULL AS FLOAT) AS latency_s, CAST(NULL AS INTEGER) AS input_tokens,
               CAST(NULL AS INTEGER) AS output_tokens
        FROM (SELECT prompt_id, unnest(map_entries(arms)) AS arm FROM rows)"""
    )
    _write(connection, "SELECT prompt_id, prompt, category, split FROM rows", out_dir / "prompts.parquet")
    _write(connection, "FROM outcomes", out_dir / "outcomes.parquet")


def _bfcl(connection: duckdb.DuckDBPyConnection, raw_dir: Path, out_dir: Path) -> None:
    """An answer is right unless its category's score file lists it. Kept are models with all prompts in all runs.

    Score files count prompts from 1, result files from 0; `prompt_id` counts from 1. Token counts of 0 mean that
    none were kept. Costs come from RAW_DIR/prices.csv (model, and USD per million tokens in input_per_million and
    output_per_million) and are null without it.
    """
    connection.execute("CREATE TABLE prompts (prompt_id VARCHAR, prompt VARCHAR, category VARCHAR, split VARCHAR)")
    for category in _BFCL_CATEGORIES:
        path = raw_dir / "prompts" / f"gorilla_openfunctions_v1_test_{category}.json"
        if path.is_file():
            connection.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?)", _bfcl_prompts(category, path))
    connection.execute("CREATE TABLE prices (model VARCHAR, input_per_million DOUBLE, output_per_million DOUBLE)")
    if (raw_dir / "prices.csv").is_file():
        connection.execute("INSERT INTO prices BY NAME FROM read_csv(?)", [str(raw_dir / "prices.csv")])
    _read_bfcl_results(connection, raw_dir)
    _read_bfcl_scores(connection, raw_dir)
    connection.execute(
        """CREATE TABLE outcomes AS
        SELECT category || '-' || number AS prompt_id, model, run,
               CAST(wrong.number IS NULL AS FLOAT) AS quality,
               CAST((input_tokens * input_per_million + output_tokens * output_per_million) / 1e6 AS FLOAT) AS cost_usd,
               CAST(latency AS FLOAT) AS latency_s, CAST(input_tokens AS INTEGER) AS input_tokens,
               CAST(output_tokens AS INTEGER) AS output_tokens
        FROM results
        SEMI JOIN (FROM scores WHERE n_wrong IS NOT NULL) AS scored USING (run, model, category)
        LEFT JOIN (FROM scores WHERE number IS NOT NULL) AS wrong USING (run, model, category, number)
        LEFT JOIN prices USING (model)
        WHERE category || '-' || number IN (SELECT prompt_id FROM prompts)"""
    )
    connection.execute(
        """DELETE FROM outcomes WHERE model NOT IN (
            SELECT model FROM outcomes GROUP BY model
            HAVING count(*) = (SELECT count(*) FROM prompts) * (SELECT count(DISTINCT run) FROM results))"""
    )
    _write(connection, "FROM prompts", out_dir / "prompts.parquet")
    _write(connection, "FROM outcomes", out_dir / "outcomes.parquet")


def _read_bfcl_results(connection: duckdb.DuckDBPyConnection, raw_dir: Path) -> None:
    connection.execute(
        """CREATE TABLE results AS
        SELECT path[-4] AS run, path[-2] AS model, regexp_extract(path[-1], '_test_(.*)_result.json$', 1) AS category,
               CAST(regexp_extract(id, '([0-9]+)$', 1) AS BIGINT) + 1 AS number, latency,
               nullif(input_token_count, 0) AS input_tokens, nullif(output_token_count, 0) AS output_tokens
        FROM (SELECT *, string_split(filename, '/') AS path
              FROM read_json($pattern, format = 'newline_delimited', filename = true, columns = {id: 'VARCHAR',
                             latency: 'DOUBLE', input_token_count: 'BIGINT', output_token_count: 'BIGINT'}))""",
        {"pattern": f"{raw_dir.as_posix()}/*/result/*/*_result.json"},
    )


def _read_bfcl_scores(connection: duckdb.DuckDBPyConnection, raw_dir: Path) -> None:
    """A score file counts right and wrong answers in its first line, then lists the wrong ones: these must agree."""
    connection.execute(
        """CREATE TABLE scores AS
        SELECT path[-4] AS run, path[-2] AS model, regexp_extract(path[-1], '^(.*)_score.json$', 1) AS category,
               id AS number, total_count - correct_count AS n_wrong
        FROM (SELECT *, string_split(filename, '/') AS path
              FROM read_json($pattern, format = 'newline_delimited', filename = true, maximum_object_size = 100000000,
                             columns = {id: 'BIGINT', total_count: 'BIGINT', correct_count: 'BIGINT'}))""",
        {"pattern": f"{raw_dir.as_posix()}/*/score/*/*_score.json"},
    )
    odd = connection.execute(
        """SELECT run, model, category FROM scores GROUP BY run, model, category
        HAVING sum(n_wrong) <> count(DISTINCT number) LIMIT 1"""
    ).fetchone()
    if odd is not None:
        raise Unconvertible(f"bfcl: the score file of {' / '.join(odd)} does not list as many errors as it counts")


def _bfcl_prompts(category: str, path: Path) -> list[tuple[str, str, str, str]]:
    with path.open(encoding="utf-8") as lines:
        prompts = [json.loads(line) for line in lines]
    rows = []
    for number, prompt in enumerate(prompts, start=1):
        prompt_id = f"{category}-{number}"
        text = f"{prompt['question']}\n\nAvailable functions: {json.dumps(prompt['function'])}"
        rows.append((prompt_id, text, category, _split_of(prompt_id)))
    return rows


def _llmperf(connection: duckdb.DuckDBPyConnection, raw_dir: Path, out_dir: Path) -> None:
    """Every call of every endpoint in one table, `i` counting an endpoint's calls; there are no prompts to speak of."""
    connection.execute(
        """CREATE TABLE requests AS
        SELECT parse_filename(filename, true) AS endpoint, row_number() OVER (PARTITION BY filename) - 1 AS i,
               * EXCLUDE (filename)
        FROM read_json($pattern, format = 'array', filename = true, columns = {
            error_code: 'DOUBLE', error_msg: 'VARCHAR', inter_token_latency_s: 'DOUBLE', ttft_s: 'DOUBLE',
            end_to_end_latency_s: 'DOUBLE', request_output_throughput_token_per_s: 'DOUBLE',
            number_total_tokens: 'BIGINT', number_output_tokens: 'BIGINT', number_input_tokens: 'BIGINT',
            GEN_TEXT: 'VARCHAR'})""",
        {"pattern": f"{raw_dir.as_posix()}/*.json"},
    )
    _write(connection, "FROM requests ORDER BY endpoint, i", out_dir / "requests.parquet")


def _obd(connection: duckdb.DuckDBPyConnection, raw_dir: Path, out_dir: Path) -> None:
    """One logged bandit a file, as it is but for the unnamed first column of row numbers."""
    logs = [log for log in _OBD_LOGS if (raw_dir / log).is_dir()]
    if not logs:
        raise Unconvertible(f"obd: {raw_dir} holds none of {', '.join(_OBD_LOGS)}")
    for log in logs:
        policy, campaign = log.split("/")
        connection.execute(
            "CREATE OR REPLACE TABLE log AS FROM read_csv(?, header = true, types = {'timestamp': 'VARCHAR'})",
            [str(raw_dir / log / f"{campaign}.csv")],
        )
        columns = connection.execute("SELECT column_name FROM (DESCRIBE log)").fetchall()
        connection.execute(f'ALTER TABLE log DROP COLUMN "{columns[0][0]}"')
        _write(connection, "FROM log", out_dir / f"{policy}_{campaign}.parquet")


def _write(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    connection.execute(f"COPY ({query}) TO '{_literal(path)}' (FORMAT parquet)")


def _literal(path: Path) -> str:
    return path.as_posix().replace("'", "''")


def _split_of(prompt_id: str) -> str:
    return "warm" if blake2b(prompt_id.encode(), digest_size=8).digest()[0] % WARM_SHARE == 0 else "test"


def _described(name: str) -> str:
    source = SOURCES[name]
    lines = (source.title, f"origin: {source.origin}", f"licence: {source.licence}", f"RAW_DIR: {source.files}")
    body = "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    ") for line in lines)
    return f"{name}\n{body}"


SOURCES: Final = {
    "paretobandit": Source(
        title="3,609 prompts answered by three models: a judge's reward and the real cost of every answer",
        origin="ParetoBandit/ParetoBandit at 72ccbefe; the Python package paretobandit 0.1.1 has the same two files",
        licence="Apache-2.0",
        files="val.jsonl and test_holdout.jsonl, from pareto_bandit/data/examples of the package",
        converter=_paretobandit,
    ),
    "bfcl": Source(
        title="1,460 function-calling prompts answered by 42 models in two runs: correctness, tokens, latency",
        origin="HuanzhiMao/BFCL-Result at b4adfc9b (answers and scores); ShishirPatil/gorilla, folder "
        "berkeley-function-call-leaderboard/data (prompts)",
        licence="answers: no licence file, so for measurement only; prompts: Apache-2.0",
        files="2024-07-25 and 2024-08-11, each with result and score, as in the first repository; prompts, with "
        "gorilla_openfunctions_v1_test_*.json of the second as they were then; prices.csv (model, input_per_million, "
        "output_per_million) if costs are wanted. The split is one by hash, not that of the folder results refer to",
        converter=_bfcl,
    ),
    "mmlu_pro": Source(
        title="12,002 multiple-choice questions, answered by ten models: correctness; costs by length and list price",
        origin="TIGER-AI-Lab/MMLU-Pro at f418b116, eval_results/model_outputs_*_5shots.zip, one archive a model",
        licence="Apache-2.0",
        files="no converter: the archives could not be read where this was written. Wanted of each question: its id, "
        "text, options and category; of each answer: whether it was right; tokens are characters / 4",
        converter=None,
    ),
    "llmperf": Source(
        title="2,845 calls to 19 endpoints: time to first token, between tokens and in total, and error codes",
        origin="ray-project/llmperf-leaderboard at 27aa9b6a, folder raw_data/individual",
        licence="Apache-2.0",
        files="that folder's *.json, one an endpoint",
        converter=_llmperf,
    ),
    "obd": Source(
        title="Six logs of 10,000 rounds of a recommender, with the probabilities it chose with (a sample)",
        origin="st-tech/zr-obp, folder obp/dataset/obd (the Open Bandit Dataset's sample)",
        licence="CC BY 4.0",
        files="random and bts, each with all, men and women, as in that folder",
        converter=_obd,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
