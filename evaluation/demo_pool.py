"""The pool that `pointsman demo` and `pointsman upstreams --demo` run on: models, limits, prompts, and what is true.

Owns the choice of models and limits, for a simulated table and for recorded outcomes, and says what any model would
have yielded for a prompt. Knows neither processes nor the router.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.special import ndtr

from bandit.errors import InvalidInput
from evaluation.answers import estimate_tokens
from evaluation.recorded import RecordedSet, RecordedSource
from evaluation.synthetic import CATEGORIES, DEFAULT_POOL, SyntheticModel, SyntheticSource, sample_prompt

__all__ = ["DEMO_MODELS", "DemoPool", "Expected", "recorded_pool", "simulated_pool"]

TIME_SCALE: Final = 0.2
"""A minute must show thousands of calls, so everything takes a fifth of its time, and the limit is as much lower."""

RECORDED_TIME_SCALE: Final = 0.1
MAX_RECORDED_MODELS: Final = 12
MAX_CATEGORIES: Final = 24
P95_LATENCY_S: Final = 2.0 * TIME_SCALE
MIN_ACCURACY: Final = 0.7
COST_REFERENCE_USD: Final = 0.004
TIMEOUT_S: Final = 10.0
_SERVER: Final = {"data_dir": "./pointsman-demo-data", "shutdown_grace_s": 2.0}

_WEAK: Final = SyntheticModel(
    "wren-tiny", 0.25, 0.15, 0.22, 60, 0.05, 0.20, {"chat": 0.35, "extraction": 0.22, "code": 0.10, "math": 0.08}
)
DEMO_MODELS: Final = (_WEAK, *(model for model in DEFAULT_POOL if model.name != "swift-small"))
"""By construction: one too weak, one too slow, a sound generalist that suits most calls best, two specialists that
beat it at code and at mathematics, and one that is best at nearly everything and dear."""

FAVOURITE: Final = "oak-medium"


@dataclass(frozen=True, slots=True)
class Expected:
    """What one model is expected to yield for one prompt; `slow`: probability that it takes longer than the limit."""

    quality: float
    cost_usd: float | None
    slow: float


@dataclass(frozen=True, slots=True)
class DemoPool:
    """A pool and what to run on it. `runs`: the recorded runs in their order, empty for a simulated pool.

    `favourite`: the model that its table makes the policy favour, None where that is not known beforehand.
    `sample` draws a prompt's text and category. `expected(model, text, category, latency_factor, run)` is the truth
    that the router never sees. Latencies, and the limit with them, are the table's times `time_scale`.
    """

    source: SyntheticSource | RecordedSource
    kind: str
    time_scale: float
    p95_latency_s: float | None
    min_accuracy: float
    options: Mapping[str, Any]
    runs: tuple[str, ...]
    favourite: str | None
    sample: Callable[[np.random.Generator], tuple[str, str]]
    expected: Callable[[str, str, str, float, str | None], Expected]

    @property
    def config_options(self) -> dict[str, Any]:
        """Keyword arguments of `config_yaml` that make the router's configuration for this pool."""
        return {"pool_options": self.options, "server": _SERVER, "timeout_s": TIMEOUT_S}


def simulated_pool(p95_latency_s: float | None = None, min_accuracy: float | None = None) -> DemoPool:
    """The pool from the table, its limits replaced by those given."""
    source = SyntheticSource(DEMO_MODELS)
    limit_s = P95_LATENCY_S if p95_latency_s is None else p95_latency_s
    accuracy = MIN_ACCURACY if min_accuracy is None else min_accuracy
    table = {model.name: model for model in DEMO_MODELS}

    def expected(model: str, text: str, category: str, latency_factor: float, run: str | None) -> Expected:
        del run
        row, price = table[model], source.price(model)
        median_s = row.latency_median_s * TIME_SCALE * latency_factor
        return Expected(
            quality=row.quality_for(category),
            cost_usd=None if price is None else price.cost_usd(estimate_tokens(text), row.output_tokens_mean),
            slow=float(ndtr(math.log(median_s / limit_s) / row.latency_sigma)),
        )

    return DemoPool(
        source=source,
        kind="simulated",
        time_scale=TIME_SCALE,
        p95_latency_s=limit_s,
        min_accuracy=accuracy,
        options=_pool_options(limit_s, accuracy, COST_REFERENCE_USD, CATEGORIES),
        runs=(),
        favourite=FAVOURITE,
        sample=sample_prompt,
        expected=expected,
    )


def recorded_pool(
    folder: Path,
    run: str | None = None,
    p95_latency_s: float | None = None,
    min_accuracy: float | None = None,
) -> DemoPool:
    """A pool from a folder of recorded outcomes: its last two runs, one after the other, or only `run`.

    Takes the models that have prices and are in all of these runs, at most twelve, the most accurate. Limits not given
    are such that about a third of the models keep the one on latency and most keep the one on accuracy.
    Raises InvalidInput.
    """
    recorded = RecordedSet.load(folder)
    if run is not None and run not in recorded.runs:
        raise InvalidInput("run", f"{run!r} was not recorded; there are {', '.join(recorded.runs)}")
    runs = recorded.runs[-2:] if run is None else (run,)
    names = _choose(recorded, runs)
    source = RecordedSource(recorded, run=runs[0], models=names)
    facts = _Facts.of(recorded, runs, names)
    scale = RECORDED_TIME_SCALE
    limit_s = p95_latency_s
    if limit_s is None and not np.isnan(facts.p95_s).all():
        limit_s = round(float(np.nanquantile(facts.p95_s, 1 / 3)) * scale, 2)
    accuracy = min_accuracy
    if accuracy is None:
        accuracy = round(float(np.quantile(facts.quality, 0.2)) - 0.05, 2)
    cost_reference_usd = 1.25 * facts.dear_usd
    categories = sorted({category for category in recorded.categories if category})
    return DemoPool(
        source=source,
        kind="recorded",
        time_scale=scale,
        p95_latency_s=limit_s,
        min_accuracy=accuracy,
        options=_pool_options(limit_s, accuracy, cost_reference_usd, categories),
        runs=tuple(runs),
        favourite=None,
        sample=_Deck(recorded),
        expected=_Recorded(recorded, source, limit_s, scale),
    )


def _pool_options(
    limit_s: float | None, min_accuracy: float, cost_reference_usd: float, categories: Sequence[str]
) -> dict[str, Any]:
    """Objective, limits and policy. Filters and forgetting are quicker than by default: a run is short."""
    objective = {"quality": 1.0, "cost": 0.2, "cost_reference_usd": float(f"{cost_reference_usd:.2g}")}
    constraints = {"min_accuracy": min_accuracy, "accuracy_evidence": "feedback"}
    if limit_s is not None:
        objective |= {"latency": 0.05, "latency_reference_s": limit_s}
        constraints = {"p95_latency_s": limit_s, **constraints}
    options: dict[str, Any] = {
        "objective": objective,
        "constraints": constraints,
        "filters": {"unknown_share": 0.3},
        "policy": {"kind": "thompson", "half_life_requests": 2000},
    }
    if 0 < len(categories) <= MAX_CATEGORIES:
        options["features"] = {"text": "none", "categories": list(categories)}
    return options


def _choose(recorded: RecordedSet, runs: Sequence[str]) -> list[str]:
    common = [model for model in recorded.models if all(model in recorded.models_in(label) for label in runs)]
    priced = [model for model in common if recorded.list_price(model) is not None]
    names = priced or common
    if len(names) < 2:
        raise InvalidInput("outcomes", f"{' and '.join(runs)} have {len(names)} models in common; a pool needs two")
    quality = dict(zip(names, _Facts.of(recorded, runs, names).quality.tolist(), strict=True))
    best = sorted(names, key=lambda model: -quality[model])[:MAX_RECORDED_MODELS]
    return sorted(best)


@dataclass(frozen=True, slots=True)
class _Facts:
    """Per model: mean quality, worst run's p95 latency (NaN: not measured); and the most accurate one's mean cost."""

    quality: np.ndarray
    p95_s: np.ndarray
    dear_usd: float

    @staticmethod
    def of(recorded: RecordedSet, runs: Sequence[str], names: Sequence[str]) -> _Facts:
        r = [recorded.runs.index(label) for label in runs]
        m = [recorded.models.index(model) for model in names]

        def part(values: np.ndarray) -> np.ndarray:
            return values[np.ix_(r, m)]

        quality = _mean(part(recorded.quality), (0, 2))
        quality = np.where(np.isnan(quality), 0.0, quality)
        p95 = [
            max(
                (float(np.quantile(known, 0.95)) for row in rows if (known := row[~np.isnan(row)]).size), default=np.nan
            )
            for rows in part(recorded.latency_s).transpose(1, 0, 2)
        ]
        cost = float(_mean(part(recorded.cost_usd), (0, 2))[int(quality.argmax())])
        return _Facts(quality, np.array(p95), 0.001 if math.isnan(cost) or cost <= 0 else cost)


def _mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=axes), known.sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class _Deck:
    """The recorded prompts in random order, shuffled again when all have been asked."""

    def __init__(self, recorded: RecordedSet) -> None:
        self._cards = list(zip(recorded.prompts, recorded.categories, strict=True))
        self._order: list[int] = []

    def __call__(self, rng: np.random.Generator) -> tuple[str, str]:
        if not self._order:
            self._order = rng.permutation(len(self._cards)).tolist()
        return self._cards[self._order.pop()]


class _Recorded:
    """What the source would have answered, remembered: its texts are long to make."""

    def __init__(self, recorded: RecordedSet, source: RecordedSource, limit_s: float | None, time_scale: float) -> None:
        self._sources = {
            run: RecordedSource(recorded, run=run, models=source.models)
            for run in recorded.runs
            if all(model in recorded.models_in(run) for model in source.models)
        }
        self._prices = {model: source.price(model) for model in source.models}
        self._limit_s, self._time_scale = limit_s, time_scale
        self._known: dict[tuple[str | None, str, str], tuple[Expected, float]] = {}
        self._rng = np.random.default_rng(0)  # a recording draws nothing

    def __call__(self, model: str, text: str, category: str, latency_factor: float, run: str | None) -> Expected:
        found = self._known.get((run, model, text))
        if found is None:
            answer = self._sources[run or ""].answer(model, text, category, self._rng, 0.0)
            price = self._prices[model]
            cost_usd = None if price is None else price.cost_usd(answer.input_tokens, answer.output_tokens)
            found = Expected(answer.quality, cost_usd, 0.0), answer.latency_s * self._time_scale
            self._known[run, model, text] = found
        expected, latency_s = found
        slow = self._limit_s is not None and latency_s * latency_factor > self._limit_s
        return replace(expected, slow=float(slow))
