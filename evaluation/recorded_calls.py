"""Recorded outcomes of a pool's models, made into workloads for `evaluation.simulation`.

Reads a folder in the canonical form (`evaluation.recorded`) and says what of it had to be left out or filled in. Knows
nothing of configurations or of how a pool learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput
from bandit.types import Context, FloatArray, Price, Prompt
from evaluation.answers import estimate_tokens
from evaluation.recorded import RecordedSet
from evaluation.simulation import Workload

__all__ = ["RecordedCalls", "read_calls"]

_TEST = "test"
_MEASURES = ("quality", "cost_usd", "latency_s", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class RecordedCalls:
    """Prompts, and in each of some runs what every model made of them.

    `runs`: by run its label, which prompts it has, and each measure's array of shape (n_models, n_prompts). `source`
    and `notes` are for people: where it is from, what was left out or filled in.
    """

    models: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    runs: tuple[tuple[str, NDArray[np.intp], Mapping[str, FloatArray]], ...]
    source: str
    notes: tuple[str, ...]

    def workload(
        self, contexts: tuple[Context, ...], rng: np.random.Generator, *, calls: int | None = None
    ) -> tuple[Workload, NDArray[np.intp]]:
        """Calls in random order, run after run, and the index of the run each belongs to, shape (n,).

        `calls` of each run: passes over all its prompts, each in another order; by default one. `contexts`: of the
        prompts.
        """
        orders, parts = [], []
        for part, (_, rows, _) in enumerate(self.runs):
            n = len(rows) if calls is None else calls
            passes = [rng.permutation(rows) for _ in range(-(-n // len(rows)))]
            orders.append(np.concatenate(passes)[:n])
            parts.append(np.full(n, part, dtype=np.intp))
        values = {
            name: np.hstack([run[2][name][:, order] for run, order in zip(self.runs, orders, strict=True)])
            for name in _MEASURES
        }
        return Workload(self.models, contexts, np.concatenate(orders), **values), np.concatenate(parts)


def read_calls(
    folder: Path,
    names: Mapping[str, Sequence[str]],
    prices: Mapping[str, Price | None],
    *,
    runs: Sequence[str] = (),
    split: str | None = None,
) -> RecordedCalls:
    """The outcomes of the models that all of `runs` have (default: the last one), on the prompts of a split.

    `names`: by model, the names it may have been recorded under, the first found counts. `split`: default `test`, or
    all prompts where none is in that. A call's cost is its recorded tokens at the model's price of `prices`; where
    either is not known, the recorded cost. Raises InvalidInput for a folder of another form, unknown labels, or when no
    model was recorded.
    """
    recorded = RecordedSet.load(folder)
    if not recorded.runs:
        raise InvalidInput("outcomes.parquet", "holds no outcome")
    labels = tuple(runs) or recorded.runs[-1:]
    there = set.intersection(*(set(recorded.models_in(label)) for label in labels))
    found = {model: next((name for name in given if name in there), None) for model, given in names.items()}
    rows_of = {model: recorded.models.index(name) for model, name in found.items() if name is not None}
    which = " and ".join(labels)
    if not rows_of:
        some = ", ".join(sorted(there)[:50]) or "none"
        raise InvalidInput("models", f"none of {', '.join(names)} is recorded in run {which}; there are {some}")
    part = split if split is not None else _TEST if _TEST in recorded.splits else None
    asked = recorded.rows(part)
    taken = tuple(_run(recorded, label, rows_of, asked, prices) for label in labels)
    notes = [f"not recorded in run {which}, so left out: {m}" for m, name in found.items() if name is None]
    for label, rows, _ in taken:
        if not len(rows):
            raise InvalidInput("runs", f"run {label} has no outcome of these models in split {part or 'all'}")
        if len(rows) < len(asked):
            notes.append(f"{len(asked) - len(rows)} prompts without any outcome in run {label} are left out")
    several = f", run {' then '.join(labels)}" if len(recorded.runs) > 1 else ""
    return RecordedCalls(
        models=tuple(rows_of),
        prompts=tuple(
            Prompt(text, estimate_tokens(text), category=category or None)
            for text, category in zip(recorded.prompts, recorded.categories, strict=True)
        ),
        runs=taken,
        source=f"{folder}{several}, {f'split {part}' if part else 'all prompts'}",
        notes=(*notes, *_doubts(tuple(rows_of), taken, prices)),
    )


def _run(
    recorded: RecordedSet,
    label: str,
    rows_of: Mapping[str, int],
    asked: NDArray[np.intp],
    prices: Mapping[str, Price | None],
) -> tuple[str, NDArray[np.intp], dict[str, FloatArray]]:
    """One run: its label, the prompts with any outcome, and the measures with costs at `prices`."""
    at = recorded.runs.index(label), list(rows_of.values())
    values: dict[str, FloatArray] = {name: getattr(recorded, name)[at] for name in _MEASURES}
    for row, model in enumerate(rows_of):
        price = prices[model]
        if price is not None:
            rates = price.input_per_million / 1e6, price.output_per_million / 1e6
            usd = values["input_tokens"][row] * rates[0] + values["output_tokens"][row] * rates[1]
            values["cost_usd"][row] = np.where(np.isnan(usd), values["cost_usd"][row], usd)
    return label, asked[recorded.present[at][:, asked].any(axis=0)], values


def _doubts(
    models: tuple[str, ...],
    runs: Sequence[tuple[str, NDArray[np.intp], Mapping[str, FloatArray]]],
    prices: Mapping[str, Price | None],
) -> Iterator[str]:
    """What a reader of the results has to know of the outcomes used."""

    def used(measure: str) -> FloatArray:
        return np.hstack([values[measure][:, rows] for _, rows, values in runs])

    tokens = ~np.isnan(used("input_tokens") + used("output_tokens"))
    unpriced = [model for model in models if prices[model] is None]
    if unpriced:
        yield f"without a price, so their recorded costs are used: {', '.join(unpriced)}"
    untold = [m for m, known in zip(models, tokens, strict=True) if prices[m] is not None and not known.all()]
    if untold:
        yield f"calls without recorded tokens cost what was recorded, whatever the price says: {', '.join(untold)}"
    for measure, meaning in (
        ("quality", "calls without it get no feedback"),
        ("latency_s", "their outcomes come at once, and say nothing about a latency limit"),
    ):
        missing = [m for m, unknown in zip(models, np.isnan(used(measure)), strict=True) if unknown.all()]
        if missing:
            whose = "for any model" if len(missing) == len(models) else f"for {', '.join(missing)}"
            yield f"no {measure} was recorded {whose}: {meaning}"
