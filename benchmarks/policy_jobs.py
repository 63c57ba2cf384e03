"""The unit of work of the policy benchmark, one policy, setting and seed, and the rows that many of them make.

Owns how work is described, spread over processes and averaged. Knows nothing of what a scenario measures.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from benchmarks.peers import PEERS
from benchmarks.policy_players import Conditions, Trace, Visitor, kind_of, new_peer, new_pool, play, play_peer
from benchmarks.policy_streams import Stream, Study, contexts_of

__all__ = ["YARDSTICKS", "Job", "Options", "Result", "aggregated", "jobs_of", "traced", "work_through"]

YARDSTICKS: Final = "yardsticks"
"""The name under which what needs no learning is computed, all of it in one job."""
_HIGHEST: Final = ("budget_utilisation", "worst_window_utilisation")
"""Figures of which the highest over the seeds is reported too."""
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, as `benchmarks.policy` describes it; None or empty: the scenario's own default."""

    folder: str
    scenario: str
    policies: tuple[str, ...]
    seeds: int = 5
    peer_seeds: int = 5
    models: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    newcomers: tuple[str, ...] = ()
    clusters: int = 24
    exploration_floor: float | None = None
    half_life: float | None = None
    effective_samples: float | None = None
    p95_s: float = 2.5
    min_accuracy: float = 0.78
    passes: int = 1

    def conditions(self, *, floor: float = 0.01, half_life: float = 10_000.0, **given: Any) -> Conditions:
        """Conditions with what was asked for, or else the scenario's `floor` and `half_life`."""
        return Conditions(
            exploration_floor=floor if self.exploration_floor is None else self.exploration_floor,
            half_life_requests=half_life if self.half_life is None else self.half_life,
            effective_samples=self.effective_samples,
            **given,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One policy under one setting with one seed; `budget` in USD a request, `detail` what else a setting needs."""

    setting: str
    policy: str
    seed: int
    budget: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of a job: figures by name, NaN where there is none, and curves over time by name, for plots."""

    setting: str
    policy: str
    seed: int
    figures: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)


def jobs_of(options: Options, setting: str, policies: Sequence[str] | None = None, **more: Any) -> list[Job]:
    """A job for every policy (None: all asked for) and seed, peers with seeds of their own number, and yardsticks."""
    jobs = [
        Job(setting, policy, seed, **more)
        for policy in (options.policies if policies is None else policies)
        for seed in range(options.peer_seeds if policy.removesuffix("_text") in PEERS else options.seeds)
    ]
    return jobs + [Job(setting, YARDSTICKS, seed, **more) for seed in range(options.seeds)]


def traced(
    options: Options,
    job: Job,
    study: Study,
    stream: Stream,
    *,
    given: Conditions,
    rng: np.random.Generator,
    visitor: Visitor | None = None,
) -> Trace:
    """The job's policy or peer on a stream; `rng` draws a pool's decisions, a peer draws with the job's seed."""
    features, contexts = contexts_of(study.folder, kind_of(job.policy), options.clusters)
    if job.policy.removesuffix("_text") in PEERS:
        return play_peer(new_peer(study, job.policy, contexts, job.seed, given), contexts, stream)
    pool = new_pool(study, job.policy, contexts, features, given)
    return play(pool, stream, models=study.models, contexts=contexts, rng=rng, visitor=visitor)


def work_through(
    run: Callable[[Options, Job], list[Result]], options: Options, jobs: Sequence[Job], processes: int
) -> list[Result]:
    """All jobs' results, in the jobs' order. With one process in this one, else in fresh ones of one thread each."""
    if processes <= 1:
        return [result for job in jobs for result in run(options, job)]
    for name in _THREADS:
        os.environ.setdefault(name, "1")  # read when a fresh process loads numpy
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        futures = [executor.submit(run, options, job) for job in jobs]
        return [result for future in futures for result in future.result()]


def aggregated(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for every setting and policy: each figure's mean over the seeds that have it, its standard error as `_se`.

    A standard error needs two seeds, else it is None, as is what nobody measured. Of what a budget was used, the
    highest of all seeds stands as `_max`.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.setting, result.policy), []).append(result)
    rows = []
    for (setting, policy), members in groups.items():
        row: dict[str, Any] = {"setting": setting, "policy": policy, "seeds": len({m.seed for m in members})}
        for name in dict.fromkeys(name for m in members for name in m.figures):
            values = [v for m in members if not math.isnan(v := float(m.figures.get(name, math.nan)))]
            row[name] = _rounded(float(np.mean(values))) if values else None
            spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
            row[f"{name}_se"] = None if spread is None else _rounded(spread)
            if name in _HIGHEST:
                row[f"{name}_max"] = _rounded(max(values)) if values else None
        rows.append(row)
    return rows


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
