"""What rounds of rows say: added latency, medians, ratios of neighbours, tables, JSON a person can read.

Pure: it measures nothing and starts nothing. A cell is one upstream latency at one concurrency; its rounds hold a row
for each arm, measured one after the other, so whatever is compared is compared within a round.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["added", "medians", "ratios", "readable", "table"]

Row = Mapping[str, float]
Rounds = Sequence[Mapping[str, Row]]

_ADDED = ("p50_ms", "p95_ms", "p99_ms", "first_byte_p50_ms", "first_byte_p95_ms", "first_byte_p99_ms")
_CHAT = (
    ("cpu_us_per_call", "CPU µs/call", ",.0f"),
    ("calls_per_s", "calls/s", ",.0f"),
    ("p50_ms", "p50 ms", ".1f"),
    ("p99_ms", "p99 ms", ".1f"),
    ("added_p50_ms", "added p50", ".1f"),
    ("added_p95_ms", "added p95", ".1f"),
    ("added_p99_ms", "added p99", ".1f"),
    ("rss_mb", "MB", ",.0f"),
    ("failed", "failed", ",.0f"),
)
_STREAM = (
    ("cpu_us_per_chunk", "CPU µs/chunk", ",.1f"),
    ("chunks_per_s", "chunks/s", ",.0f"),
    ("first_byte_p50_ms", "first byte p50 ms", ".1f"),
    ("added_first_byte_p50_ms", "added p50", ".1f"),
    ("added_first_byte_p95_ms", "added p95", ".1f"),
    ("added_first_byte_p99_ms", "added p99", ".1f"),
    ("failed", "failed", ",.0f"),
)


def added(rounds: Rounds, alone: str) -> list[dict[str, dict[str, float]]]:
    """The rounds with `added_…_ms` in each row: each quantile less that of `alone` in the same round.

    A difference of quantiles, not a quantile of differences, which nobody sees from outside; hence it may be below 0.
    """
    told = []
    for measured in rounds:
        base = measured[alone]
        told.append(
            {
                name: dict(row)
                | {f"added_{key}": round(row[key] - base[key], 3) for key in _ADDED if key in row and key in base}
                for name, row in measured.items()
            }
        )
    return told


def medians(rounds: Rounds) -> dict[str, dict[str, float]]:
    """Of each arm and figure the median over the rounds that have it; of failures the sum."""
    found: dict[str, dict[str, float]] = {}
    for name in rounds[0] if rounds else ():
        rows = [measured[name] for measured in rounds]
        keys = dict.fromkeys(key for row in rows for key in row)
        found[name] = {key: round(statistics.median(row[key] for row in rows if key in row), 3) for key in keys}
        found[name]["failed"] = sum(row["failed"] for row in rows)
    return found


def ratios(rounds: Rounds, key: str, to: str) -> dict[str, dict[str, float]]:
    """Each arm's figure over that of the arm `to` in the same round: median, lowest, highest."""
    found = {}
    for name in rounds[0] if rounds else ():
        each = [measured[name][key] / measured[to][key] for measured in rounds if measured[to].get(key)]
        if each:
            found[name] = {
                "median": round(statistics.median(each), 3),
                "lowest": round(min(each), 3),
                "highest": round(max(each), 3),
            }
    return found


def table(cell: Mapping[str, Any], what: str) -> list[str]:
    """A cell's `calls` or `streams` as a table in Markdown, with each arm's CPU over the pass-through's."""
    columns = _CHAT if what == "calls" else _STREAM
    part = cell[what]
    heads = [head for _, head, _ in columns]
    where = f"upstream {cell['upstream_latency_ms']:g} ms, {cell['concurrency']} at a time"
    lines = [
        f"{what}, {where} (others used {cell['others_cores']:.1f} cores)",
        "",
        f"| | {' | '.join(heads)} | CPU over pass-through |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, row in part["medians"].items():
        cells = [format(row[key], form) if key in row else "—" for key, _, form in columns]
        ratio = part["cpu_over_pass_through"].get(name)
        over = "—" if ratio is None else f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        lines.append(f"| {name} | {' | '.join(cells)} | {over} |")
    return lines


def readable(value: Any, depth: int = 0) -> str:
    """JSON in which whatever holds no other container is one line."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(each, dict | list) for each in inner):
        return json.dumps(value, ensure_ascii=False)
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        parts = [f"{pad}{json.dumps(key)}: {readable(each, depth + 1)}" for key, each in value.items()]
        return "{\n" + ",\n".join(parts) + "\n" + " " * depth + "}"
    return "[\n" + ",\n".join(f"{pad}{readable(each, depth + 1)}" for each in value) + "\n" + " " * depth + "]"
