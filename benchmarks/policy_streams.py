"""The recorded outcomes a policy meets, in the order it meets them, and the contexts it sees.

Owns what a set offers (models, prices, contexts) and how its outcomes become a stream. Knows no policy and no figure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput
from bandit.features import Features
from bandit.types import Context, FloatArray, Price, Prompt
from evaluation import RecordedSet
from evaluation.answers import estimate_tokens

__all__ = ["FeatureKind", "Stream", "Study", "contexts_of", "study_of", "swapped"]

FeatureKind = Literal["category", "text", "calibration"]
IndexArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """A recorded set and the models of it that take part: `columns` are their places in its arrays, `prices` theirs."""

    folder: str
    recorded: RecordedSet
    columns: tuple[int, ...]
    models: tuple[str, ...]
    prices: tuple[Price | None, ...]

    @property
    def name(self) -> str:
        """The folder's name."""
        return Path(self.folder).name

    def rows(self, split: str | None) -> IndexArray:
        """Prompts of a split; all of them for None or where the set has no such split."""
        return self.recorded.rows(split if split in self.recorded.splits else None)

    def measured(self, measure: str, run: int = 0) -> FloatArray:
        """quality, cost_usd, latency_s, input_tokens or output_tokens in a run: shape (n_models, n_prompts)."""
        values: FloatArray = getattr(self.recorded, measure)
        return np.asarray(values[run][list(self.columns)])

    def mean_cost_usd(self, rows: IndexArray) -> FloatArray:
        """What a call costs on average by model in the first run, shape (n_models,); NaN where it is unknown."""
        return np.array([_mean(costs) for costs in self.measured("cost_usd")[:, rows]])


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """n calls in order: `prompts` their rows, `part` the run or half each belongs to, both of shape (n,).

    The outcomes every model has for them: shape (n_models, n), NaN where not measured.
    """

    prompts: IndexArray
    part: IndexArray
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
    output_tokens: FloatArray

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, study: Study, prompts: IndexArray, *, run: int = 0, part: int = 0) -> Stream:
        """These prompts in this order, as one run recorded them."""
        return cls(
            prompts=prompts,
            part=np.full(len(prompts), part, dtype=np.intp),
            quality=study.measured("quality", run)[:, prompts],
            cost_usd=study.measured("cost_usd", run)[:, prompts],
            latency_s=study.measured("latency_s", run)[:, prompts],
            output_tokens=study.measured("output_tokens", run)[:, prompts],
        )

    def then(self, other: Stream) -> Stream:
        """First this stream, then the other."""
        return Stream(
            prompts=np.concatenate((self.prompts, other.prompts)),
            part=np.concatenate((self.part, other.part)),
            quality=np.hstack((self.quality, other.quality)),
            cost_usd=np.hstack((self.cost_usd, other.cost_usd)),
            latency_s=np.hstack((self.latency_s, other.latency_s)),
            output_tokens=np.hstack((self.output_tokens, other.output_tokens)),
        )

    def means(self, values: FloatArray, part: int | None = None) -> FloatArray:
        """Each model's mean of `values` (n_models, n) over a part (None: all), shape (n_models,)."""
        picked = values if part is None else values[:, self.part == part]
        return np.array([_mean(row) for row in picked])


def swapped(stream: Stream, one: int, other: int) -> Stream:
    """A stream in whose second half, part 1, two models give each other's quality: a change nobody recorded."""
    part = (np.arange(len(stream)) >= len(stream) // 2).astype(np.intp)
    quality = stream.quality.copy()
    later = part == 1
    quality[one, later], quality[other, later] = stream.quality[other, later], stream.quality[one, later]
    return replace(stream, part=part, quality=quality)


@cache
def study_of(folder: str, models: tuple[str, ...] = (), *, priced: bool = False, all_runs: bool = False) -> Study:
    """A set with these models; none named: those in the first run, or in all runs, and with a price if so wished.

    Raises InvalidInput for unknown names.
    """
    recorded = RecordedSet.load(folder)
    there = np.asarray(recorded.present.any(axis=2))
    offered = np.asarray(there.all(axis=0) if all_runs else there[0]).tolist()
    for model in models:
        if model not in recorded.models or not offered[recorded.models.index(model)]:
            there_are = ", ".join(name for name, here in zip(recorded.models, offered, strict=True) if here)
            raise InvalidInput("models", f"{model!r} is not recorded in the runs this needs; there are {there_are}")
    names = [
        name for name, here in zip(recorded.models, offered, strict=True) if here and (not models or name in models)
    ]
    prices = {name: _price(recorded, name) for name in names}
    kept = tuple(name for name in names if prices[name] is not None or not priced)
    if not kept:
        raise InvalidInput("models", "none is left: no model of this set has a recorded cost")
    columns = tuple(recorded.models.index(name) for name in kept)
    return Study(folder, recorded, columns, kept, tuple(prices[name] for name in kept))


@cache
def contexts_of(folder: str, kind: FeatureKind, clusters: int) -> tuple[Features, tuple[Context, ...]]:
    """Features fitted on the prompts (never outcomes) of the `warm` split, or of all; and every prompt's context.

    `category`: the request's facts and the caller's category. `text`: no category, but one of `clusters` clusters of
    its text, encoded by static embeddings where the extra is installed, else by trigrams. `calibration`: as
    `category`, with the recorded length of the whole request, of which the prompt's text may be the smaller part.
    """
    recorded = RecordedSet.load(folder)
    lengths = [estimate_tokens(text) for text in recorded.prompts]
    if kind == "calibration":
        tokens = recorded.input_tokens.reshape(-1, len(lengths))
        lengths = [
            n if np.isnan(c).all() else round(float(np.nanmedian(c))) for n, c in zip(lengths, tokens.T, strict=True)
        ]
    labels = [None if kind == "text" else label for label in recorded.categories]
    prompts = [Prompt(t, n, category=c) for t, n, c in zip(recorded.prompts, lengths, labels, strict=True)]
    known = [prompts[i] for i in recorded.rows("warm" if "warm" in recorded.splits else None)]
    features = (
        _text_features().fitted(known, clusters=clusters) if kind == "text" else Features(text=None).fitted(known)
    )
    return features, tuple(features.extract(prompt) for prompt in prompts)


def _text_features() -> Features:
    try:
        return Features((), text="embeddings")
    except InvalidInput:
        return Features((), text="trigrams")


def _price(recorded: RecordedSet, model: str) -> Price | None:
    """Its list price; where costs were recorded without tokens, one output token stands for a micro-dollar."""
    at = recorded.models.index(model)
    if not np.isnan(recorded.cost_usd[:, at]).all() and np.isnan(recorded.output_tokens[:, at]).all():
        return Price(0.0, 1.0)
    return recorded.list_price(model)


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
