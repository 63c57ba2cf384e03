"""What a paying caller notices when twice as many calls come as the service can do.

    python -m benchmarks.overload [--seconds 20] [--rounds 3] [--open] [--set key=value …] [--json OUT]

In each round the service's capacity is found anew (so many calls a second does one with an open gate complete for 128
callers that never pause), then half of it is offered, then twice: a quarter of that by the paid tier, the rest by the
free one. Upstream, service and each tier's callers are processes of their own (`slow_upstream`, `open_loop`); one more
asks for /healthz fifty times a second, and one sleeps and tells how late it is woken, which is the machine's share.
A step begins when others leave the machine alone, and is taken again if they did not meanwhile; both is told. `--open`
offers the same to the service with the open gate, `--set` are settings of `overload:`, as in `--set target_lag_ms=1`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gateway import config
from benchmarks.open_loop import quantiles_ms
from benchmarks.processes import Others, Server, host_facts, started

_KEYS = {"paid": "key-of-a-paid-caller", "free": "key-of-a-free-caller"}
_START_S = 1.5  # for the processes to be ready
_SETTLE_S = 2.0
_CALLERS = 128
_SLEEPER = """
import sys, time
late, end = [], time.time() + float(sys.argv[1])
while time.time() < end:
    begun = time.perf_counter(); time.sleep(0.002); late.append(time.perf_counter() - begun - 0.002)
print(late)
"""


def service_config(upstream: str, folder: Path, overload: dict[str, Any]) -> dict[str, Any]:
    """That of the gateway's benchmark, everything on, with two tiers."""
    made = config(upstream, folder)
    made["auth"]["keys"] = [{"key": key, "user": f"{tier}-user", "tier": tier} for tier, key in _KEYS.items()]
    made["tiers"] = [{"name": "free", "priority": 0}, {"name": "paid", "priority": 10}]
    made["overload"] = overload
    return made


def open_loop(url: str, *arguments: object) -> subprocess.Popen[str]:
    """The callers of one tier, started."""
    command = [sys.executable, "-m", "benchmarks.open_loop", url, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def capacity(server: Server, seconds: float) -> float:
    """Calls a second that the service completes for callers who never pause."""
    process = open_loop(server.url, "--key", _KEYS["paid"], "--connections", _CALLERS, "--seconds", seconds + _SETTLE_S)
    return float(json.loads(process.communicate()[0])["calls_per_s"])


def offered(server: Server, rates: dict[str, float], seconds: float, seed: int) -> dict[str, Any]:
    """Both tiers at their rates; what became of them, and what it took."""
    loop_ms = fixed_loop_ms()
    at, seconds = time.time() + _START_S, seconds + _SETTLE_S
    common = ("--at", at, "--seconds", seconds, "--settle", _SETTLE_S)
    callers = {
        tier: open_loop(server.url, "--key", _KEYS[tier], "--rate", rate, "--seed", seed + number, *common)
        for number, (tier, rate) in enumerate(rates.items())
    }
    callers["probe"] = open_loop(server.url, "--rate", 50, *common)
    time.sleep(max(0.0, at + _SETTLE_S - time.time()))
    sleeper = subprocess.Popen(
        [sys.executable, "-c", _SLEEPER, str(seconds - _SETTLE_S - 0.5)], stdout=subprocess.PIPE, text=True
    )
    cpu_s, begun, others = server.cpu_s(), time.perf_counter(), Others()
    time.sleep(max(0.0, at + seconds - time.time()))
    cpu = (server.cpu_s() - cpu_s) / (time.perf_counter() - begun)
    other_cores = others.cores()
    found = {name: json.loads(process.communicate()[0]) for name, process in callers.items()}
    result: dict[str, Any] = {"rates": {tier: round(rate, 1) for tier, rate in rates.items()}, "cpu": round(cpu, 3)}
    result |= {"others_cores": other_cores, "loop_ms": loop_ms}
    result["woken_late_ms"] = quantiles_ms(json.loads(sleeper.communicate()[0]))
    probe = found.pop("probe")
    result["healthz_ms"] = quantiles_ms([value / 1e3 for value in probe["added_each_ms"]])
    for tier in found.values():
        del tier["added_each_ms"], tier["onset"]["added_each_ms"]
    return result | found


def fixed_loop_ms() -> float:
    """CPU time of a million additions: says how fast the processor is just now."""
    begun, total = time.process_time(), 0
    for i in range(1_000_000):
        total += i
    return round((time.process_time() - begun) * 1e3, 1)


def wait_for_quiet(cores: float, longest_s: float) -> None:
    """Until others used no more than that for a second, or for so long."""
    ends = time.perf_counter() + longest_s
    while time.perf_counter() < ends:
        others = Others()
        time.sleep(1.0)
        if others.cores() <= cores:
            return


def judged(steps: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the target is about: medians over the steps, the lowest and highest beside them."""
    if not all(steps.values()):
        return {}

    def over(step: str, *path: str) -> dict[str, float]:
        values: list[Any] = steps[step]
        for name in path:
            values = [value[name] for value in values if value is not None]
        return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}

    found: dict[str, Any] = {
        "steps": {step: len(taken) for step, taken in steps.items()},
        "paid_ok_share": over("twice", "paid", "ok_share"),
        "free_shed_share": over("twice", "free", "shed_share"),
    }
    for name in ("p50", "p95", "p99"):
        at_half, at_twice = (over(step, "paid", "added_ms", name) for step in ("half", "twice"))
        found[f"added_{name}_ms"] = {"half, paid": at_half, "twice, paid": at_twice}
        found[f"added_{name}_ratio"] = round(at_twice["median"] / at_half["median"], 2)
    at_half, at_twice = over("half", "paid", "overhead_ms", "p99"), over("twice", "paid", "overhead_ms", "p99")
    found["overhead_p99_ms"] = {"half, paid": at_half, "twice, paid": at_twice}
    for step in ("half, open", "twice, open"):
        if step in steps:
            found[step] = {"paid_ok_share": over(step, "paid", "ok_share")}
            found[step]["added_p99_ms"] = over(step, "paid", "added_ms", "p99")
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; a step while others kept the machine busy is taken again, `--tries` times at most."""
    settings: dict[str, Any] = dict(text.split("=", 1) for text in options.set)
    settings |= {key: yaml.safe_load(value) for key, value in settings.items() if value[:1].isdigit()}
    plan = [("half", "tested", 0.5), ("twice", "tested", 2.0)]
    plan += [("half, open", "open", 0.5), ("twice, open", "open", 2.0)] if options.open else []
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in plan}
    capacities: list[float] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(started(["-m", "benchmarks.slow_upstream"]))
        servers = {}
        for name, overload in (("open", {"adaptive": "off"}), ("tested", settings)):
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(service_config(upstream.url, folder / name, overload)))
            servers[name] = stack.enter_context(
                started(["-m", "serving", "serve", "-c", str(path)], log=folder / f"{name}.txt")
            )
        for server in servers.values():
            capacity(server, 3.0)  # warm up, and learn
        for number in range(options.rounds):
            for _ in range(options.tries):
                wait_for_quiet(options.quiet, options.wait)
                others = Others()
                can = options.capacity or capacity(servers["open"], options.capacity_seconds)
                if options.capacity or others.cores() <= options.quiet:
                    break
            capacities.append(round(can, 1))
            for name, which, factor in plan:
                can = statistics.median(capacities)
                rates = {"paid": options.paid * factor * can, "free": (1 - options.paid) * factor * can}
                for attempt in range(options.tries):
                    wait_for_quiet(options.quiet, options.wait)
                    step = offered(servers[which], rates, options.seconds, seed=100 * number + 10 * attempt)
                    step |= {"round": number, "capacity": can, "quiet": step["others_cores"] <= options.quiet}
                    steps[name].append(step)
                    _show(name, step)
                    if step["quiet"]:
                        break
    quiet = {name: [step for step in taken if step["quiet"]] for name, taken in steps.items()}
    return {
        "host": host_facts(),
        "options": {key: value for key, value in vars(options).items() if key != "json"},
        "capacities": capacities,
        "judged": {"quiet steps": judged(quiet), "all steps": judged(steps)},
        "steps": steps,
    }


def _show(name: str, step: dict[str, Any]) -> None:
    print(
        f"round {step['round']}, {name} of {step['capacity']:.0f}/s: CPU {step['cpu']:.2f}, others "
        f"{step['others_cores']:.2f}, a fixed loop {step['loop_ms']:.0f} ms, /healthz {_text(step['healthz_ms'])}, "
        f"woken late {_text(step['woken_late_ms'])}"
    )
    for tier in ("paid", "free"):
        found = step[tier]
        print(
            f"    {tier}: {found['calls']} calls, ok {found['ok_share']:.2%}, shed {found['shed_share']:.2%}, added "
            f"{_text(found['added_ms'])}, since due {_text(found['added_since_due_ms'])}, by the service "
            f"{_text(found['overhead_ms'])}, sent late {_text(found['sent_late_ms'])}, "
            f"{found['statuses']}, at first "
            f"{_text(found['onset']['added_ms'])} ok {found['onset']['ok_share']:.1%}",
            flush=True,
        )


def _text(found: dict[str, float] | None) -> str:
    return "-" if found is None else "/".join(f"{found[name]:.1f}" for name in ("p50", "p95", "p99"))


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each step, beside three to settle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paid", type=float, default=0.25, help="share of the offered calls")
    parser.add_argument("--capacity", type=float, default=0.0, help="calls a second; default: found in each round")
    parser.add_argument("--capacity-seconds", type=float, default=5.0)
    parser.add_argument("--quiet", type=float, default=0.3, help="cores that others may use in a step that counts")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for that before each step")
    parser.add_argument("--tries", type=int, default=3, help="at a quiet step")
    parser.add_argument("--open", action="store_true", help="measure the service with the open gate, too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options)
    print(json.dumps(result["judged"], indent=1))
    if options.json:
        steps = ",\n".join(f"{json.dumps(name)}: {json.dumps(taken)}" for name, taken in result.pop("steps").items())
        options.json.write_text(json.dumps(result)[:-1] + f', "steps": {{\n{steps}}}}}\n')


if __name__ == "__main__":
    main()
