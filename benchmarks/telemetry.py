"""What traces and log lines cost a call: the service with each of them on beside one without, interleaved in one run.

    python -m benchmarks.telemetry [--rounds 7] [--calls 1500] [--concurrency 8] [--before CHECKOUT] [--json OUT]

CPU of the service's process alone, all its threads, sending the traces included. Ratios are of neighbours: of each
round, to the service without, and their median. `--before` adds the service of another checkout of this project.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gateway import config, measure
from benchmarks.processes import Server, host_facts, started

__all__ = ["main"]

_OFF = "neither"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and of each way the median CPU a call and the median ratio."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(started(["-m", "benchmarks.servers", "upstream"]))
        receiver = stack.enter_context(started(["-m", "benchmarks.servers", "upstream"]))
        ways: dict[str, dict[str, Any]] = {
            _OFF: {},
            "traces of all calls": {"tracing": {"endpoint": receiver.url}},
            "traces of one in ten": {"tracing": {"endpoint": receiver.url, "sample_ratio": 0.1}},
            "a JSON line for each call": {"logging": {"format": "json", "access": True}},
        }

        def serve(name: str, more: dict[str, Any], checkout: Path | None = None) -> Server:
            place = folder / name.replace(" ", "-")
            place.mkdir()
            path = place / "config.yaml"
            path.write_text(yaml.safe_dump(config(upstream.url, place / "data") | more))
            arguments = ["-m", "serving", "serve", "-c", str(path)]
            return stack.enter_context(started(arguments, log=place / "log.txt", folder=checkout))

        servers = {name: serve(name, more) for name, more in ways.items()}
        if options.before is not None:
            servers["before"] = serve("before", {}, options.before)
        for server in servers.values():
            measure(server, "auto", options.calls, options.concurrency, reward=True)  # warm up, and learn
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            order = list(servers)[number % len(servers) :] + list(servers)[: number % len(servers)]
            measured = {
                name: measure(servers[name], "auto", options.calls, options.concurrency)["cpu_us_per_call"]
                for name in order
            }
            rounds.append(measured)
    return {
        "host": host_facts(),
        "options": {name: str(value) for name, value in vars(options).items() if name not in ("json", "before")},
        "cpu_us_per_call": {name: statistics.median(r[name] for r in rounds) for name in servers},
        "ratio": {name: statistics.median(r[name] / r[_OFF] for r in rounds) for name in servers},
        "rounds": rounds,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1_500)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options)
    print(f"{'':28}{'CPU µs/call':>12}{'ratio':>8}{'of rounds':>18}")
    for name, cpu in result["cpu_us_per_call"].items():
        each = [measured[name] / measured[_OFF] for measured in result["rounds"]]
        print(f"{name:28}{cpu:12.0f}{result['ratio'][name]:8.3f}{min(each):10.3f} to {max(each):.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
