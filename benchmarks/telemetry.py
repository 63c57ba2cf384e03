"""What operating costs a call: metrics, the dashboard, traces and log lines, in whole services, interleaved in one run.

    python -m benchmarks.telemetry [--rounds 7] [--calls 1500] [--concurrency 8] [--before CHECKOUT] [--json OUT]

CPU of the service's process alone, all its threads, sending the traces included. Ratios are of neighbours: of each
round, to the service that counts nothing (`benchmarks.uncounted`), and their median. *Watched* is scraped every five
seconds and feeds an open dashboard, as traffic goes on. `--before` adds the service of another checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks.gateway import Target, config, measure
from benchmarks.processes import Server, host_facts, started

__all__ = ["main"]

_OFF = "counts nothing"
_ADMIN = "operator-of-the-benchmark"
_SCRAPED_EVERY_S = 5.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and of each way the median CPU a call and the median ratio."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(started(["-m", "benchmarks.servers", "upstream"]))
        receiver = stack.enter_context(started(["-m", "benchmarks.servers", "upstream"]))
        traced = {"tracing": {"endpoint": receiver.url}}
        ways: dict[str, tuple[dict[str, Any], bool]] = {
            _OFF: ({}, False),
            "counts": ({}, False),
            "counts, watched": ({}, True),
            "counts, watched, traces of all": (traced, True),
            "counts, traces of one in ten": ({"tracing": {"endpoint": receiver.url, "sample_ratio": 0.1}}, False),
            "counts, a JSON line each": ({"logging": {"format": "json", "access": True}}, False),
        }

        def serve(name: str, more: dict[str, Any], *, watched: bool = False, checkout: Path | None = None) -> Server:
            place = folder / name.replace(" ", "-")
            place.mkdir()
            path = place / "config.yaml"
            path.write_text(yaml.safe_dump(config(upstream.url, place / "data", admin_key=_ADMIN) | more))
            module = "benchmarks.uncounted" if name == _OFF else "serving"
            server = stack.enter_context(
                started(["-m", module, "serve", "-c", str(path)], log=place / "log.txt", folder=checkout)
            )
            if watched:
                stack.enter_context(started(["-m", "benchmarks.telemetry", "--watch", server.url]))
            return server

        servers = {name: serve(name, more, watched=watched) for name, (more, watched) in ways.items()}
        if options.before is not None:
            servers["before"] = serve("before", {}, checkout=options.before)
        for server in servers.values():
            learned = Target(server.url, "auto", reward=True)
            measure(server, learned, calls=options.calls, concurrency=options.concurrency)  # warm up, and learn
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            order = list(servers)[number % len(servers) :] + list(servers)[: number % len(servers)]
            measured = {
                name: measure(
                    servers[name],
                    Target(servers[name].url, "auto"),
                    calls=options.calls,
                    concurrency=options.concurrency,
                )["cpu_us_per_call"]
                for name in order
            }
            rounds.append(measured)
    return {
        "host": host_facts(),
        "options": {
            name: str(value) for name, value in vars(options).items() if name not in ("json", "before", "watch")
        },
        "cpu_us_per_call": {name: statistics.median(r[name] for r in rounds) for name in servers},
        "ratio": {name: statistics.median(r[name] / r[_OFF] for r in rounds) for name in servers},
        "rounds": rounds,
    }


async def watch(url: str) -> None:
    """Look at a service as operators do until killed: a dashboard that is open, and Prometheus."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {_ADMIN}"}) as session:

        async def page() -> None:
            async with session.get(f"{url}/admin/live", timeout=aiohttp.ClientTimeout()) as feed:
                feed.raise_for_status()
                async for _ in feed.content.iter_any():
                    pass

        reading = asyncio.create_task(page())
        print(f"watching {url}", flush=True)
        while not reading.done():
            async with session.get(f"{url}/metrics") as scraped:
                scraped.raise_for_status()
                await scraped.read()
            await asyncio.wait([reading], timeout=_SCRAPED_EVERY_S)
        reading.result()


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1_500)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        asyncio.run(watch(options.watch))
        return
    result = run(options)
    print(f"{'':34}{'CPU µs/call':>12}{'ratio':>8}{'of rounds':>18}")
    for name, cpu in result["cpu_us_per_call"].items():
        each = [measured[name] / measured[_OFF] for measured in result["rounds"]]
        print(f"{name:34}{cpu:12.0f}{result['ratio'][name]:8.3f}{min(each):10.3f} to {max(each):.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
