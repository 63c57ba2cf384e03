"""A small folder of recorded outcomes in the canonical form, for tests that start from one."""

from __future__ import annotations

from pathlib import Path

import duckdb

TEXTS = {"math": "what is {} times seven", "code": "def f_{}(x): return x", "law": "is contract {} binding in court"}


def write_folder(folder: Path, qualities, *, runs=("r1",), warm=True) -> Path:
    """30 prompts, a third of each category, every other one in split `warm`; a quality per model, or per run of it."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, outcomes = [], []
    for i in range(30):
        category = list(TEXTS)[i % 3]
        prompts.append((f"p{i}", TEXTS[category].format(i), category, "warm" if warm and i % 2 == 0 else "test"))
        for model, quality in qualities.items():
            outcomes += [(f"p{i}", model, run, quality[run] if isinstance(quality, dict) else quality) for run in runs]
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE prompts (prompt_id VARCHAR, prompt VARCHAR, category VARCHAR, split VARCHAR)")
        connection.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?)", prompts)
        connection.execute(
            "CREATE TABLE outcomes (prompt_id VARCHAR, model VARCHAR, run VARCHAR, quality DOUBLE, cost_usd DOUBLE"
            " DEFAULT 0.001, latency_s DOUBLE DEFAULT 0.5, input_tokens BIGINT DEFAULT 20, output_tokens BIGINT"
            " DEFAULT 100)"
        )
        connection.executemany("INSERT INTO outcomes (prompt_id, model, run, quality) VALUES (?, ?, ?, ?)", outcomes)
        for table in ("prompts", "outcomes"):
            connection.execute(f"COPY {table} TO '{folder / table}.parquet' (FORMAT parquet)")
    return folder
