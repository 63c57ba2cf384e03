"""What a call costs: Pointsman with everything on beside bare pass-throughs and its peers, interleaved in one run.

    python -m benchmarks.gateway [--peers litellm,portkey,vllm-router --peers-dir FOLDER] [--upstream-latency-ms 0,50]
        [--concurrency 1,16,64] [--seconds 3] [--rounds 5] [--stream-chunks 50] [--json OUT]

Everything on: a contextual pool of ten models with a p95 and an accuracy limit, keys, budgets, rate limits, metrics,
both stores, durable commits; it has learned from 3,000 rewarded calls before it is measured. CPU is that of the
gateway's processes, all threads, the log's flushes included. *Added* is over the upstream alone in the same round.
The pass-through runs on uvloop, as Pointsman does, and once more on asyncio's own loop, which is what aiohttp runs on
unless told otherwise. A peer that cannot be measured is named with the reason. Only loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gateway_arms import ALONE, BARE, OURS, Arm, arms, config
from benchmarks.gateway_figures import added, medians, ratios, readable, table
from benchmarks.gateway_load import Target, measure
from benchmarks.peers.gateways import GATEWAYS
from benchmarks.processes import Others, host_facts, started

__all__ = ["Target", "cell", "config", "main", "measure", "parsed", "run"]

_STREAM_GAP_MS = 10.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every cell, and what was measured on what."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        manner = ["--latency-ms", "0", "--chunks", str(options.stream_chunks or 2), "--gap-ms", str(_STREAM_GAP_MS)]
        upstream = stack.enter_context(started(["-m", "benchmarks.slow_upstream", *manner]))
        compared, left_out = arms(stack, upstream, folder, options.peers, options.peers_dir)
        cells = []
        for latency_ms in options.upstream_latency_ms:
            _wait_of(upstream.url, latency_ms)
            for concurrency in options.concurrency:
                found = {"upstream_latency_ms": latency_ms, "concurrency": concurrency}
                cells.append(found | cell(compared, concurrency, options))
                _show(cells[-1])
        return {
            "host": host_facts() | {name: version(name) for name in ("aiohttp", "uvloop", "numpy")},
            "options": {
                name: str(value) if isinstance(value, Path) else value
                for name, value in vars(options).items()
                if name not in ("json", "peers_dir")
            }
            | {"stream_gap_ms": _STREAM_GAP_MS},
            "left_out": left_out,
            "arms": {
                arm.name: {
                    "version": arm.version or None,
                    "startup_s": round(arm.server.startup_s, 2),
                    "idle_mb": arm.idle_mb,
                }
                for arm in compared
            },
            "cells": cells,
        }


def cell(compared: Sequence[Arm], concurrency: int, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of calls and of streams at one concurrency; who comes first changes from round to round."""
    parts: dict[str, list[dict[str, dict[str, float]]]] = {"calls": [], "streams": []}
    kinds = (("calls", False), ("streams", True)) if options.stream_chunks else (("calls", False),)
    for arm in compared:
        for _, stream in kinds:
            if arm.streams or not stream:
                _measured(arm, concurrency, options.warm_seconds, stream=stream)
    others = Others()
    for number in range(options.rounds):
        first = number % len(compared)
        for what, stream in kinds:
            taken = {
                arm.name: _measured(arm, concurrency, options.seconds, stream=stream)
                for arm in [*compared[first:], *compared[:first]]
                if arm.streams or not stream
            }
            parts[what].append({arm.name: taken[arm.name] for arm in compared if arm.name in taken})
    found: dict[str, Any] = {"others_cores": others.cores()}
    for what, stream in kinds:
        rounds = added(parts[what], ALONE)
        cpu = "cpu_us_per_chunk" if stream else "cpu_us_per_call"
        found[what] = {
            "medians": medians(rounds),
            "cpu_over_pass_through": ratios(rounds, cpu, BARE),
            "cpu_over_pointsman": ratios(rounds, cpu, OURS),
            "rounds": rounds,
        }
    return found


def _measured(arm: Arm, concurrency: int, seconds: float, *, stream: bool) -> dict[str, float]:
    return measure(arm.server, arm.target, concurrency=concurrency, seconds=seconds, stream=stream, tolerant=True)


def _wait_of(upstream: str, latency_ms: float) -> None:
    request = urllib.request.Request(f"{upstream}/latency/{latency_ms}", data=b"{}", method="POST")  # noqa: S310 - ours
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
        response.read()


def _show(found: dict[str, Any]) -> None:
    for what in ("calls", "streams"):
        if what in found:
            print("\n".join(table(found, what)))
            for name, over in found[what]["cpu_over_pointsman"].items():
                if name not in GATEWAYS:
                    continue
                print(
                    f"{name}: {over['median']:.2f} ({over['lowest']:.2f} to {over['highest']:.2f}) of pointsman's CPU"
                )
            print(flush=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; lists are separated by commas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=_names, default=[], help=f"of {','.join(GATEWAYS)}")
    parser.add_argument("--peers-dir", type=Path, help="folder of their environments, outside the checkout")
    parser.add_argument("--upstream-latency-ms", type=_numbers(float, 0.0), default=[0.0, 50.0])
    parser.add_argument("--concurrency", type=_numbers(int, 1), default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row")
    parser.add_argument("--warm-seconds", type=float, default=1.0, help="of each arm before each cell")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream-chunks", type=int, default=50, help="of each stream; 0: no streams")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.peers and options.peers_dir is None:
        parser.error("--peers needs --peers-dir, a folder for their environments")
    if options.stream_chunks == 1 or options.stream_chunks < 0:
        parser.error("--stream-chunks is 0, or two at least")
    return options


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in GATEWAYS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(GATEWAYS)}")
    return list(dict.fromkeys(names))


def _numbers(kind: type[int | float], least: float) -> Any:
    def listed(text: str) -> list[float]:
        values = [kind(each) for each in text.split(",") if each.strip()]
        if not values or min(values) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: numbers of {least:g} at least, separated by commas")
        return values

    return listed


def main() -> None:
    """Measure, print tables, write JSON."""
    options = parsed(sys.argv[1:])
    result = run(options)
    for name, facts in result["arms"].items():
        print(f"{name} {facts['version'] or ''}: start-up {facts['startup_s']:.1f} s, idle {facts['idle_mb']:.0f} MB")
    for name, reason in result["left_out"].items():
        print(f"{name}: LEFT OUT: {reason}")
    if options.json:
        options.json.write_text(readable(result) + "\n")


if __name__ == "__main__":
    main()
