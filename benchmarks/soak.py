"""Whether the service stays as it is: many calls with feedback, and its memory, times and files beside them.

    python -m benchmarks.soak [--calls 1000000] [--concurrency 16 | --rate 200] [--sample-every 10000] [--folder DIR]
        [--horizon-s 600] [--retention-s 900] --json OUT [--plot OUT.png]

The service of `benchmarks.gateway` with everything on, an upstream of its own process, and callers in this one
(`soak_calls`: streams, refusals, late and revised feedback). Feedback's horizon and the log's retention are short, so
that both act within the run. Resident memory is looked at every second; a sample has the middle, least and most of
those since the one before. OUT is written with every sample, so a run that is ended early, by Ctrl-C or otherwise, has
what was sampled; by Ctrl-C or SIGTERM it is also judged (`soak_figures`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import sqlite3
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml

from benchmarks.gateway_arms import config
from benchmarks.gateway_load import KEY
from benchmarks.processes import Server, host_facts, started
from benchmarks.soak_calls import Callers
from benchmarks.soak_figures import files_of, judged, plotted, shown

__all__ = ["main"]

_ADMIN = "operator-of-the-soak"
_WATCHED = {
    "pending_events": "pointsman_store_pending_events",
    "lag_events": "pointsman_log_lag_events",
    "running": 'pointsman_gate_calls{state="running"}',
    "waiting": 'pointsman_gate_calls{state="waiting"}',
    "open_files": "process_open_fds",
}
_REMOVED = re.compile(r"^pointsman_log_removed_rows_total\{.*\} (\S+)$", re.MULTILINE)
_TROUBLE = re.compile(r'^pointsman_log_trouble_total\{what="(\w+)"\} (\S+)$', re.MULTILINE)


def service_config(upstream: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """That of the gateway's benchmark, with a horizon and a retention that act within the run."""
    made = config(upstream, folder, admin_key=_ADMIN)
    made["server"]["feedback_horizon_s"] = options.horizon_s
    made["log"] = {"retention_days": options.retention_s / 86_400}
    return made


class Sampler:
    """Looks at the service every second, and takes a sample whenever so many calls are done."""

    def __init__(self, server: Server, callers: Callers, folder: Path, every: int) -> None:
        self._server, self._callers, self._folder, self._every = server, callers, folder, every
        self._rss: list[float] = []
        self._calls, self._answered, self._cpu_s, self._at = 0, 0, server.cpu_s(), time.perf_counter()
        self._begun = self._at
        self.samples: list[dict[str, Any]] = []

    async def run(self, sampled: Callable[[], None]) -> None:
        """Until cancelled; `sampled` is called after each sample."""
        headers = {"Authorization": f"Bearer {_ADMIN}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                await asyncio.sleep(1.0)
                self._rss.append(self._server.rss_mb())
                if self._callers.done - self._calls >= self._every:
                    self.samples.append(await self._sample(session))
                    sampled()

    async def _sample(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        calls, cpu_s, at = self._callers.done, self._server.cpu_s(), time.perf_counter()
        answered = len(self._callers.latencies_s)
        since, self._answered = self._answered, answered
        done = calls - self._calls
        sample: dict[str, Any] = {
            "calls": calls,
            "seconds": round(at - self._begun, 1),
            "calls_per_s": round(done / (at - self._at), 1),
            "cpu_us_per_call": round((cpu_s - self._cpu_s) / done * 1e6, 1),
            "rss_mb": round(statistics.median(self._rss), 2),
            "rss_mb_least_most": [round(min(self._rss), 2), round(max(self._rss), 2)],
            "caller_ms": _quantiles(self._callers.latencies_s[since:answered], 1e3),
            "overhead_ms": _quantiles(self._callers.overheads_ms[since:answered], 1.0),
        }
        self._calls, self._cpu_s, self._at, self._rss = calls, cpu_s, at, []
        sample |= files_of(self._folder) | _store(self._folder / "router.sqlite")
        async with session.get(f"{self._server.url}/metrics") as response:
            text = await response.text()
        for name, metric in _WATCHED.items():
            found = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)
            sample[name] = None if found is None else float(found[1])
        sample["removed_rows"] = sum(float(value) for value in _REMOVED.findall(text))
        sample["log_trouble"] = {what: float(value) for what, value in _TROUBLE.findall(text)}
        sample["log_rows"] = sample["last_seq"] - sample["lag_events"] - sample["removed_rows"]
        return sample


def _quantiles(values: array[float], scale: float) -> dict[str, float]:
    p50, p99 = np.nanquantile(np.asarray(values), (0.5, 0.99)) * scale
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def _store(path: Path) -> dict[str, float]:
    """What is in the operational store, by its ends: it is emptied from the front, so that counting is not needed."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        first, last = store.execute("SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events)").fetchone()
        oldest = store.execute("SELECT ts FROM events WHERE seq = ?", (first,)).fetchone()
        (pages,) = store.execute("PRAGMA freelist_count").fetchone()
        (page_size,) = store.execute("PRAGMA page_size").fetchone()
    return {
        "last_seq": last,
        "store_events": last - first + 1,
        "store_oldest_s": round(time.time() - oldest[0], 1),
        "store_free_mb": round(pages * page_size / 1e6, 2),
    }


async def load(server: Server, folder: Path, options: argparse.Namespace, kept: dict[str, Any]) -> None:
    """The calls, sampled into `kept`, which is written after every sample; ends early where a signal asks."""
    late_s = options.horizon_s / 4
    callers = Callers(server.url, KEY, concurrency=options.concurrency, rate=options.rate, late_s=late_s)
    sampler = Sampler(server, callers, folder, options.sample_every)
    kept["samples"] = sampler.samples

    def sampled() -> None:
        kept["statuses"] = dict(callers.statuses)
        _write(options.json, kept)
        last = sampler.samples[-1]
        print(
            f"{last['calls']:>9,} calls {last['calls_per_s']:6.0f}/s  {last['cpu_us_per_call']:6.0f} µs"
            f"  {last['rss_mb']:6.1f} MB  p99 {last['caller_ms']['p99']:7.1f} ms, by the service"
            f" {last['overhead_ms']['p99']:6.1f}  store {last['store_mb']:6.1f} MB of {last['store_events']:>9,} events"
            f"  log {last['log_mb']:6.1f} MB of {last['log_rows']:>9,.0f} rows",
            flush=True,
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, callers.stop)
    watching = asyncio.create_task(sampler.run(sampled))
    running = asyncio.create_task(callers.run(options.calls))
    await asyncio.wait([watching, running], return_when=asyncio.FIRST_COMPLETED)
    if watching.done():  # it never ends by itself
        callers.stop()
        await running
        watching.result()
    await running
    watching.cancel()
    kept["statuses"], kept["calls"] = dict(callers.statuses), callers.done
    tenths = [np.array_split(np.asarray(values), 10) for values in (callers.latencies_s, callers.overheads_ms)]
    for name, parts, scale in zip(("caller_p99_ms", "overhead_p99_ms"), tenths, (1e3, 1.0), strict=True):
        kept[name] = [round(float(np.nanquantile(part, 0.99)) * scale, 3) for part in parts if len(part)]


def _write(path: Path, kept: dict[str, Any]) -> None:
    """Whole or not at all."""
    samples = ",\n".join(json.dumps(sample) for sample in kept.get("samples", ()))
    others = {name: value for name, value in kept.items() if name != "samples"}
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(others)[:-1] + f', "samples": [\n{samples}]}}\n')
    aside.replace(path)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The run, judged."""
    shown_options = {
        name: str(value) for name, value in vars(options).items() if name not in ("json", "plot", "folder")
    }
    kept: dict[str, Any] = {"host": host_facts(), "options": shown_options}
    upstream_command = ["-m", "benchmarks.soak_upstream"]
    with started(upstream_command, detached=True) as upstream:
        path, data = folder / "config.yaml", folder / "data"
        path.write_text(yaml.safe_dump(service_config(upstream.url, data, options)))
        command = ["-m", "serving", "serve", "-c", str(path)]
        with started(command, log=folder / "log.txt", detached=True) as server:
            (folder / "service.pid").write_text(f"{server.process.pid}\n")
            asyncio.run(load(server, data, options, kept))
    kept["judged"] = judged(kept, data, horizon_s=options.horizon_s, retention_s=options.retention_s)
    _write(options.json, kept)
    return kept


def main() -> None:
    """Measure, print what was promised and kept, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second; default: as many as come back")
    parser.add_argument("--sample-every", type=int, default=10_000)
    parser.add_argument("--horizon-s", type=float, default=600.0)
    parser.add_argument("--retention-s", type=float, default=900.0)
    parser.add_argument(
        "--folder", type=Path, help="for configuration, data and the service's log; default: one that goes"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="a picture of the samples, .png or .svg")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        kept = run(options, folder)
    shown(kept)
    if options.plot is not None:
        plotted(kept, options.plot)


if __name__ == "__main__":
    main()
