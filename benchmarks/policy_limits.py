"""The scenarios about promises: hard limits under drift (`constrained`), and quantiles of one request (`calibration`).

What a model's limits hold of is known here from all its recorded calls of a run; players see only their own calls.
Knows nothing of processes, tables or files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.baselines import Uniform
from bandit.errors import InvalidInput
from bandit.pool import Pool
from bandit.types import Arm, BoolArray, Constraints, FloatArray, Objective
from benchmarks.peers import PEERS
from benchmarks.policy_jobs import YARDSTICKS, Job, Options, Result, jobs_of, traced
from benchmarks.policy_players import Conditions, Trace, Visitor, new_pool, play
from benchmarks.policy_streams import FeatureKind, Stream, Study, contexts_of, study_of
from benchmarks.policy_yardsticks import Figures, figures, fixed, mixed, uniform

__all__ = ["calibration_jobs", "calibration_run", "constrained_jobs", "constrained_run", "least_violating"]

OBJECTIVE: Final = Objective(quality=1.0, cost=0.2, cost_reference_usd=0.005)
_INFEASIBLE: Final = (1.5, 0.85)
_SLOW_BEFORE, _SLOW_AFTER = 0.04, 0.99
_FEW_OUTCOMES: Final = 60


@dataclass(frozen=True, slots=True, eq=False)
class _Truth:
    """Of every part and model, over all its calls: shape (n_parts, n_models)."""

    feasible: BoolArray
    excess: FloatArray
    reward: FloatArray

    @classmethod
    def of(cls, stream: Stream, p95_s: float, min_accuracy: float) -> _Truth:
        parts = range(int(stream.part.max()) + 1)
        p95 = np.array([np.nanquantile(stream.latency_s[:, stream.part == part], 0.95, axis=1) for part in parts])
        quality = np.array([stream.means(stream.quality, part) for part in parts])
        rewards = _rewards(stream)
        excess = np.maximum(p95 / p95_s - 1.0, (min_accuracy - quality) / min_accuracy)
        return cls(excess <= 0.0, excess, np.array([stream.means(rewards, part) for part in parts]))

    def best(self, part: int) -> int:
        """The feasible model of the highest mean reward; the least violating one where none is feasible."""
        if not self.feasible[part].any():
            return int(self.excess[part].argmin())
        return int(np.where(self.feasible[part], self.reward[part], -np.inf).argmax())


def constrained_jobs(options: Options) -> list[Job]:
    """All under the limits over every run; and pools alone under a change that is injected, and limits nobody keeps.

    Raises InvalidInput for a set without latencies.
    """
    study = _study(options)
    if np.isnan(study.measured("latency_s")).all():
        raise InvalidInput("set", f"{study.name} has no latencies to limit")
    pools = [p for p in options.policies if p.removesuffix("_text") not in PEERS]
    limits = f"p95 ≤ {options.p95_s:g} s, accuracy ≥ {options.min_accuracy:g}"
    jobs = jobs_of(options, f"{limits}: {', then '.join(study.recorded.runs)}", detail="runs")
    label = f"{limits}: simulated, one model's slow calls go from {_SLOW_BEFORE:.0%} to {_SLOW_AFTER:.0%}"
    jobs += [job for job in jobs_of(options, label, pools, detail="injected") if job.policy != YARDSTICKS]
    label = "p95 ≤ {:g} s, accuracy ≥ {:g}: infeasible".format(*_INFEASIBLE)
    for detail, suffix in (("infeasible", ""), ("infeasible, graded", ", grades of the warm split posted beforehand")):
        if "warm" in study.recorded.splits or not suffix:
            jobs += [j for j in jobs_of(options, label + suffix, pools, detail=detail) if j.policy != YARDSTICKS]
    return jobs


def constrained_run(options: Options, job: Job) -> list[Result]:
    """One stream of `constrained_jobs`; `regret` is in reward, a call, against one who switches at once."""
    study, rng = _study(options), np.random.default_rng(job.seed)
    if job.detail == "injected":
        return [_injected(options, job, study, rng)]
    infeasible = job.detail.startswith("infeasible")
    p95_s, floor = _INFEASIBLE if infeasible else (options.p95_s, options.min_accuracy)
    stream = _runs(study, rng, options.passes)
    truth = _Truth.of(stream, p95_s, floor)
    violating = ~truth.feasible[stream.part].T
    switching = np.array([truth.best(part) for part in range(len(truth.feasible))])[stream.part]
    rewards = _rewards(stream)
    bar = float(np.nanmean(rewards[switching, np.arange(len(stream))]))

    def judged(trace: Trace) -> Figures:
        regret = bar - float(np.nanmean(trace.of(rewards)))
        return {**figures(stream, trace, violating=violating), "regret": regret}

    if job.policy == YARDSTICKS:
        found = {f"single {name}": judged(fixed(stream, i)) for i, name in enumerate(study.models)}
        even = mixed(stream, uniform(stream), budget=None, violating=violating)
        found["uniform"] = {**even, "regret": bar - float(np.nanmean(rewards))}
        found["oracle that switches at once"] = judged(replace(fixed(stream, 0), chosen=switching))
    else:
        graded = Visitor(before=partial(_post_grades, study)) if job.detail == "infeasible, graded" else None
        given = _given(options, p95_s, floor)
        trace = traced(options, job, study, stream, given=given, rng=rng, visitor=graded)
        more = least_violating(trace, stream, truth.excess) if infeasible else {}
        if job.policy.removesuffix("_text") not in PEERS and job.detail == "runs":
            more = _filtering(trace, stream, truth.feasible)
        found = {job.policy: {**judged(trace), **more}}
    return [Result(job.setting, name, job.seed, f) for name, f in found.items()]


def least_violating(trace: Trace, stream: Stream, excess: FloatArray) -> Figures:
    """What happened once all were filtered; `excess` (n_parts, n_models): how far a model is truly over, relatively.

    `flagged_share` of all calls; the call of the first flag; of the calls from there on, the share that is flagged
    (`flagged_since`) and the share to the truly least violating model (`least_since`). `answered_share`: of all calls.
    """
    least = excess.argmin(axis=1)[stream.part]
    first = int(trace.flagged.argmax()) if trace.flagged.any() else -1
    return {
        "answered_share": len(trace.chosen) / len(stream),
        "flagged_share": float(trace.flagged.mean()),
        "first_flag_call": float(first) if first >= 0 else nan,
        "flagged_since": float(trace.flagged[first:].mean()) if first >= 0 else nan,
        "least_since": float((trace.chosen == least)[first:].mean()) if first >= 0 else nan,
        "mean_excess": float(excess[stream.part, trace.chosen].mean()),
        "least_excess": float(excess.min(axis=1)[stream.part].mean()),
    }


def _filtering(trace: Trace, stream: Stream, feasible: BoolArray) -> Figures:
    """How filters followed the truth `feasible` (n_parts, n_models), over a trace of all models.

    - onset: a model violates from a part's start on, and did not in the part before. `filter_own_calls`: median of its
      own calls from there until filtered; `filtered_onsets`: share of onsets so filtered within the part;
      `unfiltered_own_calls`: median of the own calls, in that part, of those never filtered.
    - recovery: filtered at a part's start, and within its limits from there on. `readmit_calls`: median of the pool's
      calls until its probes bring it back; `readmitted`: share of recoveries.
    - `false_filtered`: of all pairs (part, model within its limits), those filtered in that part.
    """
    starts = [int(np.flatnonzero(stream.part == part)[0]) for part in range(len(feasible))] + [len(stream)]
    own: list[int] = []
    unfiltered: list[int] = []
    back: list[int] = []
    onsets, recoveries, wrong = 0, 0, 0
    for part, (start, end) in enumerate(pairwise(starts)):
        for model in range(feasible.shape[1]):
            moves = [(c, t.to_state) for c, t in trace.transitions if t.arm == model]
            state = next((to for c, to in reversed(moves) if c < start), "unknown")
            filtered = [c for c, to in moves if start <= c < end and to == "filtered"]
            if feasible[part, model]:
                wrong += bool(filtered)
                if state == "filtered":
                    recoveries += 1
                    back += [c - start + 1 for c, to in moves if start <= c < end and to == "probing"][:1]
            elif part == 0 or feasible[part - 1, model]:
                onsets += 1
                until = filtered[0] + 1 if filtered else end
                (own if filtered else unfiltered).append(int((trace.chosen[start:until] == model).sum()))
    return {
        "filter_own_calls": float(np.median(own)) if own else nan,
        "filtered_onsets": len(own) / onsets if onsets else nan,
        "unfiltered_own_calls": float(np.median(unfiltered)) if unfiltered else nan,
        "readmit_calls": float(np.median(back)) if back else nan,
        "readmitted": len(back) / recoveries if recoveries else nan,
        "false_filtered": wrong / int(feasible.sum()) if feasible.any() else nan,
    }


def _injected(options: Options, job: Job, study: Study, rng: np.random.Generator) -> Result:
    """The first run twice; the best feasible model's latencies are made up: 4 % slow calls, then 99 %.

    A slow call takes twice the limit, another half of it. `filter_own_calls`: its own calls from onset until filtered;
    `false_filtered`: filtered before.
    """
    everything = study.rows(None)
    stream = Stream.of(study, rng.permutation(everything))
    stream = stream.then(Stream.of(study, rng.permutation(everything), part=1))
    model = _Truth.of(stream, options.p95_s, options.min_accuracy).best(0)
    latency = stream.latency_s.copy()
    slow = rng.random(len(stream)) < np.where(stream.part == 0, _SLOW_BEFORE, _SLOW_AFTER)
    latency[model] = np.where(slow, 2.0, 0.5) * options.p95_s
    stream = replace(stream, latency_s=latency)
    truth = _Truth.of(stream, options.p95_s, options.min_accuracy)
    given = _given(options, options.p95_s, options.min_accuracy)
    trace = traced(options, job, study, stream, given=given, rng=rng)
    onset = int(stream.part.argmax())
    filtered = [call for call, t in trace.transitions if t.arm == model and t.to_state == "filtered"]
    after = [call for call in filtered if call >= onset]
    more = {
        "filter_own_calls": float((trace.chosen[onset : after[0] + 1] == model).sum()) if after else nan,
        "filtered_onsets": float(bool(after)),
        "false_filtered": float(any(call < onset for call in filtered)),
        "share_before_onset": float((trace.chosen[:onset] == model).mean()),
    }
    return Result(
        job.setting, job.policy, job.seed, {**figures(stream, trace, violating=~truth.feasible[stream.part].T), **more}
    )


def calibration_jobs(options: Options) -> list[Job]:
    """Models drawn uniformly, and by the policy; with requests' recorded lengths, and with estimates from the text."""
    settings = {"requests of recorded length": "calibration", "length estimated from the prompt's text": "category"}
    return [
        Job(setting, policy, seed, detail=kind)
        for setting, kind in settings.items()
        for policy in ("uniform", "pointsman")
        for seed in range(options.seeds)
    ]


def calibration_run(options: Options, job: Job) -> list[Result]:
    """The share of realised values within the 95 % quantile taken before the call, over all runs.

    Of all calls; of those to models with at least 60 outcomes by then (`_settled`); and by model.
    """
    study, rng = study_of(options.folder, options.models, priced=True, all_runs=True), np.random.default_rng(job.seed)
    kind: FeatureKind = "calibration" if job.detail == "calibration" else "category"
    features, contexts = contexts_of(study.folder, kind, options.clusters)
    stream = _runs(study, rng, options.passes)
    if job.policy == "uniform":
        arms = [Arm(name, price) for name, price in zip(study.models, study.prices, strict=True)]
        pool = Pool(arms, features=features, policy=Uniform())
    else:
        pool = new_pool(study, job.policy, contexts, features, options.conditions(objective=OBJECTIVE))
    bounds = np.empty((2, len(study.models), len(stream)))

    def note(pool: Pool, call: int) -> None:
        context = contexts[stream.prompts[call]]
        bounds[:, :, call] = pool.upper_bounds(context)

    trace = play(pool, stream, models=study.models, contexts=contexts, rng=rng, visitor=Visitor(before=note))
    earlier = _earlier_calls(trace.chosen, len(study.models))
    realised = {"cost": (stream.cost_usd, bounds[0]), "latency": (stream.latency_s, bounds[1])}
    within = {name: _within(trace.of(values), trace.of(bound)) for name, (values, bound) in realised.items()}
    found = {job.policy: figures(stream, trace)}
    for name, inside in within.items():
        found[job.policy] |= {
            f"{name}_coverage": float(np.nanmean(inside)),
            f"{name}_coverage_settled": _mean(inside[earlier >= _FEW_OUTCOMES]),
        }
    for index, model in enumerate(study.models):
        mine = trace.chosen == index
        coverage = {f"{name}_coverage": _mean(inside[mine]) for name, inside in within.items()}
        settled = {
            f"{name}_coverage_settled": _mean(inside[mine & (earlier >= _FEW_OUTCOMES)])
            for name, inside in within.items()
        }
        found[f"{job.policy}: {model}"] = {**coverage, **settled, "calls": float(mine.sum())}
    return [Result(job.setting, name, job.seed, f) for name, f in found.items()]


def _study(options: Options) -> Study:
    return study_of(options.folder, options.models, priced=True, all_runs=True)


def _given(options: Options, p95_s: float, min_accuracy: float) -> Conditions:
    limits = Constraints(p95_latency_s=p95_s, min_accuracy=min_accuracy, accuracy_evidence="both")
    return options.conditions(objective=OBJECTIVE, constraints=limits)


def _post_grades(study: Study, pool: Pool, call: int) -> None:
    """Before the first call: every model's grades on the warm split in the first run, as benchmark results."""
    if call == 0:
        for name, grades in zip(study.models, study.measured("quality")[:, study.rows("warm")], strict=True):
            for grade in grades[~np.isnan(grades)].tolist():
                pool.apply_benchmark(name, grade)


def _runs(study: Study, rng: np.random.Generator, passes: int) -> Stream:
    """Every run after the other, each in random order, `passes` times."""
    streams = [
        Stream.of(study, np.concatenate([rng.permutation(study.rows(None)) for _ in range(passes)]), run=run, part=run)
        for run in range(len(study.recorded.runs))
    ]
    whole = streams[0]
    for stream in streams[1:]:
        whole = whole.then(stream)
    return whole


def _rewards(stream: Stream) -> FloatArray:
    """The objective's reward of every model's outcome, shape (n_models, n); see `bandit.scorer`."""
    weight_q, weight_c, _ = OBJECTIVE.weights
    credit = 1.0 - np.minimum(stream.cost_usd / OBJECTIVE.cost_reference_usd, 1.0)
    return np.asarray(weight_q * stream.quality + weight_c * credit)


def _earlier_calls(chosen: NDArray[np.intp], n_models: int) -> NDArray[np.intp]:
    """How many calls the model of each call had had before, shape (n,)."""
    earlier = np.empty(len(chosen), dtype=np.intp)
    for model in range(n_models):
        mine = np.flatnonzero(chosen == model)
        earlier[mine] = np.arange(len(mine))
    return earlier


def _within(realised: FloatArray, bound: FloatArray) -> FloatArray:
    """1 where a realised value keeps its bound, 0 where not, NaN where either is unknown."""
    unknown = np.isnan(realised) | np.isnan(bound)
    return np.where(unknown, nan, (realised <= bound * (1 + 1e-9)).astype(np.float64))


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else nan
