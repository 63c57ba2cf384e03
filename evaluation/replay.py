"""Judges candidates on a log: two passes over its chunks, first to fit and to decide, then to add up.

In the first pass each candidate gives its probabilities (one that learns reads the log in order) and the regressions
see every outcome; in the second every estimator's terms are added to tallies. Knows no file: a source hands out chunks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from bandit.types import FloatArray
from evaluation.candidates import Candidate
from evaluation.estimators.regression import ArmRegression, Design, mrdr_weight
from evaluation.estimators.rejection import is_uniform, rejection_replay
from evaluation.intervals import AnytimeSequence, Interval, bootstrap_draws
from evaluation.judgement import Estimate, Judgement, MetricJudgement, Standards, judge_metric
from evaluation.learning import Learning
from evaluation.logged import LoggedRounds
from evaluation.measures import METRICS
from evaluation.rounds import Rounds
from evaluation.tally import Tally

__all__ = ["Source", "replay"]

FOLDS = 3
_PREDICTED = {"quality": "predicted_quality", "cost_usd": "predicted_cost_usd"}  # made before the round, by the log


class Source(Protocol):
    """Where rounds come from: `selected` of them are judged. See `evaluation.selection.SelectedRounds`."""

    arms: tuple[str, ...]
    dimension: int
    selected: int
    categories: tuple[str, ...]
    tiers: tuple[str, ...]

    def chunks(self, rows: int = ..., *, selected_only: bool = ...) -> Iterator[LoggedRounds]:
        """The rounds in order, at most `rows` at a time."""
        ...


def replay(
    source: Source,
    candidates: Sequence[Candidate],
    standards: Standards,
    *,
    seed: int = 0,
    chunk_rows: int = 50_000,
    progress: Callable[[int, int], None] | None = None,
) -> list[Judgement]:
    """What the log says about each candidate. `seed` is for the bootstrap and for rejection replay.

    `progress` is told of decisions done and to do. Holds one chunk in memory; the candidates' probabilities are kept in
    temporary files between the passes. Raises InvalidInput for what a candidate returns.
    """
    rng = np.random.default_rng(seed)
    trials = [_Trial(candidate, source, int(rng.integers(2**32))) for candidate in candidates]
    total = 2 * source.selected
    done = 0
    in_order = any(candidate.learns for candidate in candidates)
    try:
        for chunk in source.chunks(chunk_rows, selected_only=not in_order):
            picked = chunk.pick(chunk.selected)
            for trial in trials:
                trial.decide(chunk, picked, done)
            done += len(picked)
            if progress is not None:
                progress(done, total)
        start = 0
        for chunk in source.chunks(chunk_rows, selected_only=True):
            for trial in trials:
                trial.add_up(chunk, start)
            start += len(chunk)
            if progress is not None:
                progress(done + start, total)
        draws = bootstrap_draws(max(1, min(source.selected, 1_000)), standards.replicates, rng)
        return [trial.judgement(standards, draws) for trial in trials]
    finally:
        for trial in trials:
            trial.close()


class _Trial:
    """One candidate on its way through both passes."""

    def __init__(self, candidate: Candidate, source: Source, seed: int) -> None:
        self._candidate, self._source = candidate, source
        k, d = len(source.arms), source.dimension
        self._spill: IO[bytes] = tempfile.TemporaryFile(prefix="pointsman-replay-")  # noqa: SIM115 - closed by close
        self._regressions = {name: ArmRegression(k, d, folds=FOLDS) for name in METRICS}
        self._robust = {name: ArmRegression(k, d, folds=FOLDS) for name in METRICS}
        self._asked = np.zeros(k)
        self._observed = {name: np.zeros(k) for name in METRICS}
        self._range = dict.fromkeys(METRICS, (np.inf, -np.inf))
        groups = 2 + len(source.categories) + len(source.tiers)  # all rounds first, those of no group last
        self._tallies = {name: Tally(source.selected, groups) for name in METRICS}
        self._sequences = {name: {"IPS": AnytimeSequence()} for name in METRICS}
        for name in _PREDICTED:
            self._sequences[name]["DR"] = AnytimeSequence()
        self._gaps = np.zeros(k)
        self._weights = np.zeros(3)  # Σ π/p, Σ (π/p)², the largest
        self._rejection = _Rejection(np.random.default_rng(seed))

    def close(self) -> None:
        """Let go of the temporary file."""
        self._spill.close()

    def decide(self, chunk: LoggedRounds, picked: LoggedRounds, start: int) -> None:
        """First pass: the candidate's probabilities, and what the regressions learn from the outcomes."""
        if self._candidate.learns:
            target = self._candidate.probabilities(chunk)[chunk.selected]
        else:
            target = self._candidate.probabilities(picked)
        np.ascontiguousarray(target).tofile(self._spill)
        values = self._candidate.measures.of(picked)
        fold = _fold(start, len(picked))
        self._asked += np.bincount(picked.chosen, minlength=len(self._asked))
        ratio = target[np.arange(len(picked)), picked.chosen] / picked.behaviour[np.arange(len(picked)), picked.chosen]
        self._weights[:2] += ratio.sum(), ratio @ ratio
        self._weights[2] = max(self._weights[2], float(ratio.max(initial=0.0)))
        self._gaps += np.where(picked.behaviour > 0, 0.0, target).sum(axis=0)
        weight = mrdr_weight(_rounds(picked, values["quality"], target))
        designs: dict[bytes, tuple[Design, Design]] = {}
        for name, value in values.items():
            known = ~np.isnan(value)
            if not known.any():
                continue
            key = known.tobytes()  # most metrics are known of the same rounds
            if key not in designs:
                given = (picked.contexts, picked.chosen, fold, (FOLDS, len(self._asked)))
                designs[key] = Design(*given, known=known), Design(*given, known=known, weight=weight)
            self._observed[name] += np.bincount(picked.chosen[known], minlength=len(self._asked))
            low, high = self._range[name]
            self._range[name] = (min(low, float(value[known].min())), max(high, float(value[known].max())))
            self._regressions[name].add(designs[key][0], value)
            self._robust[name].add(designs[key][1], value)
        self._rejection.add(self._candidate, picked, target, values)

    def add_up(self, chunk: LoggedRounds, start: int) -> None:
        """Second pass: every estimator's terms."""
        if start == 0:
            self._spill.seek(0)
        n, k = len(chunk), len(self._source.arms)
        target = np.frombuffer(self._spill.read(n * k * 8)).reshape(n, k)
        values = self._candidate.measures.of(chunk)
        fold, groups = _fold(start, n), self._codes(chunk)
        for name, value in values.items():
            if not self._observed[name].any():
                continue
            low, high = self._range[name]
            share = self._observed[name] / np.maximum(self._asked, 1.0)
            predicted = self._regressions[name].predict(chunk.contexts, fold, low=low, high=high)
            robust = self._robust[name].predict(chunk.contexts, fold, low=low, high=high)
            rounds = Rounds(chunk.chosen, chunk.behaviour, value, target, predicted, share)
            self._tallies[name].add(start, rounds, groups, robust)
            scale = max(high, 1e-300) if name == "cost_usd" else 1.0
            scaled = Rounds(chunk.chosen, chunk.behaviour, value / scale, target, np.zeros_like(target), share)
            for kind, sequence in self._sequences[name].items():
                logged = getattr(chunk, _PREDICTED[name]) / scale if kind == "DR" else None
                sequence.add(scaled if logged is None else scaled.with_predicted(np.nan_to_num(logged)))

    def judgement(self, standards: Standards, draws: FloatArray) -> Judgement:
        """What all of it comes to."""
        source, n = self._source, self._source.selected
        groups = {"category": (*source.categories,), "tier": (*source.tiers,)}
        metrics: dict[str, MetricJudgement] = {}
        for name in METRICS:
            if not self._observed[name].any():
                continue
            scale = self._range[name][1] if name == "cost_usd" else 1.0  # no cost above the largest seen
            anytime = {kind: _scaled(sequence.interval(), scale) for kind, sequence in self._sequences[name].items()}
            judged = judge_metric(
                name, self._tallies[name], standards, draws, groups, bounds=(0.0, scale), anytime=anytime
            )
            metrics[name] = self._rejection.joined(judged, name)
        total, squares, largest = self._weights
        gaps = {arm: float(gap) / n for arm, gap in zip(source.arms, self._gaps, strict=True) if gap > 0}
        return Judgement(
            spec=self._candidate.spec,
            rounds=n,
            effective_samples=float(total**2 / squares) if squares > 0 else 0.0,
            largest_weight=float(largest),
            mean_weight=float(total) / n,
            gap_share=sum(gaps.values()),
            gaps=gaps,
            metrics=metrics,
            notes=tuple(self._candidate.notes),
        )

    def _codes(self, chunk: LoggedRounds) -> NDArray[np.intp]:
        """Groups of each round in the tally: its category, from 1 on, and its tier, behind those; the last for none."""
        n_categories, n_tiers = len(self._source.categories), len(self._source.tiers)
        none = 1 + n_categories + n_tiers
        category = np.where(chunk.category < 0, none, chunk.category + 1)
        return np.stack((category, np.where(chunk.tier < 0, none, chunk.tier + 1 + n_categories)), axis=1)


class _Rejection:
    """Rejection replay of a policy on a log that drew every model alike; nothing on any other."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._uniform = True
        self._sums: dict[str, FloatArray] = {}

    def add(self, candidate: Candidate, chunk: LoggedRounds, target: FloatArray, values: dict[str, FloatArray]) -> None:
        members = np.asarray((chunk.behaviour > 0).any(axis=0))
        self._uniform = self._uniform and is_uniform(chunk.behaviour, members)
        if not self._uniform:
            return
        if isinstance(candidate, Learning):
            drawn = candidate.drawn(chunk, self._rng)
        else:
            cumulated = target.cumsum(axis=1)
            u = self._rng.random((len(chunk), 1)) * cumulated[:, -1:]
            drawn = (cumulated <= u).sum(axis=1)
        for name, value in values.items():
            mean, count = rejection_replay(drawn, chunk.chosen, value)
            if count:
                self._sums[name] = self._sums.get(name, np.zeros(2)) + np.array([mean * count, count])

    def joined(self, judged: MetricJudgement, name: str) -> MetricJudgement:
        """With the estimate of this kind, where there is one."""
        if not self._uniform or name not in self._sums or judged.cannot_tell is not None:
            return judged
        total, count = self._sums[name]
        estimate = Estimate("rejection", float(total / count), rounds=int(count))
        return replace(judged, estimates=(*judged.estimates, estimate))


def _rounds(chunk: LoggedRounds, value: FloatArray, target: FloatArray) -> Rounds:
    k = len(chunk.arms)
    return Rounds(chunk.chosen, chunk.behaviour, value, target, np.zeros_like(target), np.ones(k))


def _fold(start: int, n: int) -> NDArray[np.intp]:
    return (np.arange(start, start + n) % FOLDS).astype(np.intp)


def _scaled(interval: Interval, scale: float) -> Interval:
    return Interval(interval.kind, interval.low * scale, interval.high * scale)
