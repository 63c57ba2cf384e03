"""The policy on real outcomes, beside its peers and what could be had with hindsight.

    python -m benchmarks.policy SET_DIR --scenario stationary|budget|drift|constrained|onboarding|calibration
        [--policies a,b,…] [--features category|text|both] [--seeds 5] [--peer-seeds 5] [--models a,b,…]
        [--budgets 1e-4,…] [--newcomers a,b] [--jobs 2] [--json OUT] [--plots DIR] …

SET_DIR holds `prompts.parquet` and `outcomes.parquet` in canonical form (`evaluation.recorded`). A learning pool of the
library's own code meets the recorded prompts in random order, one order a seed, feedback at once; peers see the same
vectors. Prints a table, writes JSON and plots; benchmarks/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers import PEERS, PeerNotInstalled, make
from benchmarks.policy_jobs import Job, Options, Result, aggregated, work_through
from benchmarks.policy_limits import calibration_jobs, calibration_run, constrained_jobs, constrained_run
from benchmarks.policy_onboarding import onboarding_jobs, onboarding_run
from benchmarks.policy_players import OWN
from benchmarks.policy_scenarios import (
    budget_jobs,
    budget_run,
    cheaper_rows,
    drift_jobs,
    drift_run,
    stationary_jobs,
    stationary_run,
)
from benchmarks.processes import host_facts

__all__ = ["SCENARIOS", "main", "measured"]

SCENARIOS: Final[dict[str, tuple[Callable[[Options], list[Job]], Callable[[Options, Job], list[Result]]]]] = {
    "stationary": (stationary_jobs, stationary_run),
    "budget": (budget_jobs, budget_run),
    "drift": (drift_jobs, drift_run),
    "constrained": (constrained_jobs, constrained_run),
    "onboarding": (onboarding_jobs, onboarding_run),
    "calibration": (calibration_jobs, calibration_run),
}
_NO_CONTEXT: Final = ("thompson_context_free", "best_feasible", "epsilon_greedy", "litellm_adaptive")
_ALWAYS: Final = (
    "quality",
    "cost_usd_per_call",
    "budget_utilisation",
    "p95_latency_s",
    "violating_share",
    "regret",
    "decisions_per_s",
)
_HEAD: Final = ("set", "scenario", "setting", "policy")
_SHORT: Final = {
    "cost_usd_per_call": "USD/call",
    "budget_utilisation": "used",
    "budget_utilisation_max": "used, max",
    "worst_window_utilisation": "window",
    "worst_window_utilisation_max": "window, max",
    "p95_latency_s": "p95 s",
    "violating_share": "violating",
    "decisions_per_s": "1/s",
}
_SWEEP: Final = "sweep"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write JSON and plots."""
    options, asked = parsed(arguments)
    begun = time.perf_counter()
    rows, results = measured(options, asked.jobs)
    print_table([row for row in rows if not row["setting"].startswith(_SWEEP)])
    print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    if asked.json:
        command = ["python", "-m", "benchmarks.policy", Path(options.folder).name, *_without_paths(arguments)]
        made = {"command": " ".join(command), **host_facts()}
        report = ",\n".join(json.dumps(row | made, allow_nan=False) for row in rows)
        asked.json.write_text(f"[\n{report}\n]\n")
    if asked.plots:
        from benchmarks.policy_plots import write_plots

        for path in write_plots(asked.plots, rows, results):
            print(path)


def measured(options: Options, processes: int = 1) -> tuple[list[dict[str, Any]], list[Result]]:
    """The scenario's rows, as they stand in the JSON, and the results of single seeds they were made of."""
    jobs_of_scenario, run = SCENARIOS[options.scenario]
    results = work_through(run, options, jobs_of_scenario(options), processes)
    if options.scenario == "budget":
        results += cheaper_rows(options, results)
    head = {"set": Path(options.folder).name, "scenario": options.scenario}
    order = dict.fromkeys(("setting", "policy", "seeds", *_ALWAYS))
    return [{**head, **order, **row} for row in aggregated(results)], results


def parsed(arguments: Sequence[str] | None) -> tuple[Options, argparse.Namespace]:
    """The command line; peers that are not installed are left out of the default, and said so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set_dir", type=Path)
    parser.add_argument("--scenario", choices=tuple(SCENARIOS), required=True)
    parser.add_argument("--policies", help=f"of {', '.join((*OWN, *PEERS))}; `own` and `peers` stand for theirs")
    parser.add_argument("--features", choices=("category", "text", "both"), default="category")
    parser.add_argument("--clusters", type=int, default=24, help="of the text, where there is no category")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer-seeds", type=int, help="where peers are slow; default: --seeds")
    parser.add_argument("--models", default="", help="default: all that the scenario can use")
    parser.add_argument("--budgets", default="", help="USD a request")
    parser.add_argument("--newcomers", default="", help="onboarding: the models that join")
    parser.add_argument("--floor", type=float, help="exploration floor")
    parser.add_argument("--half-life", type=float, help="in requests")
    parser.add_argument("--effective-samples", type=float, help="strength of a warm start")
    parser.add_argument("--p95-s", type=float, default=2.5, help="constrained: the latency limit")
    parser.add_argument("--min-accuracy", type=float, default=0.78, help="constrained: the accuracy limit")
    parser.add_argument("--passes", type=int, default=1, help="constrained: over each run")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for PNG files; needs matplotlib, of the extra bench")
    asked = parser.parse_args(arguments)
    return (
        Options(
            folder=str(asked.set_dir),
            scenario=asked.scenario,
            policies=_policies(asked.policies or "own,peers", asked.features, explicit=asked.policies is not None),
            seeds=asked.seeds,
            peer_seeds=asked.peer_seeds or asked.seeds,
            models=_names(asked.models),
            budgets=tuple(map(float, _names(asked.budgets))),
            newcomers=_names(asked.newcomers),
            clusters=asked.clusters,
            exploration_floor=asked.floor,
            half_life=asked.half_life,
            effective_samples=asked.effective_samples,
            p95_s=asked.p95_s,
            min_accuracy=asked.min_accuracy,
            passes=asked.passes,
        ),
        asked,
    )


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Settings as blocks, policies as lines; the columns are the figures that any line of a block has."""
    for setting in dict.fromkeys(row["setting"] for row in rows):
        block = [row for row in rows if row["setting"] == setting]
        names = [name for name in dict.fromkeys(name for row in block for name in row) if name not in _HEAD]
        names = [n for n in names if not n.endswith("_se") and any(row.get(n) is not None for row in block)]
        table = [["policy", *(_SHORT.get(name, name) for name in names)]]
        table += [[row["policy"], *(_cell(row.get(n), row.get(f"{n}_se")) for n in names)] for row in block]
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        print(f"\n{block[0]['set']} · {block[0]['scenario']} · {setting}")
        for line in table:
            rest = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
            print("  ".join((f"{line[0]:{widths[0]}}", *rest)))


def _policies(asked: str, features: str, *, explicit: bool) -> tuple[str, ...]:
    names: list[str] = []
    for name in _names(asked):
        names += OWN if name == "own" else PEERS if name == "peers" else (name,)
    if not explicit or "peers" in _names(asked):
        names = [name for name in names if name not in PEERS or _installed(name)]
    if features == "category":
        return tuple(dict.fromkeys(names))
    text = [n if n.endswith("_text") or n in _NO_CONTEXT else f"{n}_text" for n in names]
    return tuple(dict.fromkeys(text if features == "text" else [*names, *text]))


def _installed(peer: str) -> bool:
    try:
        make(peer, n_arms=2, dimension=2, seed=0, mean_cost_usd=np.ones(2))
    except PeerNotInstalled as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _cell(value: Any, error: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" + (f" ±{error:.1g}" if error and error > abs(value) * 1e-6 else "")


def _without_paths(arguments: Sequence[str] | None) -> list[str]:
    given = list(sys.argv[1:] if arguments is None else arguments)
    kept, skip = [], False
    for word in given:
        if not skip and word not in ("--json", "--plots") and not word.startswith(("--json=", "--plots=")):
            kept.append(word)
        skip = word in ("--json", "--plots")
    return [word for word in kept if not Path(word).is_dir()]


if __name__ == "__main__":
    main()
