"""One simulated run of a pool of a configuration over recorded outcomes, as plain data that processes can exchange.

Puts the service's pool and evaluation's loop together. Prints nothing and parses no arguments.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput
from bandit.filters import Transition
from bandit.pool import Change, Pool
from bandit.types import Context, FloatArray
from evaluation.experience import read_recording
from evaluation.recorded_calls import RecordedCalls, read_calls
from evaluation.simulation import Trace, Workload, simulate
from evaluation.simulation_figures import Figures, figures_of, oracle
from serving.pools import start_pool
from serving.settings import PoolSettings, Settings, load_settings
from serving.simulated_log import SimulatedLog
from serving.warming import fitted_features, warm
from serving.warmstart import disagreement, read_warm_starts

__all__ = ["Job", "Result", "notes_of", "run_job", "settings_of"]

START_TS = 1_767_225_600.0  # 2026-01-01: any fixed time makes runs repeatable
_WARM = "warm"
_EFFECTIVE_SAMPLES = 500.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to run. `pool` None: the configuration's only one. `warm` None: as the service would start; False: cold."""

    folder: Path
    config: Path
    overrides: tuple[str, ...]
    seed: int
    pool: str | None = None
    runs: tuple[str, ...] = ()
    split: str | None = None
    calls: int | None = None
    rate_per_s: float = 1.0
    poisson: bool = False
    feedback_delay_s: float = 0.0
    feedback_share: float = 1.0
    warm: bool | None = None
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job: the pool's figures, and those of each model alone, `(uniform)` and `(oracle)` beside it.

    `shares`: of the calls, by model. `budget_use`: mean cost over the budget, None without one. `flagged`, `refused`:
    shares of calls without a feasible model. `changes`: filter events and head resets in their order. `took_s`: what
    deciding and learning took, by the clock and (`took_cpu_s`) of the processor.
    """

    calls: int
    figures: Figures
    beside: Mapping[str, Figures]
    shares: Mapping[str, float]
    budget_use: float | None
    flagged: float
    refused: float
    changes: tuple[Mapping[str, Any], ...]
    simulated_s: float
    took_s: float
    took_cpu_s: float


def settings_of(job: Job) -> tuple[Settings, PoolSettings]:
    """The configuration with the job's changes, and its pool. Raises ConfigError, InvalidInput."""
    settings = load_settings(job.config, os.environ, overrides=job.overrides, offline=True)
    pools = {pool.name: pool for pool in settings.pools}
    if job.pool is None and len(pools) > 1:
        raise InvalidInput("--pool", f"there are several; name one of {', '.join(pools)}")
    if job.pool is not None and job.pool not in pools:
        raise InvalidInput("--pool", f"no pool is called {job.pool!r}; there are {', '.join(pools)}")
    return settings, settings.pools[0] if job.pool is None else pools[job.pool]


def notes_of(job: Job) -> tuple[str, ...]:
    """What a reader of the results has to know beforehand. Raises what `run_job` would raise for its inputs."""
    settings, pool = settings_of(job)
    recorded = _recorded(job, settings, pool)
    notes = list(recorded.notes)
    _, origin = _pool_of(job, settings, pool, recorded)
    if pool.feedback.missing != "ignore" and job.feedback_share < 1:
        notes.append(
            f"feedback.missing is {pool.feedback.missing:g}, which is not simulated: missing feedback is ignored"
        )
    if pool.constraints.p95_time_to_first_token_s is not None:
        notes.append("no time to first token was recorded, so nothing tests constraints.p95_time_to_first_token_s")
    if pool.constraints.min_accuracy is not None and pool.constraints.accuracy_evidence == "benchmarks":
        notes.append(
            "no benchmark result is simulated, so nothing tests constraints.min_accuracy; see accuracy_evidence"
        )
    return f"outcomes: {recorded.source}", f"the pool starts {origin}", *notes


def run_job(job: Job) -> Result:
    """Run it. Raises ConfigError, InvalidInput, WarmStartUnusable, OSError."""
    settings, pool_settings = settings_of(job)
    recorded = _recorded(job, settings, pool_settings)
    pool, _ = _pool_of(job, settings, pool_settings, recorded)
    contexts = _contexts(recorded, pool)
    workload, part = recorded.workload(contexts, np.random.default_rng([job.seed, 0]), calls=job.calls)
    log = None if job.log is None else SimulatedLog(job.log, pool)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    trace = simulate(
        pool,
        workload,
        rng=np.random.default_rng([job.seed, 1]),
        rate_per_s=job.rate_per_s,
        poisson=job.poisson,
        feedback_delay_s=job.feedback_delay_s,
        feedback_share=job.feedback_share,
        start_ts=START_TS,
        observer=log,
    )
    took = time.perf_counter() - begun, time.process_time() - begun_cpu
    if log is not None:
        log.close()
    return _result(pool, workload, part, trace, took)


def _recorded(job: Job, settings: Settings, pool: PoolSettings) -> RecordedCalls:
    models = [settings.model(name) for name in pool.models]
    names = {model.name: (model.name, model.upstream_model or model.name) for model in models}
    prices = {model.name: model.to_arm().price for model in models}
    return read_calls(job.folder, names, prices, runs=job.runs, split=job.split)


def _pool_of(job: Job, settings: Settings, pool: PoolSettings, recorded: RecordedCalls) -> tuple[Pool, str]:
    """The pool of the models that were recorded, and in words what it starts from."""
    if pool.policy.kind == "fixed" and pool.policy.model not in recorded.models:
        raise InvalidInput("policy.model", f"{pool.policy.model!r} is not recorded")
    given = pool.model_copy(update={"models": recorded.models})
    if job.warm:
        return _warmed(job, settings, given)
    start = None if job.warm is False else read_warm_starts(settings.server.data_dir).get(pool.name)
    reason = None if start is None else disagreement(pool, start)
    if reason is not None:
        start = None
    made = start_pool(given, settings, start)
    if start is None:
        return made, "cold" + (f", because its warm start does not fit: {reason}" if reason else "")
    return made, f"from its warm start, made from {start.source}"


def _warmed(job: Job, settings: Settings, pool: PoolSettings) -> tuple[Pool, str]:
    names = {name: (name, settings.model(name).upstream_model or name) for name in pool.models}
    recording = read_recording(job.folder, names, run=job.runs[0] if job.runs else None, split=_WARM)
    features = fitted_features(pool, recording.prompts, 0)
    contexts = [features.extract(prompt) for prompt in recording.prompts]
    warmed = warm(
        pool,
        settings,
        features,
        contexts,
        recording.experience,
        source=recording.source,
        effective_samples=_EFFECTIVE_SAMPLES,
    )
    return warmed.pool, f"warm, from {recording.source}"


def _contexts(recorded: RecordedCalls, pool: Pool) -> tuple[Context, ...]:
    """Of all prompts; those that no call has are not looked at."""
    used = np.zeros(len(recorded.prompts), dtype=np.bool_)
    for _, rows, _ in recorded.runs:
        used[rows] = True
    extract = pool.features.extract
    known = {i: extract(recorded.prompts[i]) for i in np.flatnonzero(used).tolist()}
    anything = next(iter(known.values()))
    return tuple(known.get(i, anything) for i in range(len(recorded.prompts)))


def _result(pool: Pool, workload: Workload, part: NDArray[np.intp], trace: Trace, took: tuple[float, float]) -> Result:
    def figures(chosen: NDArray[np.intp] | None) -> Figures:
        return figures_of(workload, pool.objective, pool.constraints, part, chosen)

    n, models = len(workload), workload.models
    beside = {name: figures(np.full(n, row, dtype=np.intp)) for row, name in enumerate(models)}
    beside["(uniform)"] = figures(None)
    beside["(oracle)"] = figures(oracle(workload, pool.objective, pool.constraints, part))
    own = figures(trace.chosen)
    budget_usd = None if pool.pacer is None else pool.pacer.usd_per_request
    return Result(
        calls=n,
        figures=own,
        beside=beside,
        shares={name: float((trace.chosen == row).mean()) for row, name in enumerate(models)},
        budget_use=None if budget_usd is None else own.usd_per_1000 / 1000.0 / budget_usd,
        flagged=float(trace.flagged.mean()),
        refused=float((trace.chosen < 0).mean()),
        changes=tuple(_told(call, change, models, trace.arrived_ts) for call, change in trace.changes),
        simulated_s=float(trace.arrived_ts[-1] - trace.arrived_ts[0]),
        took_s=took[0],
        took_cpu_s=took[1],
    )


def _told(call: int, change: Change, models: tuple[str, ...], arrived_ts: FloatArray) -> dict[str, Any]:
    at = {"call": call, "s": float(arrived_ts[call] - arrived_ts[0]), "model": models[change.arm]}
    if isinstance(change, Transition):
        return at | {
            "limit": change.limit,
            "from": change.from_state,
            "to": change.to_state,
            "reason": change.reason,
            "calls": change.calls,
            "rate": change.rate,
        }
    return at | {"head": change.head, "reason": "drift", "change": change.change}
