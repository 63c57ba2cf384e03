"""Reads the service's logs: DuckDB files, also while the service runs, or their tables as Parquet files, or both.

Owns what a log is: its tables and columns, its version, and that a file may be in use for a moment. Writes to no log
and knows nothing of what its rows are good for.
"""
# ruff: noqa: S608 - statements are built from this file's own constants and quoted names

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from bandit.errors import InvalidInput

__all__ = ["DRAWN", "SCHEMA_VERSION", "Log", "opened", "quoted"]

SCHEMA_VERSION: Final = 4
"""The newest log this module knows; in older ones what they do not have is NULL."""
DRAWN: Final = (
    "(mode IN ('bandit', 'weighted', 'canary') AND experiment IS NULL AND origin IS NULL"
    " AND coalesce(context_version, '') <> 'none')"
)
"""The decisions, in SQL, whose model was drawn from the logged probabilities for this call alone, with a context."""
MEMORY_LIMIT: Final = "1GB"
PATIENCE_S: Final = 30.0  # the service holds its log for moments at a time
_RETRY_S: Final = 0.05
_IN_USE: Final = "Could not set lock"  # what DuckDB says of a file that another process writes
_TABLES: Final = {  # what of each is needed
    "decisions": "decision_id seq ts pool mode context context_version input_tokens category tier arms feasible"
    " probabilities chosen propensity predicted_quality predicted_cost_usd",
    "outcomes": "decision_id seq attempt model status http_status latency_s input_tokens output_tokens cost_usd",
    "rewards": "decision_id seq quality metrics reward",
    "filter_events": "seq ts pool model from_state to_state",
    "benchmark_results": "seq ts suite item_id category model quality",
}
_LATER: Final = {  # what older logs do not have, or nobody need give
    "decisions": {"experiment": "VARCHAR", "origin": "VARCHAR"},
    "outcomes": {"cached_tokens": "BIGINT", "time_to_first_token_s": "DOUBLE"},
}
_TOLD_BY: Final = {  # what tells a Parquet file's table
    "decisions": "probabilities",
    "outcomes": "attempt",
    "rewards": "revision",
    "filter_events": "to_state",
    "benchmark_results": "suite",
}


@dataclass(frozen=True, slots=True)
class Log:
    """Open logs. `parts` are schemas of `connection` that hold the tables, in order of time; `names` say from where."""

    connection: duckdb.DuckDBPyConnection
    parts: tuple[str, ...]
    names: tuple[str, ...]

    def pools(self) -> dict[str, int]:
        """Decisions by pool, those drawn by a policy, the largest first."""
        found: dict[str, int] = {}
        for part in self.parts:
            rows = self.connection.execute(
                f"SELECT pool, count(*) FROM {part}.decisions WHERE {DRAWN} GROUP BY pool"
            ).fetchall()
            for pool, count in rows:
                found[pool] = found.get(pool, 0) + count
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[Log]:
    """The logs at `paths`: DuckDB files or folders with `log.duckdb`, and Parquet files or folders of them.

    Each DuckDB file is a part of its own, all Parquet files together are one. While a file is open here the service
    cannot write to it, and catches up afterwards. Waits up to 30 s for the service to let go. Raises InvalidInput, also
    where two of them hold the same decision, as the logs of machines that share a store do: it would count twice.
    """
    databases, tables = _sorted_out(paths)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-replay-")))
        connection = duckdb.connect(str(folder / "rounds.duckdb"), config={"memory_limit": MEMORY_LIMIT})
        stack.callback(connection.close)
        connection.execute("SET preserve_insertion_order = true")
        parts: list[tuple[float, str, str]] = []
        for i, path in enumerate(databases):
            _attach(connection, path, f"file{i}")
            columns = _checked(connection, path, f"file{i}")
            sources = {table: (f"SELECT * FROM file{i}.{table}", columns[table]) for table in _TABLES}
            _make_part(connection, f"part{i}", sources)
            parts.append((_first_ts(connection, f"part{i}", path), f"part{i}", str(path)))
        if tables:
            _make_part(connection, "parquet", _sources(tables))
            label = ", ".join(str(path) for files in tables.values() for path in files)
            parts.append((_first_ts(connection, "parquet", Path(label)), "parquet", label))
        parts.sort()
        for one, other in itertools.combinations(parts, 2):
            _refuse_same(connection, one, other)
        yield Log(connection, tuple(part for _, part, _ in parts), tuple(name for _, _, name in parts))


def _sorted_out(paths: Sequence[Path]) -> tuple[list[Path], dict[str, list[Path]]]:
    """DuckDB files, and Parquet files by table."""
    databases: list[Path] = []
    tables: dict[str, list[Path]] = {}
    if not paths:
        raise InvalidInput("log", "name at least one")
    for path in paths:
        inner = [path]
        if path.is_dir():
            inner = [path / "log.duckdb"] if (path / "log.duckdb").is_file() else sorted(path.glob("*.parquet"))
            if not inner:
                raise InvalidInput("log", f"{path} holds neither log.duckdb nor Parquet files")
        for file in inner:
            if not file.is_file():
                raise InvalidInput("log", f"there is no file {file}")
            if file.suffix == ".parquet":
                tables.setdefault(_table_of(file), []).append(file)
            else:
                databases.append(file)
    files = [file.resolve() for file in (*databases, *itertools.chain.from_iterable(tables.values()))]
    for file in files:
        if files.count(file) > 1:
            raise InvalidInput("log", f"{file} is named twice")
    return databases, tables


def _table_of(path: Path) -> str:
    columns = _columns_of(path)
    for table, sign in _TOLD_BY.items():
        if sign in columns:
            missing = [name for name in _TABLES[table].split() if name not in columns]
            if missing:
                raise InvalidInput("log", f"{path}, table {table}: column {missing[0]} is missing")
            return table
    raise InvalidInput("log", f"{path} is no table of a log: it has none of the columns {', '.join(_TOLD_BY.values())}")


def _columns_of(path: Path) -> list[str]:
    try:
        with duckdb.connect() as connection:
            found = connection.execute("SELECT name FROM parquet_schema(?)", [str(path)]).fetchall()
    except duckdb.Error as error:
        raise InvalidInput("log", f"{path} is not a Parquet file: {error}") from None
    return [row[0] for row in found]


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.execute(f"ATTACH {quoted(str(path))} AS {name} (READ_ONLY)")
        except duckdb.Error as error:
            if _IN_USE not in str(error):
                raise InvalidInput("log", f"{path} is not a log of this service: {error}") from None
            if time.monotonic() > give_up_at:
                raise InvalidInput("log", f"{path} is in use by another process") from None
            time.sleep(_RETRY_S)
        else:
            return


def _checked(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> dict[str, set[str]]:
    """The columns of each table of an attached file."""
    columns: dict[str, set[str]] = {}
    for table, column in connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ?", [name]
    ).fetchall():
        columns.setdefault(table, set()).add(column)
    if "schema_version" not in columns:
        raise InvalidInput("log", f"{path} is not a log of this service: it has no table schema_version")
    (version,) = connection.execute(f"SELECT version FROM {name}.schema_version").fetchall()[0]
    if version > SCHEMA_VERSION:
        raise InvalidInput(
            "log", f"{path} has schema version {version}, and this program reads up to {SCHEMA_VERSION}; upgrade it"
        )
    for table, needed in _TABLES.items():
        for column in needed.split():
            if column not in columns.get(table, set()):
                raise InvalidInput("log", f"{path}, table {table}: column {column} is missing")
    return columns


def _sources(tables: Mapping[str, Sequence[Path]]) -> dict[str, tuple[str, set[str]]]:
    """For each table a query of its Parquet files, and their columns."""
    if "decisions" not in tables:
        raise InvalidInput("log", "none of the Parquet files holds decisions (a column probabilities)")
    found = {}
    for table in _TABLES:
        source, columns = f"SELECT {_NOTHING.get(table)} WHERE FALSE", set[str]()
        if table in tables:
            files = ", ".join(quoted(str(path)) for path in tables[table])
            source = f"SELECT * FROM read_parquet([{files}], union_by_name = true)"
            columns = {column for path in tables[table] for column in _columns_of(path)}
        found[table] = source, columns
    return found


def _make_part(
    connection: duckdb.DuckDBPyConnection, name: str, sources: Mapping[str, tuple[str, Collection[str]]]
) -> None:
    """A schema with a view of each table; what a log of before does not have is NULL there."""
    connection.execute(f"CREATE SCHEMA {name}")
    for table, (source, columns) in sources.items():
        missing = {column: kind for column, kind in _LATER.get(table, {}).items() if column not in columns}
        more = "".join(f", NULL::{kind} AS {column}" for column, kind in missing.items())
        connection.execute(f"CREATE VIEW {name}.{table} AS SELECT *{more} FROM ({source})")


_NOTHING: Final = {  # a table that was not given, with the columns that are asked for
    "outcomes": "NULL::VARCHAR decision_id, NULL::BIGINT seq, NULL::INTEGER attempt, NULL::VARCHAR model,"
    " NULL::VARCHAR status, NULL::INTEGER http_status, NULL::DOUBLE latency_s, NULL::BIGINT input_tokens,"
    " NULL::BIGINT output_tokens, NULL::DOUBLE cost_usd",
    "rewards": "NULL::VARCHAR decision_id, NULL::BIGINT seq, NULL::DOUBLE quality, NULL::MAP(VARCHAR, DOUBLE) metrics,"
    " NULL::DOUBLE reward",
    "filter_events": "NULL::BIGINT seq, NULL::DOUBLE ts, NULL::VARCHAR pool, NULL::VARCHAR model,"
    " NULL::VARCHAR constraint_name, NULL::VARCHAR from_state, NULL::VARCHAR to_state, NULL::VARCHAR reason",
    "benchmark_results": "NULL::BIGINT seq, NULL::DOUBLE ts, NULL::VARCHAR suite, NULL::VARCHAR item_id,"
    " NULL::VARCHAR category, NULL::VARCHAR model, NULL::DOUBLE quality, NULL::DOUBLE latency_s,"
    " NULL::DOUBLE cost_usd, NULL::VARCHAR error",
}


def _first_ts(connection: duckdb.DuckDBPyConnection, part: str, path: Path) -> float:
    try:
        (first,) = connection.execute(f"SELECT min(ts) FROM {part}.decisions").fetchall()[0]
    except duckdb.Error as error:
        raise InvalidInput("log", f"{path} cannot be read: {error}") from None
    return np.inf if first is None else float(first)


def _refuse_same(
    connection: duckdb.DuckDBPyConnection, one: tuple[float, str, str], other: tuple[float, str, str]
) -> None:
    same = f"SELECT decision_id FROM {one[1]}.decisions SEMI JOIN {other[1]}.decisions USING (decision_id, ts) LIMIT 1"
    found = connection.execute(same).fetchone()
    if found is not None:
        raise InvalidInput(
            "log", f"{one[2]} and {other[2]} hold the same decisions, such as {found[0]}; name one of them"
        )


def quoted(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"
