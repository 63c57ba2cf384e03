"""What the service's own analytical log knows of a pool's models: contexts, and what came of each call.

Reads the log's tables, also while the service runs; writes nothing. Knows nothing of how a pool learns from it.
"""

# ruff: noqa: S608 - statements are built from this file's own constants

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from bandit.errors import InvalidInput
from bandit.features import Features
from bandit.types import Context, Outcome, Prompt
from bandit.warmup import Experience
from serving.analytics import IN_USE
from serving.imputation import IMPUTED

__all__ = ["LoggedExperience", "read_log"]

_MOST_DECISIONS = 50_000  # the latest ones; with the usual half-life older ones would be forgotten anyway
_PATIENCE_S = 10.0  # the service holds the file for moments at a time
_RETRY_S = 0.05
_IN_USE = IN_USE[0]  # by another process
# Whoever chose the model, its answer to this context is experience of it; a pinned call and an answer from the cache
# have no context to learn from, and neither has what was decided without one (their version is none of a pool's).
_TAUGHT = "pool = $pool AND mode NOT IN ('pinned', 'cached')"
_DECISIONS = f"""
    SELECT d.decision_id, d.context, d.input_tokens, d.category, d.chosen, o.attempt, o.model, o.status, o.http_status,
           o.latency_s, o.output_tokens, o.cost_usd, r.quality
    FROM (SELECT * FROM decisions WHERE {_TAUGHT} AND context_version = $version
          ORDER BY seq DESC LIMIT $most) d
    LEFT JOIN outcomes o USING (decision_id)
    LEFT JOIN (SELECT decision_id, quality, list_contains(map_keys(metrics), $imputed) AS imputed FROM rewards
               QUALIFY row_number() OVER (PARTITION BY decision_id ORDER BY seq DESC) = 1) r
           ON r.decision_id = d.decision_id AND ($take_imputed OR NOT coalesce(r.imputed, false))
    ORDER BY d.seq, o.attempt
"""
_BENCHMARKS = """
    SELECT category, model, quality, {tokens}, cost_usd, latency_s FROM benchmark_results
    WHERE list_contains($models, model) AND error IS NULL ORDER BY seq DESC LIMIT $most
"""
_HAS_TOKENS = """
    SELECT count(*) FROM duckdb_columns() WHERE table_name = 'benchmark_results' AND column_name = 'output_tokens'
"""
_VERSIONS = f"SELECT context_version, count(*) FROM decisions WHERE {_TAUGHT} GROUP BY 1"


@dataclass(frozen=True, slots=True)
class LoggedExperience:
    """Contexts, and by model an Experience of shape (n_contexts,), NaN where another model was asked."""

    contexts: tuple[Context, ...]
    experience: dict[str, Experience]
    source: str


class _Rows:
    """Observations as they are read: one context and one model each."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.models: list[str] = []
        self.values: list[tuple[float, float, float, float]] = []  # quality, tokens, USD, seconds

    def add(self, context: Context, model: str, *values: float | None) -> None:
        self.contexts.append(context)
        self.models.append(model)
        quality, tokens, cost, latency = (np.nan if value is None else float(value) for value in values)
        self.values.append((quality, tokens, cost, latency))

    def experience(self, models: Sequence[str]) -> dict[str, Experience]:
        values, asked = np.array(self.values).reshape(-1, 4), np.array(self.models)
        masked = {model: np.where((asked == model)[:, None], values, np.nan).T for model in models if model in asked}
        return {model: Experience(*columns) for model, columns in masked.items()}


def read_log(
    path: Path, pool: str, models: Sequence[str], features: Features, *, take_imputed: bool
) -> LoggedExperience:
    """The latest 50,000 decisions of a pool made with the same features, and as many benchmark results of its models.

    A benchmark result has no prompt in the log: its context has the category only.
    `take_imputed`: whether feedback that was only assumed counts. Waits up to ten seconds for the service to let go of
    the file. Raises InvalidInput for a file that is no log, or has nothing of the pool.
    """
    rows = _Rows()
    with _opened(path) as log:
        parameters = {"pool": pool, "version": features.version, "most": _MOST_DECISIONS}
        decisions = log.execute(_DECISIONS, parameters | {"imputed": IMPUTED, "take_imputed": take_imputed}).fetchall()
        tokens = "output_tokens" if log.execute(_HAS_TOKENS).fetchall()[0][0] else "NULL"  # a log of before has none
        parameters = {"models": list(models), "most": _MOST_DECISIONS}
        benchmarks = log.execute(_BENCHMARKS.format(tokens=tokens), parameters).fetchall()
        others = dict(log.execute(_VERSIONS, {"pool": pool}).fetchall())
    n_decisions = _add_decisions(rows, decisions, features.version)
    for category, model, *values in benchmarks:
        rows.add(features.extract(Prompt(category=category)), model, *values)
    experience = rows.experience(models)
    if not experience:
        if others and features.version not in others:
            seen = ", ".join(f"{version} ({count:,})" for version, count in others.items())
            raise InvalidInput(
                "log", f"its decisions of {pool!r} have features {seen}; the pool has {features.version}"
            )
        raise InvalidInput("log", f"nothing of {pool!r} can be learned from {path}: no outcomes of its models")
    source = f"{path}, {n_decisions:,} decisions, {len(benchmarks):,} benchmark results"
    return LoggedExperience(tuple(rows.contexts), experience, source)


def _add_decisions(rows: _Rows, found: Sequence[tuple[Any, ...]], version: str) -> int:
    """Add a row for each attempt; a decision's feedback speaks of its last one. Says how many decisions there were."""
    n_decisions = 0
    for i, row in enumerate(found):
        decision_id, x, input_tokens, category, chosen, attempt, model, status, http_status, *rest = row
        latency_s, output_tokens, cost_usd, quality = rest
        last = i + 1 == len(found) or found[i + 1][0] != decision_id
        n_decisions += last
        context = Context(np.array(x, dtype=np.float32), version, input_tokens, category)
        if model is None:  # its caller makes the call and has not told what came of it
            if quality is not None:
                rows.add(context, chosen, quality, None, None, None)
        elif status == "ok":
            rows.add(context, model, quality if last else None, output_tokens, cost_usd, latency_s)
        elif Outcome(decision_id, 0.0, model, status, None, attempt=attempt, http_status=http_status).failed:
            rows.add(context, model, 0.0, None, None, None)
    return n_decisions


@contextmanager
def _opened(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    if not path.is_file():
        raise InvalidInput("log", f"there is no file {path}")
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        try:
            connection = duckdb.connect(str(path), read_only=True)
            break
        except duckdb.Error as error:
            if _IN_USE not in str(error):
                raise InvalidInput("log", f"{path} is not a log of this service: {error}") from None
            if time.monotonic() > give_up_at:
                raise InvalidInput("log", f"{path} is in use by another process") from None
            time.sleep(_RETRY_S)
    try:
        yield connection
    except duckdb.Error as error:
        raise InvalidInput("log", f"{path} is not a log of this service: {error}") from None
    finally:
        connection.close()
