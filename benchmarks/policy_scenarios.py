"""The scenarios about quality: a world that stays (`stationary`), a budget (`budget`), a world that changes (`drift`).

Each says which jobs it consists of and what one of them yields. Knows nothing of processes, tables or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from benchmarks.peers import PEERS
from benchmarks.policy_jobs import YARDSTICKS, Job, Options, Result, jobs_of, traced
from benchmarks.policy_streams import Stream, Study, study_of, swapped
from benchmarks.policy_yardsticks import Figures, figures, fixed, hull, mixed, oracle, uniform

__all__ = [
    "SAME_QUALITY",
    "budget_jobs",
    "budget_run",
    "cheaper_rows",
    "default_budgets",
    "drift_jobs",
    "drift_run",
    "stationary_jobs",
    "stationary_run",
]

_COLD, _WARM = "cold, all prompts", "warm, test split"
_NO_BUDGET: Final = "no budget"
_STATIONARY_HALF_LIFE: Final = 20_000.0
_BUDGET_FLOOR: Final = 0.001
_NEED_COSTS: Final = ("paretobandit", "litellm_adaptive")
_PACED_PEERS: Final = ("paretobandit",)
_LOG_SPACED: Final = 5
_PARETOBANDIT_BUDGETS: Final = (2.9e-5, 8.3e-5, 2.3e-4, 6.6e-4, 1.9e-3, 5.3e-3, 1.5e-2)
"""Of its paper, in USD a request."""
_SWEEP: Final = (0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 1.0)
"""Of the best single model's cost: the budgets among which the cheapest of the same quality is looked for."""
SAME_QUALITY: Final = (1.0, 0.97)
_SWEPT: Final = ("pointsman", "pointsman_text", "thompson_context_free", "paretobandit")
_SWEEP_SETTING: Final = "sweep"


def stationary_jobs(options: Options) -> list[Job]:
    """Cold over all prompts; and, where the set has both splits, warmed up on `warm`, then over `test`."""
    study = study_of(options.folder, options.models)
    policies = _able(options.policies, study)
    jobs = jobs_of(options, _COLD, policies)
    return jobs + jobs_of(options, _WARM, policies) if {"warm", "test"} <= set(study.recorded.splits) else jobs


def stationary_run(options: Options, job: Job) -> list[Result]:
    """One pass in random order; `regret` is against the best single model in hindsight, a call."""
    study, rng, warm = study_of(options.folder, options.models), np.random.default_rng(job.seed), job.setting == _WARM
    stream = Stream.of(study, rng.permutation(study.rows("test" if warm else None)))
    best = float(np.nanmax(stream.means(stream.quality)))
    if job.policy == YARDSTICKS:
        found = {**_singles(study, stream, None), "uniform": mixed(stream, uniform(stream), budget=None)}
        found["oracle"] = figures(stream, oracle(stream.quality, stream.cost_usd, None))
    else:
        given = options.conditions(half_life=_STATIONARY_HALF_LIFE, warm=warm)
        found = {job.policy: figures(stream, traced(options, job, study, stream, given=given, rng=rng))}
    return [Result(job.setting, name, job.seed, {**f, "regret": best - f["quality"]}) for name, f in found.items()]


def default_budgets(study: Study) -> tuple[float, ...]:
    """ParetoBandit's for its own set; else five log-spaced from the cheapest single model's cost to the dearest's."""
    if study.name == "paretobandit":
        return _PARETOBANDIT_BUDGETS
    cost = study.mean_cost_usd(study.rows("test"))
    spaced = np.geomspace(np.nanmin(cost), np.nanmax(cost), _LOG_SPACED)
    return tuple(float(f"{value:.3g}") for value in spaced)


def budget_jobs(options: Options) -> list[Job]:
    """Each budget with those who can keep one; everyone else without; and a sweep for "same quality, cheaper"."""
    study = study_of(options.folder, options.models, priced=True)
    paced = [p for p in options.policies if p.removesuffix("_text") not in PEERS or p.startswith(_PACED_PEERS)]
    jobs = []
    for budget in options.budgets or default_budgets(study):
        jobs += jobs_of(options, f"budget {budget:.3g}", paced, budget=budget)
    jobs += jobs_of(options, _NO_BUDGET, [p for p in options.policies if p not in paced])
    if not options.budgets:
        dearest = _best_cost(study)
        for share in _SWEEP:
            swept = [p for p in paced if p in _SWEPT]
            jobs += jobs_of(options, f"{_SWEEP_SETTING} {share:g}", swept, budget=share * dearest)
    return jobs


def budget_run(options: Options, job: Job) -> list[Result]:
    """The test split, warmed up where there is a `warm` one; `regret` is against the hull, a call."""
    study, rng = study_of(options.folder, options.models, priced=True), np.random.default_rng(job.seed)
    warm = "warm" in study.recorded.splits
    stream = Stream.of(study, rng.permutation(study.rows("test" if warm else None)))
    bar = mixed(stream, hull(stream, job.budget), budget=job.budget)
    if job.policy != YARDSTICKS:
        given = options.conditions(floor=_BUDGET_FLOOR, warm=warm, usd_per_request=job.budget)
        trace = traced(options, job, study, stream, given=given, rng=rng)
        found = {job.policy: figures(stream, trace, budget=job.budget)}
    elif job.budget is None:
        found = {**_singles(study, stream, None), "uniform": mixed(stream, uniform(stream), budget=None)}
    else:
        best = oracle(stream.quality, stream.cost_usd, job.budget)
        found = {"hull": bar, "oracle": figures(stream, best, budget=job.budget)}
    return [
        Result(job.setting, name, job.seed, {**f, "regret": bar["quality"] - f["quality"]}) for name, f in found.items()
    ]


def cheaper_rows(options: Options, results: Sequence[Result]) -> list[Result]:
    """From a sweep, per policy, the least cost at which the best single model's quality, or 97 % of it, is reached.

    Between the two budgets around it quality is taken as linear in cost, both means over the seeds. NaN: not reached.
    `cost_share` is of the best single model's cost on the same calls.
    """
    swept = [r for r in results if r.setting.startswith(_SWEEP_SETTING)]
    if not swept:
        return []
    study = study_of(options.folder, options.models, priced=True)
    stream = Stream.of(study, study.rows("test" if "warm" in study.recorded.splits else None))
    best = int(np.nanargmax(stream.means(stream.quality)))
    top, dearest = stream.means(stream.quality)[best], stream.means(stream.cost_usd)[best]
    rows = []
    for policy in dict.fromkeys(r.policy for r in swept):
        mine = [r for r in swept if r.policy == policy]
        points = []
        for setting in dict.fromkeys(r.setting for r in mine):
            at = [r.figures for r in mine if r.setting == setting]
            points.append([np.mean([f[name] for f in at]) for name in ("cost_usd_per_call", "quality")])
        for share in SAME_QUALITY:
            cost = _first_cost(np.array(sorted(points, key=lambda point: point[0])), share * top)
            values = {"quality": share * top, "cost_usd_per_call": cost, "cost_share": cost / dearest}
            label = f"{share:.0%} of the best model's quality"
            rows += [Result(label, policy, seed, values) for seed in {r.seed for r in mine}]
    return rows


def drift_jobs(options: Options) -> list[Job]:
    """The first run, then the second; where there is one run only, a swap of the two best models' quality halfway."""
    study = study_of(options.folder, options.models, all_runs=True)
    policies, runs = _able(options.policies, study), study.recorded.runs
    if len(runs) > 1:
        return jobs_of(options, f"{runs[0]}, then {runs[1]}", policies, detail="runs")
    return jobs_of(options, "simulated: the two best models' quality swapped halfway", policies, detail="swap")


def drift_run(options: Options, job: Job) -> list[Result]:
    """Cold; `regret` is against the best single model of each part, known at once, a call."""
    study, rng = study_of(options.folder, options.models, all_runs=True), np.random.default_rng(job.seed)
    everything = study.rows(None)
    stream = Stream.of(study, rng.permutation(everything))
    if job.detail == "runs":
        stream = stream.then(Stream.of(study, rng.permutation(everything), run=1, part=1))
    else:
        one, other = np.argsort(-np.nan_to_num(stream.means(stream.quality)))[:2]
        stream = swapped(stream, int(one), int(other))
    best = [int(np.nanargmax(stream.means(stream.quality, part))) for part in (0, 1)]
    switching = np.zeros(stream.quality.shape)
    switching[np.array(best)[stream.part], np.arange(len(stream))] = 1.0
    bar = mixed(stream, switching, budget=None)
    if job.policy == YARDSTICKS:
        found = {**_singles(study, stream, None), "uniform": mixed(stream, uniform(stream), budget=None)}
        found["best single of each part"] = bar
        found["oracle"] = figures(stream, oracle(stream.quality, stream.cost_usd, None))
    else:
        trace = traced(options, job, study, stream, given=options.conditions(), rng=rng)
        quality = trace.of(stream.quality)
        parts = {f"quality_part_{part + 1}": float(np.nanmean(quality[stream.part == part])) for part in (0, 1)}
        found = {job.policy: {**figures(stream, trace), **parts}}
    return [
        Result(job.setting, name, job.seed, {**f, "regret": bar["quality"] - f["quality"]}) for name, f in found.items()
    ]


def _able(policies: Sequence[str], study: Study) -> list[str]:
    """Those that can play with models of which some have no recorded cost."""
    unknown = any(price is None for price in study.prices)
    return [name for name in policies if not (unknown and name.removesuffix("_text") in _NEED_COSTS)]


def _singles(study: Study, stream: Stream, budget: float | None) -> dict[str, Figures]:
    return {f"single {name}": figures(stream, fixed(stream, i), budget=budget) for i, name in enumerate(study.models)}


def _best_cost(study: Study) -> float:
    rows = study.rows("test")
    quality = [float(np.nanmean(q)) for q in study.measured("quality")[:, rows]]
    return float(study.mean_cost_usd(rows)[int(np.argmax(quality))])


def _first_cost(points: np.ndarray, target: float) -> float:
    """The cost at which quality first reaches the target along points (cost, quality) sorted by cost, shape (n, 2)."""
    reached = np.flatnonzero(points[:, 1] >= target)
    if not reached.size:
        return float("nan")
    after = int(reached[0])
    if after == 0:
        return float(points[0, 0])
    (c0, q0), (c1, q1) = points[after - 1], points[after]
    return float(c0 + (c1 - c0) * (target - q0) / (q1 - q0))
