"""What a call costs: Pointsman with everything on beside a bare aiohttp pass-through, interleaved in one run.

    python -m benchmarks.gateway [--rounds 5] [--calls 4000] [--concurrency 16] [--memory-calls 100000] [--json OUT]

Everything on: a contextual pool of ten models with a p95 and an accuracy limit, keys, metrics, both stores, durable
commits; it has learned from 3,000 rewarded calls before it is measured. CPU is that of the gateway process alone, all
its threads, the log's flushes included. The pass-through runs on uvloop, as Pointsman does, and once more on asyncio's
own loop, which is what aiohttp runs on unless told otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml

from benchmarks.processes import Server, host_facts, started

KEY = "benchmark-key"
_LEARNED = 3_000
_BODY = {
    "messages": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why do trains in the mountains run on rack rails, and since when? " * 3},
    ]
}
_HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "x-pointsman-category": "facts"}


def config(upstream: str, data_dir: Path, models: int = 10, admin_key: str | None = None) -> dict[str, Any]:
    """Pointsman's configuration for the benchmark."""
    names = [f"model-{i}" for i in range(models)]
    price = [{"input_per_million": 0.1 * (i + 1), "output_per_million": 0.4 * (i + 1)} for i in range(models)]
    operator = {} if admin_key is None else {"admin_key": admin_key}
    return {
        "server": {"port": 0, "data_dir": str(data_dir)},
        "auth": operator | {"keys": [{"key": KEY, "user": "bench", "team": "bench", "tier": "paid"}]},
        "models": [{"name": n, "endpoint": f"{upstream}/v1", "price": p} for n, p in zip(names, price, strict=True)],
        "pools": [
            {
                "name": "auto",
                "models": names,
                "objective": {"quality": 1.0, "cost": 0.2, "latency": 0.1},
                "constraints": {"p95_latency_s": 2.0, "min_accuracy": 0.7, "accuracy_evidence": "feedback"},
            }
        ],
    }


async def load(url: str, model: str, calls: int, concurrency: int, *, reward: bool) -> list[float]:
    """Latencies in seconds of `calls` calls, `concurrency` at a time; with `reward`, feedback follows each."""
    body = orjson.dumps({"model": model, **_BODY})
    latencies: list[float] = []
    remaining = iter(range(calls))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency), headers=_HEADERS) as session:

        async def worker() -> None:
            for i in remaining:
                begun = time.perf_counter()
                async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                    raw = await response.read()
                    response.raise_for_status()
                latencies.append(time.perf_counter() - begun)
                if reward:
                    item = {"decision_id": orjson.loads(raw)["id"], "quality": float(i % 10 > 1)}
                    async with session.post(f"{url}/reward", data=orjson.dumps(item)) as response:
                        await response.read()
                        response.raise_for_status()

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return latencies


def measure(server: Server, model: str, calls: int, concurrency: int, *, reward: bool = False) -> dict[str, float]:
    """One round against one server: CPU per call of its process, calls a second, latency quantiles."""
    cpu, begun = server.cpu_s(), time.perf_counter()
    latencies = asyncio.run(load(server.url, model, calls, concurrency, reward=reward))
    wall = time.perf_counter() - begun
    quantiles = statistics.quantiles(latencies, n=100)
    return {
        "cpu_us_per_call": (server.cpu_s() - cpu) / calls * 1e6,
        "calls_per_s": calls / wall,
        "p50_ms": quantiles[49] * 1e3,
        "p95_ms": quantiles[94] * 1e3,
        "p99_ms": quantiles[98] * 1e3,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; the medians over them, and memory and start-up."""
    with tempfile.TemporaryDirectory() as folder, started(["-m", "benchmarks.servers", "upstream"]) as upstream:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config(upstream.url, Path(folder) / "data")))
        with (
            started(["-m", "benchmarks.servers", "passthrough", "--target", upstream.url]) as bare,
            started(
                ["-m", "benchmarks.servers", "passthrough", "--target", upstream.url, "--loop", "asyncio"]
            ) as plain,
            started(["-m", "serving", "serve", "-c", str(path)], log=Path(folder) / "log.txt") as pointsman,
        ):
            arms = {
                "pass-through, uvloop": (bare, "m", False),
                "pass-through, asyncio": (plain, "m", False),
                "pointsman": (pointsman, "auto", False),
                "pointsman, pinned": (pointsman, "model-0", False),
                "pointsman, with a reward each": (pointsman, "auto", True),
            }
            idle_mb = pointsman.rss_mb()
            measure(pointsman, "auto", _LEARNED, options.concurrency, reward=True)
            for server, model, reward in arms.values():
                measure(server, model, options.calls // 4, options.concurrency, reward=reward)  # warm up
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
            for _ in range(options.rounds):
                for name, (server, model, reward) in arms.items():
                    rounds[name].append(measure(server, model, options.calls, options.concurrency, reward=reward))
            memory = [{"calls": 0, "rss_mb": idle_mb}]
            done = _LEARNED + 3 * (options.rounds * options.calls + options.calls // 4)
            memory.append({"calls": done, "rss_mb": pointsman.rss_mb()})
            while done < options.memory_calls:
                measure(pointsman, "auto", 10_000, options.concurrency)
                done += 10_000
                memory.append({"calls": done, "rss_mb": pointsman.rss_mb()})
            startup_s = pointsman.startup_s
    medians = {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in rounds.items()
    }
    ratios = {
        name: [
            ours["cpu_us_per_call"] / theirs["cpu_us_per_call"]
            for ours, theirs in zip(rounds["pointsman"], rounds[name], strict=True)
        ]
        for name in ("pass-through, uvloop", "pass-through, asyncio")
    }
    return {
        "host": host_facts(),
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        "medians": medians,
        "cpu_ratio_to": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in ratios.items()
        },
        "startup_s": startup_s,
        "memory": memory,
        "rounds": rounds,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--memory-calls", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options)
    print(f"{'':32}{'CPU µs/call':>12}{'calls/s':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    for name, row in result["medians"].items():
        print(
            f"{name:32}{row['cpu_us_per_call']:12.0f}{row['calls_per_s']:10.0f}"
            f"{row['p50_ms']:9.2f}{row['p95_ms']:9.2f}{row['p99_ms']:9.2f}"
        )
    for name, ratio in result["cpu_ratio_to"].items():
        print(f"CPU, pointsman / {name}: median {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"start-up: {result['startup_s']:.2f} s until it listens")
    for point in result["memory"]:
        print(f"memory after {point['calls']:>7,} calls: {point['rss_mb']:.0f} MB")
    if options.json:
        options.json.write_text(json.dumps({**result, "options": {**result["options"]}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
