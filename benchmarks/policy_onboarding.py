"""The scenario `onboarding`: a model joins a running pool under a budget, and is adopted or left.

Three runs of one seed: the model joins, it never comes, it was there from the start. Knows nothing of tables or files.
"""

from __future__ import annotations

from math import nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.pool import Pool
from bandit.types import Arm
from benchmarks.peers import PEERS
from benchmarks.policy_jobs import YARDSTICKS, Job, Options, Result, jobs_of
from benchmarks.policy_players import Trace, Visitor, kind_of, new_pool, play
from benchmarks.policy_streams import Stream, Study, contexts_of, study_of
from benchmarks.policy_yardsticks import figures

__all__ = ["adoption", "onboarding_jobs", "onboarding_run", "share_curve"]

_JOINS_AT: Final = 1 / 3
_WINDOW: Final = 100
_LONG_RUN: Final = 0.25
_LEAST_SHARE: Final = 0.05
_FLOOR: Final = 0.001


def onboarding_jobs(options: Options) -> list[Job]:
    """The best model joins all others, so do the second best and the worst (or `newcomers`).

    Under half of what the best one's calls cost on average, or the budgets asked for. Pools only: peers cannot add one.
    """
    study = study_of(options.folder, options.models, priced=True)
    quality = np.array([np.nanmean(q) for q in study.measured("quality")[:, study.rows("test")]])
    cost = study.mean_cost_usd(study.rows("test"))
    ranked = np.argsort(-quality)
    names = options.newcomers or tuple(dict.fromkeys(study.models[i] for i in (ranked[0], ranked[1], ranked[-1])))
    pools = [p for p in options.policies if p.removesuffix("_text") not in PEERS]
    jobs: list[Job] = []
    for budget in options.budgets or (float(f"{0.5 * cost[ranked[0]]:.3g}"),):
        for name in names:
            jobs += jobs_of(options, f"{name} joins, budget {budget:.3g}", pools, budget=budget, detail=name)
    return [job for job in jobs if job.policy != YARDSTICKS]


def onboarding_run(options: Options, job: Job) -> list[Result]:
    """One seed; figures are of the calls from the newcomer's first on, utilisation is of the whole stream.

    `regret` is the quality of the run without it minus that of the run it joined, a call, and `regret_percent` that
    relative to the former (below 0: it was a gain). `adopted_calls`: see `adoption`; none for a model that in the last
    quarter has less than half its long-run share again: tried is not adopted.
    """
    study = study_of(options.folder, options.models, priced=True)
    rest = study_of(options.folder, tuple(name for name in study.models if name != job.detail), priced=True)
    warm = "warm" in study.recorded.splits
    rows = np.random.default_rng(job.seed).permutation(study.rows("test" if warm else None))
    stream = Stream.of(study, rows)
    join, newcomer = round(len(stream) * _JOINS_AT), study.models.index(job.detail)

    def invite(pool: Pool, call: int) -> None:
        if call == join:
            pool.add_arm(Arm(job.detail, study.prices[newcomer]))

    traces = {
        "joined": _played(options, job, rest, study, stream, visitor=Visitor(before=invite)),
        "without": _played(options, job, rest, study, stream),
        "from the start": _played(options, job, study, study, stream),
    }
    joined, without = (float(np.nanmean(traces[k].of(stream.quality)[join:])) for k in ("joined", "without"))
    there = traces["from the start"].chosen == newcomer
    long_run = float(there[-round(len(stream) * _LONG_RUN) :].mean())
    taken = traces["joined"].chosen == newcomer
    at_end = float(taken[-round(len(stream) * _LONG_RUN) :].mean())
    adopted = adoption(taken[join:], long_run) if at_end >= 0.5 * long_run else None
    found = {
        **figures(stream, traces["joined"], budget=job.budget),
        "quality": joined,
        "regret": without - joined,
        "regret_percent": 100.0 * (without - joined) / without,
        "adopted_calls": nan if adopted is None else float(adopted),
        "adopted_in_300": nan if long_run < _LEAST_SHARE else float(adopted is not None and adopted <= 300),
        "share_from_start": long_run,
        "share_at_end": at_end,
    }
    return [Result(job.setting, job.policy, job.seed, found, {"newcomer's share": share_curve(taken)})]


def adoption(taken: NDArray[np.bool_], long_run: float) -> int | None:
    """The calls after joining until a model has half its long-run share of the last 100; None: never, or not to be.

    `taken`: which calls since it joined were its own. `long_run`: its share of the last quarter of a run in which it
    was there, and warmed up, from the start: what the same policy gives it under the same budget once all is known.
    Below 5 % it is not to be adopted. At least 100, as the window must be full.
    """
    if long_run < _LEAST_SHARE:
        return None
    counts = np.concatenate(([0], taken.cumsum()))
    shares = (counts[_WINDOW:] - counts[:-_WINDOW]) / _WINDOW
    enough = np.flatnonzero(shares >= 0.5 * long_run)
    return int(enough[0]) + _WINDOW if enough.size else None


def share_curve(taken: NDArray[np.bool_]) -> list[float]:
    """The share of each 100 calls in a row, without overlap."""
    whole = len(taken) // _WINDOW * _WINDOW
    return [float(share) for share in taken[:whole].reshape(-1, _WINDOW).mean(axis=1)]


def _played(
    options: Options, job: Job, members: Study, study: Study, stream: Stream, *, visitor: Visitor | None = None
) -> Trace:
    """A fresh pool of `members` on a stream of all the study's models, with the same draws for every pool."""
    features, contexts = contexts_of(study.folder, kind_of(job.policy), options.clusters)
    warm = "warm" in study.recorded.splits
    given = options.conditions(floor=_FLOOR, warm=warm, usd_per_request=job.budget)
    pool = new_pool(members, job.policy, contexts, features, given)
    rng = np.random.default_rng([job.seed, 1])
    return play(pool, stream, models=study.models, contexts=contexts, rng=rng, visitor=visitor)
