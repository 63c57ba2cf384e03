"""The rows of a suite's file, before anybody looks at what they mean: JSON lines, or Parquet.

Owns encodings, sizes and the place that a problem is at. Knows no column but by its name.
"""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from bandit.errors import InvalidInput

__all__ = ["MAX_ITEMS", "MAX_SUITE_BYTES", "Row", "read_rows"]

MAX_SUITE_BYTES: Final = 256 * 2**20
MAX_ITEMS: Final = 100_000
JSON_LINES: Final = (".jsonl", ".ndjson")
PARQUET: Final = (".parquet",)
MAX_BITS: Final = 63
"""Integers beyond are floats, as they are where JSON is read."""

Row = tuple[str, dict[str, Any] | InvalidInput]
"""Where it stands ("line 3", "row 3"), and its columns or what is wrong with the whole of it."""


def read_rows(path: Path) -> Iterator[Row]:
    """Each row of the file in turn. Raises InvalidInput, which names the file, where it cannot be read at all."""
    name = path.name
    if not path.is_file():
        raise InvalidInput(name, f"not found in {path.parent}")
    if path.suffix.lower() not in JSON_LINES + PARQUET:
        raise InvalidInput(name, "must end in .jsonl, .ndjson or .parquet, or be a folder of recorded outcomes")
    size = path.stat().st_size
    if size > MAX_SUITE_BYTES:
        raise InvalidInput(name, f"is larger than {MAX_SUITE_BYTES >> 20} MiB; split it")
    return _parquet_rows(path) if path.suffix.lower() in PARQUET else _json_rows(path)


def _json_rows(path: Path) -> Iterator[Row]:
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place, text = f"line {number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            count += 1
            if count > MAX_ITEMS:
                raise InvalidInput(path.name, f"{place}: a suite has at most {MAX_ITEMS:,} items; split it")
            yield place, _json_row(text)


def _json_row(text: bytes) -> dict[str, Any] | InvalidInput:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return InvalidInput("row", f"is not UTF-8: byte {error.start + 1} of the line; save the file as UTF-8")
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return InvalidInput("row", f"is not valid JSON: {error}")
    return row if isinstance(row, dict) else InvalidInput("row", 'must be a JSON object such as {"id": "q1", …}')


def _parquet_rows(path: Path) -> Iterator[Row]:
    import duckdb

    try:
        with duckdb.connect(":memory:") as connection:
            counted = connection.execute("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchone()
            if counted is not None and counted[0] > MAX_ITEMS:
                raise InvalidInput(path.name, f"has {counted[0]:,} rows; a suite has at most {MAX_ITEMS:,}: split it")
            cursor = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            names = [column[0] for column in cursor.description or []]
            number = 0
            while batch := cursor.fetchmany(1000):
                for values in batch:
                    number += 1
                    row = dict(zip(names, values, strict=True))
                    yield f"row {number}", {name: _plain(v, keep=name == "messages") for name, v in row.items()}
    except duckdb.Error as error:
        message = str(error).splitlines()[0]
        raise InvalidInput(path.name, f"cannot be read as Parquet: {message}") from None


def _plain(value: Any, *, keep: bool = False) -> Any:
    """A value as JSON would have it. A struct's null fields are those that other rows have; `keep`: content stays."""
    if isinstance(value, dict):
        return {str(k): _plain(v, keep=keep) for k, v in value.items() if v is not None or (keep and k == "content")}
    if isinstance(value, list | tuple):
        return [_plain(entry, keep=keep) for entry in value]
    if isinstance(value, decimal.Decimal) or (isinstance(value, int) and value.bit_length() > MAX_BITS):
        return float(value)
    if isinstance(value, dt.date | dt.datetime | dt.time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
