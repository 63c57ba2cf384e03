"""What a soak's samples say: the promises, kept or missed, and a picture.

Knows the form of a sample (`soak`), and the stores as files that nobody has open any more.
"""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from benchmarks.soak_calls import unexpected

__all__ = ["files_of", "judged", "line", "plotted", "shown"]

_MOST_MB_PER_100K = 1.0
_FLAT = 1.25  # of the second half's p99 over the first's
# Over what the most rows take in a file made anew. SQLite keeps freed pages among those in use; a checkpoint of DuckDB
# writes anew what it changes before it frees what was there, in blocks of 256 kB for each column.
_TIMES_COMPUTED = {"store": 1.25, "log": 2.0}
_BLOCKS_MB = 10.0
# An event leaves once it was a horizon old at the last snapshot: one is taken every so many events.
_SNAPSHOT_EVENTS = 20_000
_SLACK_S = 30.0  # the store is looked at every five seconds, the log's last flush is later than its last call
_TABLES = ("decisions", "outcomes", "rewards", "filter_events", "benchmark_results", "changes")


def files_of(folder: Path) -> dict[str, float]:
    """Sizes in MB of what a data folder has."""
    names = {
        "store": "router.sqlite",
        "store_wal": "router.sqlite-wal",
        "log": "log.duckdb",
        "log_wal": "log.duckdb.wal",
    }
    sizes = {}
    for name, file in names.items():
        with contextlib.suppress(FileNotFoundError):
            sizes[f"{name}_mb"] = round((folder / file).stat().st_size / 1e6, 3)
    return {f"{name}_mb": 0.0 for name in names} | sizes


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of a least-squares line and its standard error; not a number with fewer than three points."""
    if len(x) < 3:
        return float("nan"), float("nan")
    centred = np.asarray(x) - np.mean(x)
    slope = float(centred @ np.asarray(y)) / float(centred @ centred)
    rest = np.asarray(y) - np.mean(y) - slope * centred
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred)))


def judged(kept: dict[str, Any], folder: Path, *, horizon_s: float, retention_s: float) -> dict[str, Any]:
    """Every promise: what was measured, and whether it holds (None: cannot tell)."""
    samples = kept["samples"]
    if len(samples) < 4:
        return {}
    half = samples[len(samples) // 2 :]
    slope, error = line([s["calls"] / 1e5 for s in half], [s["rss_mb"] for s in half])
    flat = True if slope + 2 * error < _MOST_MB_PER_100K else False if slope - 2 * error > _MOST_MB_PER_100K else None
    found: dict[str, Any] = {
        "memory": {
            "mb_per_100k_calls": round(slope, 3),
            "standard_error": round(error, 3),
            "rss_mb": [s["rss_mb"] for s in (half[0], half[-1])],
            "holds": flat,
        }
    }
    for name in ("caller_p99_ms", "overhead_p99_ms"):
        tenths = kept[name]
        ratio = statistics.median(tenths[5:]) / statistics.median(tenths[1:5])  # the first has the start in it
        found[name] = {"tenths": tenths, "second_half_over_first": round(ratio, 3), "holds": ratio <= _FLAT}
    found |= _sizes(samples, folder)
    found |= _retention(kept, folder, horizon_s, retention_s)
    odd = unexpected(kept["statuses"])
    trouble = {name: value for name, value in samples[-1]["log_trouble"].items() if name != "in_use" and value}
    found["nothing unexpected"] = {"answers": odd, "log_trouble": trouble, "holds": not odd and not trouble}
    return found


def _sizes(samples: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Both files beside the most rows they held, at what a row takes in a file made anew."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store, log = Path(place) / "store", Path(place) / "log"
        with contextlib.closing(sqlite3.connect(folder / "router.sqlite")) as connection:
            connection.execute("VACUUM INTO ?", (str(store),))
            (events,) = connection.execute("SELECT count(*) FROM events").fetchone()
            (snapshots,) = connection.execute("SELECT sum(length(payload)) FROM snapshots").fetchone()
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH '{folder / 'log.duckdb'}' AS log (READ_ONLY)")
            connection.execute(f"ATTACH '{log}' AS made")
            connection.execute("COPY FROM DATABASE log TO made")
            rows = sum(
                connection.execute(f"SELECT count(*) FROM log.{table}").fetchall()[0][0]  # noqa: S608 - our tables
                for table in _TABLES
            )
            connection.execute("DETACH made")
        per_event = (store.stat().st_size - (snapshots or 0)) / max(1, events)
        per_row = log.stat().st_size / max(1, rows)
    most_events, most_rows = (max(s[name] for s in samples) for name in ("store_events", "log_rows"))
    result = {}
    for name, each, most, held in (("store", per_event, most_events, events), ("log", per_row, most_rows, rows)):
        size, computed = max(s[f"{name}_mb"] for s in samples), each * most / 1e6
        result[f"{name} size"] = {
            "largest_mb": size,
            "computed_mb": round(computed, 1),
            "bytes_a_row": round(each, 1),
            "most_rows": int(most),
            "rows_at_the_end": int(held),
            "largest_wal_mb": max(s[f"{name}_wal_mb"] for s in samples),
            "holds": size <= _TIMES_COMPUTED[name] * computed + _BLOCKS_MB,
        }
    return result


def _retention(kept: dict[str, Any], folder: Path, horizon_s: float, retention_s: float) -> dict[str, Any]:
    """How old the oldest row is, in the last samples' store and in the log as it was left."""
    samples, ended_at = kept["samples"], (folder / "log.duckdb").stat().st_mtime
    store_s = horizon_s + _longest_s(samples, _SNAPSHOT_EVENTS) + _SLACK_S
    oldest_s = max((s["store_oldest_s"] for s in samples if s["seconds"] > store_s), default=None)
    with duckdb.connect(str(folder / "log.duckdb"), read_only=True) as log:
        (oldest_ts,) = log.execute("SELECT min(ts) FROM decisions").fetchall()[0]
        lost = log.execute(
            "SELECT count(*) FROM decisions WHERE decision_id NOT IN (SELECT decision_id FROM outcomes)"
        ).fetchall()[0][0]
        orphans = log.execute(
            "SELECT count(*) FROM outcomes WHERE decision_id NOT IN (SELECT decision_id FROM decisions)"
        ).fetchall()[0][0]
    log_s, allowed_s = ended_at - oldest_ts, retention_s * (1 + 1 / 24) + _SLACK_S
    log_acted = samples[-1]["removed_rows"] > 0
    return {
        "store retention": {
            "oldest_event_s": oldest_s,
            "horizon_s": horizon_s,
            "allowed_s": round(store_s, 1),
            "holds": None if oldest_s is None else oldest_s <= store_s,
        },
        "log retention": {
            "oldest_row_s": round(log_s, 1),
            "retention_s": retention_s,
            "allowed_s": allowed_s,
            "removed_rows": samples[-1]["removed_rows"],
            "decisions_without_outcome": lost,
            "outcomes_without_decision": orphans,
            "holds": log_s <= allowed_s and not orphans if log_acted else None,
        },
    }


def _longest_s(samples: list[dict[str, Any]], events: int) -> float:
    """The longest that so many events took to come, by samples; the whole run where it had no more."""
    longest, start = 0.0, 0
    for end in samples:
        while end["last_seq"] - samples[start + 1]["last_seq"] >= events:
            start += 1
        longest = max(longest, end["seconds"] - samples[start]["seconds"])
    return longest


def shown(kept: dict[str, Any]) -> None:
    """Print every promise."""
    if not kept.get("judged"):
        print("too few samples to judge by")
    for name, found in kept.get("judged", {}).items():
        verdict = {True: "PASS", False: "MISSED", None: "CANNOT TELL"}[found["holds"]]
        rest = ", ".join(f"{key} {value}" for key, value in found.items() if key != "holds")
        print(f"{verdict:12} {name}: {rest}")


def plotted(kept: dict[str, Any], path: Path) -> None:
    """A picture of the samples: memory, p99 and CPU a call, what files hold, and how large they are."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    samples = kept["samples"]
    calls = [s["calls"] / 1e3 for s in samples]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    memory, times, files, held = axes.flat
    memory.plot(calls, [s["rss_mb"] for s in samples], label="middle of the seconds before")
    least, most = zip(*(s["rss_mb_least_most"] for s in samples), strict=True)
    memory.fill_between(calls, least, most, alpha=0.2, label="least and most")
    memory.set(title="Resident memory", ylabel="MB", ylim=(0, None))
    times.plot(calls, [s["caller_ms"]["p99"] for s in samples], label="p99 at the caller, ms")
    times.plot(calls, [s["overhead_ms"]["p99"] for s in samples], label="p99 by the service, ms")
    times.plot(calls, [s["cpu_us_per_call"] / 1e3 for s in samples], label="CPU a call, ms")
    times.set(title="Times", yscale="log")
    for name, label in (("store", "router.sqlite"), ("store_wal", "its WAL"), ("log", "log.duckdb")):
        files.plot(calls, [s[f"{name}_mb"] for s in samples], label=label)
    files.set(title="Files", ylabel="MB", xlabel="calls, thousands", ylim=(0, None))
    held.plot(calls, [s["store_events"] / 1e3 for s in samples], label="events in router.sqlite")
    held.plot(calls, [s["log_rows"] / 1e3 for s in samples], label="rows in log.duckdb")
    held.plot(calls, [s["last_seq"] / 1e3 for s in samples], label="events there ever were", linestyle=":")
    held.set(title="Held", ylabel="thousands", xlabel="calls, thousands", ylim=(0, None))
    for axis in axes.flat:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(f"Soak of {samples[-1]['calls']:,} calls, {time.strftime('%Y-%m-%d')}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
