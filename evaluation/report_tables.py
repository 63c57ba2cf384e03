"""The rows a report counts, as tables on the log's connection: decisions, attempts, feedback, grades, events.

Owns what counts, by the same rules as the service's accuracy matrix: pinned calls and answers from the cache are left
out, feedback is the one in force and never an assumed one, an item's grade is its latest. Sums up nothing and knows no
page.
"""
# ruff: noqa: S608 - statements are built from this file's own constants, quoted names and the user's own condition

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import duckdb

from bandit.errors import InvalidInput
from evaluation.logs import DRAWN, Log
from evaluation.selection import Selection

__all__ = ["left_out", "make_tables", "rows_of"]

_BLAMELESS: Final = "(400, 409, 413, 415, 422)"  # the caller's own request was at fault: as bandit.types.Outcome.failed
_IMPUTED: Final = "imputed"  # the metric that marks feedback which was assumed, not given

_CALLS: Final = """
    SELECT $part AS part, d.decision_id, d.seq, d.ts, {drawn} AS drawn, d.origin IS NOT NULL AS beside,
           d.category, d.chosen, d.arms, d.probabilities,
           d.probabilities[list_position(d.arms, d.chosen)] < list_max(d.probabilities) AS less_likely,
           d.predicted_quality[list_position(d.arms, d.chosen)] < list_max(
               [z[1] FOR z IN list_zip(d.predicted_quality, d.feasible) IF z[2] AND NOT isnan(z[1])]) AS less_good
    FROM {part}.decisions d
    WHERE d.pool = $pool AND d.mode NOT IN ('pinned', 'cached') AND {condition} ORDER BY d.seq
"""
_ATTEMPTS: Final = f"""
    SELECT c.part, c.decision_id, c.ts, c.category, o.model, o.attempt, o.status, o.http_status, o.error, o.latency_s,
           o.cost_usd, o.status = 'ok' AS answered, coalesce(o.status = 'timeout' OR (o.status = 'error'
               AND coalesce(o.http_status NOT IN {_BLAMELESS}, TRUE)), FALSE) AS failed
    FROM ({{outcomes}}) o JOIN calls c ON c.part = $part AND c.decision_id = o.decision_id
"""
_ANSWERS: Final = f"""
    WITH a AS (
        SELECT decision_id, arg_max(struct_pack(model := model, status := status), seq) AS last, count(*) AS attempts
        FROM {{part}}.outcomes GROUP BY decision_id),
    f AS (
        SELECT decision_id, arg_max(struct_pack(
                   quality := quality,
                   imputed := coalesce(list_contains(map_keys(metrics), '{_IMPUTED}'), FALSE)), seq) AS last
        FROM {{part}}.rewards GROUP BY decision_id)
    SELECT c.ts, c.category, c.chosen, c.beside, coalesce(a.last.model, c.chosen) AS model,
           coalesce(a.attempts, 0) AS attempts,
           a.last.status AS status, coalesce(a.last.status, 'ok') = 'ok' AS gradable,
           CASE WHEN f.last.quality IS NOT NULL AND NOT f.last.imputed THEN f.last.quality END AS quality,
           f.last.quality IS NOT NULL AND f.last.imputed AS imputed
    FROM calls c LEFT JOIN a USING (decision_id) LEFT JOIN f USING (decision_id) WHERE c.part = $part
"""
_NEEDED: Final = {  # of tables whose Parquet form may lack columns
    "outcomes": "decision_id seq attempt model status http_status error latency_s cost_usd",
    "filter_events": "seq ts pool model constraint_name from_state to_state reason calls rate evidence",
    "benchmark_results": "seq ts suite item_id category model quality latency_s cost_usd error",
}
_TYPES: Final = {"error": "VARCHAR", "constraint_name": "VARCHAR", "reason": "VARCHAR", "category": "VARCHAR"}


def make_tables(log: Log, selection: Selection) -> None:
    """Make `calls` (a row a decision), `attempts`, `answers` (what was said of each decision), `events`, `benchmarks`.

    A part of the log is joined within itself. `row` numbers calls from 0. Raises InvalidInput where the selection's
    condition is none, or nothing is left.
    """
    condition, bounds = _condition(selection)
    log.connection.execute("CREATE OR REPLACE SEQUENCE call_numbers MINVALUE 0 START 0")
    for i, part in enumerate(log.parts):
        inserted = "CREATE OR REPLACE TABLE {} AS" if i == 0 else "INSERT INTO {}"
        given = {"pool": selection.pool, "part": part} | bounds
        counted = _CALLS.format(part=part, condition=condition, drawn=DRAWN)
        calls = f"SELECT nextval('call_numbers') AS row, * FROM ({counted})"
        try:
            log.connection.execute(f"{inserted.format('calls')} {calls}", given)
        except (duckdb.ParserException, duckdb.BinderException, duckdb.ConversionException) as error:
            if selection.where is None:
                raise InvalidInput("log", f"{log.names[i]} cannot be read: {error}") from None
            raise InvalidInput("--where", f"is no condition on decisions: {error}") from None
        attempts = _ATTEMPTS.format(outcomes=_columns(log, part, "outcomes"))
        log.connection.execute(f"{inserted.format('attempts')} {attempts}", {"part": part})
        log.connection.execute(f"{inserted.format('answers')} {_ANSWERS.format(part=part)}", {"part": part})
    if not log.connection.execute("SELECT count(*) FROM calls").fetchall()[0][0]:
        raise InvalidInput("selection", _emptiness(log, selection))
    _make_events(log, selection)
    _make_benchmarks(log, selection)


def rows_of(log: Log, statement: str, given: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a statement, each by its columns' names."""
    found = log.connection.execute(statement, dict(given or {}))
    names = [column[0] for column in found.description or ()]
    for row in found.fetchall():
        yield dict(zip(names, row, strict=True))


def left_out(log: Log, selection: Selection) -> dict[str, int]:
    """Decisions of the time that are not looked at, by mode: pinned ones, which are no pool's, and its cached."""
    _, bounds = _condition(selection)
    times = _times("", bounds)
    found: dict[str, int] = {}
    for part in log.parts:
        statement = (
            f"SELECT mode, count(*) AS n FROM {part}.decisions WHERE (mode = 'pinned' OR (mode = 'cached' AND pool ="
            f" $pool)) AND {times} GROUP BY mode ORDER BY mode"
        )
        for row in rows_of(log, statement, bounds | {"pool": selection.pool}):
            found[row["mode"]] = found.get(row["mode"], 0) + row["n"]
    return found


def _condition(selection: Selection) -> tuple[str, dict[str, float]]:
    bounds = {"since": selection.since_ts, "until": selection.until_ts}
    given = {name: value for name, value in bounds.items() if value is not None}
    where = "TRUE" if selection.where is None else f"coalesce(({selection.where}), FALSE)"
    return f"{_times('d.', given)} AND {where}", given


def _times(prefix: str, bounds: Mapping[str, float]) -> str:
    signs = {"since": ">=", "until": "<"}
    return " AND ".join(["TRUE", *(f"{prefix}ts {signs[name]} ${name}" for name in bounds)])


def _make_events(log: Log, selection: Selection) -> None:
    """Changes of standing up to the end of the time: earlier ones say in which state it began."""
    until = {} if selection.until_ts is None else {"until": selection.until_ts}
    union = " UNION ALL ".join(f"({_columns(log, part, 'filter_events')})" for part in log.parts)
    log.connection.execute(
        f"CREATE OR REPLACE TABLE events AS SELECT * FROM ({union}) WHERE pool = $pool AND {_times('', until)}"
        f" ORDER BY {'seq' if len(log.parts) == 1 else 'ts, seq'}",
        {"pool": selection.pool} | until,
    )


def _make_benchmarks(log: Log, selection: Selection) -> None:
    """All results taken in, `latest` where no later answer to the same item of the suite by the model is there."""
    _, bounds = _condition(selection)
    union = " UNION ALL ".join(f"({_columns(log, part, 'benchmark_results')})" for part in log.parts)
    newest = "seq DESC" if len(log.parts) == 1 else "ts DESC, seq DESC"
    log.connection.execute(
        f"CREATE OR REPLACE TABLE benchmarks AS SELECT *, quality IS NOT NULL AND error IS NULL AS graded,"
        f" row_number() OVER (PARTITION BY suite, item_id, model, quality IS NOT NULL AND error IS NULL"
        f" ORDER BY {newest}) = 1 AS latest FROM ({union}) WHERE {_times('', bounds)}",
        bounds,
    )


def _columns(log: Log, part: str, table: str) -> str:
    """A query of the columns a report needs, NULL for those the part's table does not have."""
    found = log.connection.execute(f"SELECT * FROM {part}.{table} LIMIT 0").description or ()
    there = {column[0] for column in found}
    named = (
        name if name in there else f"NULL::{_TYPES.get(name, 'DOUBLE')} AS {name}" for name in _NEEDED[table].split()
    )
    return f"SELECT {', '.join(named)} FROM {part}.{table}"


def _emptiness(log: Log, selection: Selection) -> str:
    pools = log.pools()
    if selection.pool not in pools:
        known = ", ".join(f"{pool!r} ({count:,})" for pool, count in pools.items()) or "none at all"
        return f"no decision of a pool {selection.pool!r} is in the log; decisions by pool: {known}"
    count = pools[selection.pool]
    return f"none of the {count:,} decisions of pool {selection.pool!r} is left by --where, --since, --until"
