"""How the cost of a call grows: CPU of the service against models, pools, keys, open decisions and the log's size.

    python -m benchmarks.growth [--only models,pools,keys,open,log] [--rounds 5] [--calls 1000] [--quick] --json OUT
        [--plot OUT.png]

For each subject the services of all its values stand side by side and are measured in turn, round by round; every call
is rewarded. What they hold was put there beforehand (`growth_data`): nobody waits for a million calls. CPU is that of
the service's process, all threads, the log's flushes included. A ratio is of a value to the subject's first in the same
round; the median of rounds, with the lowest and highest. Figures for 1e7 open decisions and 1e8 rows are projected: the
line of cost against the logarithm of the size, through the median of every size measured. Keys and pools are called in
turn, so that all are in use; with open decisions each reward is for an old one, drawn at random, while there are some
(a size where they run out is left out of the projection).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml

from benchmarks.gateway_arms import config
from benchmarks.gateway_load import KEY
from benchmarks.growth_data import Base, key_name
from benchmarks.processes import Server, host_facts, started
from benchmarks.soak_figures import line

__all__ = ["main"]

_SIZES = {
    "models": (3, 10, 30, 100, 200),
    "pools": (1, 10, 100),
    "keys": (1, 1_000, 100_000),
    "open": (1_000, 10_000, 100_000, 1_000_000),
    "log": (10_000, 100_000, 1_000_000, 10_000_000),
}
_QUICK = {"models": (3, 30), "pools": (1, 10), "keys": (1, 1_000), "open": (1_000, 10_000), "log": (10_000, 100_000)}
_PROJECTED = {"open": 10_000_000, "log": 100_000_000}
_NAMES = {
    "models": "models of the pool",
    "pools": "pools of ten models",
    "keys": "keys",
    "open": "decisions that wait for feedback",
    "log": "rows of log.duckdb",
}
_QUESTION = "Why do trains in the mountains run on rack rails, and since when? " * 3


@dataclass(slots=True)
class Place:
    """A service and how it is called: the pools and keys in turn, and whose feedback is posted."""

    server: Server
    pools: list[str] = field(default_factory=lambda: ["auto"])
    keys: list[str] = field(default_factory=lambda: [KEY])
    old: list[str] = field(default_factory=list)
    number: int = 0


async def load(place: Place, calls: int, concurrency: int) -> None:
    """Calls with a reward each."""
    left = iter(range(calls))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def post(path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            headers["x-pointsman-category"] = "facts"
            async with session.post(place.server.url + path, data=orjson.dumps(body), headers=headers) as response:
                raw = await response.read()
                response.raise_for_status()
            return dict(orjson.loads(raw))

        async def caller() -> None:
            for _ in left:
                place.number = number = place.number + 1
                pool, key = place.pools[number % len(place.pools)], place.keys[number * 7_919 % len(place.keys)]
                body = {"model": pool, "messages": [{"role": "user", "content": _QUESTION}]}
                decision_id = (await post("/v1/chat/completions", body, key))["id"]
                if place.old:
                    decision_id = place.old.pop()
                await post("/reward", {"decision_id": decision_id, "quality": float(number % 10 > 1)}, key)

        await asyncio.gather(*(caller() for _ in range(concurrency)))


def measured(place: Place, calls: int, concurrency: int) -> float:
    """CPU of the service in µs a call."""
    before = place.server.cpu_s()
    asyncio.run(load(place, calls, concurrency))
    return (place.server.cpu_s() - before) / calls * 1e6


class Bench:
    """Starts services for values of a subject, each over a folder of its own."""

    def __init__(self, folder: Path, upstream: str, stack: contextlib.ExitStack, options: argparse.Namespace) -> None:
        self._folder, self._upstream, self._stack, self._options = folder, upstream, stack, options

    def base(self) -> Base:
        """The data of a service that has learned from a few hundred calls."""
        data = self._folder / "base" / "data"
        if not data.exists():
            with contextlib.ExitStack() as stack:
                server = self._serve("base", config(self._upstream, data), stack)
                asyncio.run(load(Place(server), 600, self._options.concurrency))
        return Base(data)

    def place(self, subject: str, size: int) -> Place:
        """The service of one value, started."""
        name = f"{subject}-{size}"
        data = self._folder / name / "data"
        more = {"models": self._models, "pools": self._pools, "keys": self._keys, "open": self._open, "log": self._log}
        return more[subject](name, data, size)

    def _models(self, name: str, data: Path, size: int) -> Place:
        return Place(self._serve(name, config(self._upstream, data, models=size)))

    def _pools(self, name: str, data: Path, size: int) -> Place:
        made = config(self._upstream, data)
        names = ["auto", *(f"auto-{i}" for i in range(1, size))]
        made["pools"] = [made["pools"][0] | {"name": pool} for pool in names]
        return Place(self._serve(name, made), pools=names)

    def _keys(self, name: str, data: Path, size: int) -> Place:
        self.base().with_keys(data, size - 1)
        made = config(self._upstream, data, admin_key="operator-of-the-benchmark")
        made["auth"]["max_keys"] = 100_000
        return Place(self._serve(name, made), keys=[KEY, *(key_name(i) for i in range(size - 1))])

    def _open(self, name: str, data: Path, size: int) -> Place:
        ids = self.base().with_open_decisions(data, size)
        wanted = (self._options.rounds + 1) * self._options.calls
        old = random.Random(size).sample(ids, min(wanted, len(ids)))
        return Place(self._serve(name, config(self._upstream, data)), old=old)

    def _log(self, name: str, data: Path, size: int) -> Place:
        self.base().with_log_rows(data, size)
        return Place(self._serve(name, config(self._upstream, data)))

    def _serve(self, name: str, made: dict[str, Any], stack: contextlib.ExitStack | None = None) -> Server:
        place = self._folder / name
        place.mkdir(parents=True, exist_ok=True)
        path = place / "config.yaml"
        path.write_text(yaml.safe_dump(made))
        command = ["-m", "serving", "serve", "-c", str(path)]
        return (stack or self._stack).enter_context(started(command, log=place / "log.txt"))


def subject_of(name: str, sizes: tuple[int, ...], make: Callable[[str, int], Place], options: Any) -> dict[str, Any]:
    """All rounds of one subject."""
    places: dict[int, Place] = {}
    for size in sizes:
        begun = time.perf_counter()
        places[size] = make(name, size)
        print(f"  {_NAMES[name]} {size:,}: ready after {time.perf_counter() - begun:.1f} s", flush=True)
    for place in places.values():
        asyncio.run(load(place, options.calls // 2, options.concurrency))  # warm up
    rounds: list[dict[int, float]] = []
    for number in range(options.rounds):
        order = sizes[number % len(sizes) :] + sizes[: number % len(sizes)]
        rounds.append({size: measured(places[size], options.calls, options.concurrency) for size in order})
    found: dict[str, Any] = {"points": []}
    for size in sizes:
        cpu, ratios = [r[size] for r in rounds], [r[size] / r[sizes[0]] for r in rounds]
        found["points"].append(
            {
                "size": size,
                "cpu_us_per_call": round(statistics.median(cpu), 1),
                "of_rounds": [round(value, 1) for value in cpu],
                "ratio": round(statistics.median(ratios), 3),
                "ratio_least_most": [round(min(ratios), 3), round(max(ratios), 3)],
                "rss_mb": round(places[size].server.rss_mb(), 1),
                "startup_s": round(places[size].server.startup_s, 2),
            }
        )
        if name == "open" and not places[size].old:
            found["points"][-1]["ran_out"] = True  # the rest of the feedback was for the calls just made, from memory
    if name in _PROJECTED:
        found |= projected(found["points"], _PROJECTED[name])
    return found


def projected(points: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """The cost at a size that was not measured, by a line through those that were; nothing from fewer than three."""
    used = [point for point in points if not point.get("ran_out")]
    if len(used) < 3:
        return {}
    decades, medians = [math.log10(p["size"]) for p in used], [p["cpu_us_per_call"] for p in used]
    slope, error = line(decades, medians)
    cpu = statistics.mean(medians) + slope * (math.log10(size) - statistics.mean(decades))
    found = {"size": size, "cpu_us_per_call": round(cpu, 1), "us_a_decade": round(slope, 1)}
    return {"projected": found | {"standard_error": round(error, 1)}}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every subject after the other; its services end before the next one's begin."""
    result: dict[str, Any] = {
        "host": host_facts(),
        "options": {key: str(value) for key, value in vars(options).items() if key not in ("json", "plot", "folder")},
        "subjects": {},
    }
    sizes = _QUICK if options.quick else _SIZES
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        upstream = stack.enter_context(started(["-m", "benchmarks.servers", "upstream"]))
        for name in options.only.split(","):
            print(_NAMES[name], flush=True)
            with contextlib.ExitStack() as services:
                bench = Bench(folder, upstream.url, services, options)
                chosen = tuple(size for size in sizes[name] if size <= options.most)
                result["subjects"][name] = found = subject_of(name, chosen, bench.place, options)
            _show(found)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _show(found: dict[str, Any]) -> None:
    for point in found["points"]:
        least, most = point["ratio_least_most"]
        ratio = f"{point['ratio']:6.2f} ({least:.2f} to {most:.2f})"
        cpu, memory, start = point["cpu_us_per_call"], point["rss_mb"], point["startup_s"]
        print(f"  {point['size']:>12,} {cpu:8.0f} µs  {ratio}  {memory:7.1f} MB  start {start:.1f} s", flush=True)
    if "projected" in found:
        p = found["projected"]
        print(
            f"  {p['size']:>12,} {p['cpu_us_per_call']:8.0f} µs, projected; a decade {p['us_a_decade']:.0f} µs",
            flush=True,
        )


def plotted(result: dict[str, Any], path: Path) -> None:
    """A curve for each subject: the medians, all rounds as dots, and what is projected."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    subjects = result["subjects"]
    figure, axes = plt.subplots(
        1, len(subjects), figsize=(3.2 * len(subjects), 3.6), layout="constrained", squeeze=False
    )
    for axis, (name, found) in zip(axes.flat, subjects.items(), strict=True):
        points = found["points"]
        axis.plot([p["size"] for p in points], [p["cpu_us_per_call"] / 1e3 for p in points], marker="o")
        for point in points:
            axis.plot(
                [point["size"]] * len(point["of_rounds"]),
                [v / 1e3 for v in point["of_rounds"]],
                ".",
                color="grey",
                ms=4,
            )
        if "projected" in found:
            last, end = points[-1], found["projected"]
            ends = [last["size"], end["size"]], [last["cpu_us_per_call"] / 1e3, end["cpu_us_per_call"] / 1e3]
            axis.plot(*ends, linestyle=":", marker="x")
        axis.set(xscale="log", ylim=(0, None), xlabel=_NAMES[name])
        axis.set_xticks([p["size"] for p in points], [f"{p['size']:,}" for p in points], rotation=30, ha="right")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("CPU a call with its reward, ms")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(_SIZES), help="subjects, with commas between them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1_000, help="a round")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--most", type=int, default=10**9, help="leave out larger sizes")
    parser.add_argument("--quick", action="store_true", help="two sizes each")
    parser.add_argument("--folder", type=Path, help="where the folder for all data is made; the largest take 5 GB")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    result = run(options)
    if options.plot is not None:
        plotted(result, options.plot)


if __name__ == "__main__":
    main()
