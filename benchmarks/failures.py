"""What a caller sees of a provider's bad hour: models that each fail at random, and an outage of all of them.

python -m benchmarks.failures [--calls N] [--share S] [--deadline-s D] [--json OUT]

The upstreams are simulated (`pointsman upstreams`), the service, its stores and HTTP are real. Every failure kind in
turn takes its share of every model's calls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml

from benchmarks.processes import Server, host_facts, started

_KINDS = ("status-500", "status-429", "reset", "malformed", "status-503")
_CONCURRENCY = 16
_BODY = {
    "model": "auto",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "[facts] Which line is steepest?"}],
}


def config(upstreams: dict[str, Any], data_dir: Path, deadline_s: float) -> dict[str, Any]:
    """The trial pool without limits of its own, so that nothing but failures decides; short back-off."""
    models = [{name: value for name, value in model.items() if name != "timeout_s"} for model in upstreams["models"]]
    names = [model["name"] for model in models]
    failures = {"deadline_s": deadline_s, "retries": {"backoff_s": 0.02}}
    server = {"port": 0, "data_dir": str(data_dir)}
    pools = [{"name": "auto", "models": names}]
    return {"server": server, "failures": failures, "models": models, "pools": pools}


async def offered(url: str, calls: int) -> list[tuple[int, float, int]]:
    """(status, seconds, attempts) of each call, 16 at a time; attempts 0 where the answer does not say."""
    seen: list[tuple[int, float, int]] = []
    remaining, body = iter(range(calls)), orjson.dumps(_BODY)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_CONCURRENCY)) as session:

        async def worker() -> None:
            for _ in remaining:
                begun = time.perf_counter()
                async with session.post(
                    f"{url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
                ) as response:
                    await response.read()
                    attempts = int(response.headers.get("x-pointsman-attempts", 0))
                    seen.append((response.status, time.perf_counter() - begun, attempts))

        await asyncio.gather(*(worker() for _ in range(_CONCURRENCY)))
    return seen


async def upstream_calls(url: str) -> int:
    """How many calls the upstreams have received so far."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/control?last=0") as response:
        return sum(model["started"] for model in (await response.json())["models"].values())


async def fail(url: str, kind: str, share: float) -> None:
    """Let a share of every model's calls fail from now on."""
    faults = {"faults": {"*": {"kind": kind, "share": share}}}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/control", json=faults) as response:
        response.raise_for_status()


async def scenario(service: Server, upstreams: Server, kind: str, share: float, calls: int) -> dict[str, Any]:
    """One kind of failure."""
    await fail(upstreams.url, kind, share)
    before = await upstream_calls(upstreams.url)
    seen = await offered(service.url, calls)
    sent = await upstream_calls(upstreams.url) - before
    took = [seconds for _, seconds, _ in seen]
    return {
        "kind": kind,
        "share": share,
        "calls": calls,
        "success": sum(status == 200 for status, _, _ in seen) / calls,
        "statuses": dict(Counter(status for status, _, _ in seen)),
        "attempts_per_call": sent / calls,
        "most_attempts": max(attempts for _, _, attempts in seen),
        "p50_s": statistics.median(took),
        "longest_s": max(took),
    }


async def scenarios(service: Server, upstreams: Server, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every kind at the share asked for, then an outage."""
    each = options.calls // len(_KINDS)
    rows = [await scenario(service, upstreams, kind, options.share, each) for kind in _KINDS]
    rows.append(await scenario(service, upstreams, "status-500", 1.0, options.calls // 10))
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start both programs and measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trial = folder / "trial.yaml"
        arguments = ["-m", "serving", "upstreams", "--port", "0", "--time-scale", "0", "--write-config", str(trial)]
        with started(arguments) as upstreams:
            path = folder / "config.yaml"
            written = yaml.safe_load(trial.read_text())
            path.write_text(yaml.safe_dump(config(written, folder / "data", options.deadline_s)))
            with started(["-m", "serving", "serve", "-c", str(path)], log=folder / "log.txt") as service:
                rows = asyncio.run(scenarios(service, upstreams, options))
    failing = rows[:-1]
    calls = sum(row["calls"] for row in failing)
    together = {
        "calls": calls,
        "success": sum(row["success"] * row["calls"] for row in failing) / calls,
        "attempts_per_call": sum(row["attempts_per_call"] * row["calls"] for row in failing) / calls,
        "longest_s": max(row["longest_s"] for row in failing),
        "deadline_s": options.deadline_s,
    }
    return {"host": host_facts(), "together": together, "scenarios": rows}


def main() -> None:
    """Print a table; write everything to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--deadline-s", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options)
    print("| failure | share | calls | success | attempts a call | most | p50 s | longest s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in result["scenarios"]:
        print(
            f"| {row['kind']} | {row['share']:.0%} | {row['calls']:,} | {row['success']:.2%} |"
            f" {row['attempts_per_call']:.3f} | {row['most_attempts']} | {row['p50_s']:.3f} | {row['longest_s']:.2f} |"
        )
    print(json.dumps(result["together"]))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
