"""Limits kept under real drift: Pointsman over HTTP on two recorded runs, one after the other.

    python -m benchmarks.limits SET_DIR [--runs 2024-07-25,2024-08-11] [--p95-s 2.5] [--min-accuracy 0.78]
                                [--models a,b,…] [--passes 1] [--seeds 3] [--time-scale 0.1] [--json OUT]

The real service as a process, the recorded upstreams as another; every prompt of a run once a pass, in random order,
each answer's recorded quality posted to /reward. Latencies are scaled down, limits with them; figures are scaled back.
Single models, uniform and the oracle are computed from the same records: all calls, no exploration, no delay. The
oracle knows each run's feasible set beforehand and sends everything to its best model by the pool's own objective.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import yaml

from benchmarks.processes import host_facts, started
from evaluation import RecordedSet, grade

TEN = (
    "claude-3-5-sonnet-20240620",
    "claude-3-sonnet-20240229",
    "claude-instant-1.2",
    "gemini-1.0-pro",
    "gemini-1.5-flash-preview-0514",
    "gemini-1.5-pro-preview-0409",
    "gpt-4-0125-preview",
    "gpt-4o-2024-05-13",
    "gpt-4o-2024-05-13-FC",
    "mistral-small-2402",
)
_OBJECTIVE = {"quality": 1.0, "cost": 0.2, "cost_reference_usd": 0.005}


@dataclass(frozen=True, slots=True)
class Truth:
    """What the records say of every model in every run: arrays of shape (n_runs, n_models).

    `latency_s` has every single call, shape (n_runs, n_models, n_prompts).
    """

    latency_s: np.ndarray
    quality: np.ndarray
    cost_usd: np.ndarray
    feasible: np.ndarray
    reward: np.ndarray


def truth_of(recorded: RecordedSet, runs: list[str], models: list[str], options: argparse.Namespace) -> Truth:
    """Means over all prompts of each run."""
    at = np.ix_([recorded.runs.index(r) for r in runs], [recorded.models.index(m) for m in models])
    quality = np.nanmean(recorded.quality[at], axis=2)
    cost = np.nanmean(recorded.cost_usd[at], axis=2)
    latency = recorded.latency_s[at]
    p95 = np.nanquantile(latency, 0.95, axis=2)
    weight = _OBJECTIVE["cost"] / (_OBJECTIVE["quality"] + _OBJECTIVE["cost"])
    credit = 1.0 - np.nanmean(np.minimum(recorded.cost_usd[at] / _OBJECTIVE["cost_reference_usd"], 1.0), axis=2)
    return Truth(
        latency_s=latency,
        quality=quality,
        cost_usd=cost,
        feasible=(p95 <= options.p95_s) & (quality >= options.min_accuracy),
        reward=(1.0 - weight) * quality + weight * credit,
    )


def config(
    recorded: RecordedSet, url: str, models: list[str], *, folder: Path, options: argparse.Namespace, seed: int
) -> str:
    """The service's configuration."""
    rows = []
    for name in models:
        price = recorded.list_price(name)
        if price is None:
            raise SystemExit(f"{name} has no recorded cost, so no price; choose others with --models")
        per_million = {"input_per_million": price.input_per_million, "output_per_million": price.output_per_million}
        rows.append({"name": name, "endpoint": f"{url}/v1", "price": per_million})
    pool = {
        "name": "auto",
        "models": models,
        "objective": _OBJECTIVE,
        "constraints": {
            "p95_latency_s": options.p95_s * options.time_scale,
            "min_accuracy": options.min_accuracy,
            "accuracy_evidence": "feedback",
        },
        "policy": {"kind": options.policy, "seed": seed},
    }
    server = {"port": 0, "data_dir": str(folder / "data")}
    return yaml.safe_dump({"server": server, "models": rows, "pools": [pool]})


async def drive(
    url: str, upstream: str, recorded: RecordedSet, options: argparse.Namespace, seed: int
) -> list[dict[str, Any]]:
    """All calls of all runs, in order; one row each: run, model, quality, cost, latency (scaled back)."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    async with aiohttp.ClientSession() as session:
        for run in options.runs.split(","):
            async with session.post(f"{upstream}/control", json={"run": run}) as response:
                response.raise_for_status()
            order = iter(np.concatenate([rng.permutation(len(recorded.prompts)) for _ in range(options.passes)]))

            async def worker(run: str = run, order: Any = order) -> None:
                for i in order:
                    body = {"model": "auto", "messages": [{"role": "user", "content": recorded.prompts[i]}]}
                    headers = {"x-pointsman-category": recorded.categories[i]}
                    begun = time.perf_counter()
                    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
                        answer = orjson.loads(await response.read())
                        response.raise_for_status()
                    latency_s = (time.perf_counter() - begun) / options.time_scale
                    quality = grade(answer["choices"][0]["message"]["content"])
                    cost = float(response.headers.get("x-pointsman-cost-usd", "nan"))
                    row = {"run": run, "model": answer["model"], "quality": quality, "cost_usd": cost}
                    rows.append({**row, "latency_s": latency_s})
                    feedback = {"decision_id": answer["id"], "quality": quality}
                    async with session.post(f"{url}/reward", json=feedback) as response:
                        response.raise_for_status()

            await asyncio.gather(*(worker() for _ in range(options.concurrency)))
    return rows


def one_seed(recorded: RecordedSet, models: list[str], options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """One whole pass through the real service."""
    arguments = ["-m", "serving", "upstreams", "--outcomes", str(options.set_dir), "--models", ",".join(models)]
    arguments += ["--run", options.runs.split(",")[0], "--time-scale", str(options.time_scale), "--port", "0"]
    with tempfile.TemporaryDirectory() as name, started(arguments) as upstream:
        folder = Path(name)
        (folder / "config.yaml").write_text(
            config(recorded, upstream.url, models, folder=folder, options=options, seed=seed)
        )
        with started(["-m", "serving", "serve", "-c", str(folder / "config.yaml")], log=folder / "log.txt") as service:
            return asyncio.run(drive(service.url, upstream.url, recorded, options, seed))


def table(
    rows_by_seed: list[list[dict[str, Any]]], truth: Truth, models: list[str], runs: list[str]
) -> list[dict[str, Any]]:
    """One line a policy and run, and one over both."""
    lines: list[dict[str, Any]] = []

    def add(policy: str, run: str, *figures: float) -> None:
        quality, cost, p95, violating = figures
        values = {"quality": quality, "cost_per_1000_usd": 1000 * cost, "p95_s": p95, "violating_share": violating}
        lines.append({"policy": policy, "run": run, **{k: round(float(v), 4) for k, v in values.items()}})

    for r, run in enumerate([*runs, "both"]):
        at = slice(None) if run == "both" else slice(r, r + 1)
        per_seed = []
        for rows in rows_by_seed:
            mine = [x for x in rows if run in ("both", x["run"])]
            bad = [not truth.feasible[runs.index(x["run"]), models.index(x["model"])] for x in mine]
            latency = np.quantile([x["latency_s"] for x in mine], 0.95)
            per_seed.append(
                (np.mean([x["quality"] for x in mine]), np.mean([x["cost_usd"] for x in mine]), latency, np.mean(bad))
            )
        add("pointsman", run, *np.mean(per_seed, axis=0))
        best = np.where(truth.feasible, truth.reward, -np.inf)[at].argmax(axis=1)
        each = np.arange(len(runs))[at]
        fixed = {"oracle": best, **{model: np.full(each.size, m) for m, model in enumerate(models)}}
        for policy, choice in fixed.items():
            p95 = np.nanquantile(truth.latency_s[each, choice], 0.95)
            bad = 1 - truth.feasible[each, choice].mean()
            add(policy, run, truth.quality[each, choice].mean(), truth.cost_usd[each, choice].mean(), p95, bad)
        p95 = np.nanquantile(truth.latency_s[at], 0.95)
        add("uniform", run, truth.quality[at].mean(), truth.cost_usd[at].mean(), p95, 1 - truth.feasible[at].mean())
    return lines


def main() -> None:
    """Run, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set_dir", type=Path)
    parser.add_argument("--runs", default="2024-07-25,2024-08-11")
    parser.add_argument("--p95-s", type=float, default=2.5)
    parser.add_argument("--min-accuracy", type=float, default=0.78)
    parser.add_argument("--models", default=",".join(TEN))
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--policy", default="thompson")
    parser.add_argument("--time-scale", type=float, default=0.1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    models, runs = options.models.split(","), options.runs.split(",")
    recorded = RecordedSet.load(options.set_dir)
    truth = truth_of(recorded, runs, models, options)
    rows_by_seed = [one_seed(recorded, models, options, seed) for seed in range(options.seeds)]
    lines = table(rows_by_seed, truth, models, runs)
    print(f"{'run':12}{'policy':34}{'quality':>9}{'USD/1000':>10}{'p95 s':>8}{'to violating':>14}")
    for line in lines:
        print(
            f"{line['run']:12}{line['policy']:34}{line['quality']:9.3f}{line['cost_per_1000_usd']:10.3f}"
            f"{line['p95_s']:8.2f}{line['violating_share']:14.1%}"
        )
    if options.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "json"}
        settings["set_dir"] = options.set_dir.name
        options.json.write_text(
            json.dumps({"host": host_facts(), "options": settings, "lines": lines}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
