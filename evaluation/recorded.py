"""Outcomes that others measured, read from a folder, and a source that answers from them.

A folder holds `prompts.parquet` (prompt_id, prompt, category, split) and `outcomes.parquet` (prompt_id,
model, run, quality, cost_usd, latency_s, input_tokens, output_tokens; null where not measured). `RecordedSet`
is the data, for benchmarks; `RecordedSource` serves it. Nothing here knows of HTTP or waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput, UnknownArm
from bandit.types import BoolArray, FloatArray, Price
from evaluation.answers import Answer, answer_text, estimate_tokens

__all__ = ["RecordedOutcome", "RecordedSet", "RecordedSource"]

UNMEASURED_LATENCY_S: Final = 0.05
UNKNOWN_PROMPT_NOTE: Final = "This prompt is not among the recorded ones, so this answer has the model's averages. "
PRICE_DIGITS: Final = 5
_PROMPT_COLUMNS: Final = "prompt_id, prompt, category, split"
_KEY_COLUMNS: Final = "prompt_id, model, run"
_MEASURES: Final = ("quality", "cost_usd", "latency_s", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """One model's outcome on one prompt in one run. None: not measured."""

    quality: float | None
    cost_usd: float | None
    latency_s: float | None
    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSet:
    """Prompts in their recorded order, and outcomes as arrays of shape (n_runs, n_models, n_prompts).

    NaN: not measured. `present` says where there is a row at all. Runs and models are sorted by name, so the
    last run is the latest where labels are dates.
    """

    prompt_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    splits: tuple[str, ...]
    runs: tuple[str, ...]
    models: tuple[str, ...]
    present: BoolArray
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray

    @classmethod
    def load(cls, folder: str | Path) -> RecordedSet:
        """Read a folder. Raises InvalidInput for what is missing, duplicated or out of range."""
        prompts = _read(Path(folder) / "prompts.parquet", _PROMPT_COLUMNS)
        measures = ", ".join(f"CAST({name} AS DOUBLE) AS {name}" for name in _MEASURES)
        outcomes = _read(Path(folder) / "outcomes.parquet", f"{_KEY_COLUMNS}, {measures}")
        ids = tuple(map(str, prompts["prompt_id"]))
        if len(set(ids)) != len(ids):
            raise InvalidInput("prompts.parquet", "a prompt_id stands there twice; each must be unique")
        runs = tuple(sorted({str(run) for run in outcomes["run"]}))
        models = tuple(sorted({str(model) for model in outcomes["model"]}))
        present, arrays = _spread(outcomes, runs, models, ids)
        return cls(
            prompt_ids=ids,
            prompts=tuple(map(str, prompts["prompt"])),
            categories=tuple("" if c is None else str(c) for c in prompts["category"]),
            splits=tuple("" if s is None else str(s) for s in prompts["split"]),
            runs=runs,
            models=models,
            present=present,
            **arrays,
        )

    def rows(self, split: str | None = None) -> NDArray[np.intp]:
        """Indices of the prompts of one split (None: of all), in their recorded order."""
        if split is None:
            return np.arange(len(self.prompts), dtype=np.intp)
        if split not in self.splits:
            raise InvalidInput("split", f"no prompt is in {split!r}; there are {', '.join(sorted(set(self.splits)))}")
        return np.flatnonzero(np.array([s == split for s in self.splits]))

    def outcome(self, run: str, model: str, prompt_id: str) -> RecordedOutcome | None:
        """One recorded outcome, None where there is no row. Raises InvalidInput for a name nobody recorded.

        Searches the names; a loop over many prompts had better index the arrays.
        """
        r = _position(self.runs, run, "run")
        m, p = _position(self.models, model, "model"), _position(self.prompt_ids, prompt_id, "prompt_id")
        if not self.present[r, m, p]:
            return None
        quality, cost, latency, tokens_in, tokens_out = (
            None if np.isnan(value := getattr(self, name)[r, m, p]) else float(value) for name in _MEASURES
        )
        return RecordedOutcome(quality, cost, latency, _whole(tokens_in), _whole(tokens_out))

    def models_in(self, run: str) -> tuple[str, ...]:
        """The models with at least one row in a run."""
        there = np.flatnonzero(self.present[_position(self.runs, run, "run")].any(axis=1))
        return tuple(self.models[m] for m in there)

    def models_in_all_runs(self) -> tuple[str, ...]:
        """The models with at least one row in every run."""
        there = np.flatnonzero(self.present.any(axis=2).all(axis=0))
        return tuple(self.models[m] for m in there)

    def list_price(self, model: str) -> Price | None:
        """The *inferred* price, which explains a model's recorded costs best; None when none was recorded.

        Non-negative least squares of cost_usd on input and output tokens over all runs (Lawson and Hanson
        1974, chapter 23), to PRICE_DIGITS significant digits: where costs were computed from a list price,
        that price. Where no call has both tokens and cost, one price for input and output alike, such that
        the tokens which `RecordedSource` makes up cost as much as was recorded in total; single calls then
        cost other than recorded.
        """
        from scipy.optimize import nnls

        m = _position(self.models, model, "model")
        cost = self.cost_usd[:, m].ravel()
        tokens = np.stack([self.input_tokens[:, m].ravel(), self.output_tokens[:, m].ravel()], axis=1)
        known = ~np.isnan(cost)
        whole = known & ~np.isnan(tokens).any(axis=1)
        if whole.any():
            per_million, _ = nnls(tokens[whole], cost[whole] * 1e6)
        elif known.any():
            made_up = np.tile([float(estimate_tokens(text)) for text in self.prompts], len(self.runs))[:, None]
            total_tokens = np.where(np.isnan(tokens), made_up, tokens)[known].sum()
            per_million = np.full(2, cost[known].sum() * 1e6 / max(total_tokens, 1.0))
        else:
            return None
        return Price(*(float(f"{value:.{PRICE_DIGITS}g}") for value in per_million))


@dataclass(frozen=True, slots=True)
class _Typical:
    """What a model did on the whole in one run."""

    quality: float
    latency_s: float
    input_tokens: float
    output_tokens: float


class RecordedSource:
    """Answers a known prompt (its text, exactly) with what was recorded; any other with the model's averages.

    `run` defaults to the last one. `then_run` takes over `after_s` seconds after the start. `models` defaults
    to those that every run named here has. Of several prompts with one text, the first is served. A latency
    that was not measured is the model's median, or UNMEASURED_LATENCY_S when none was. Raises InvalidInput
    for unknown names.
    """

    def __init__(
        self,
        recorded: RecordedSet,
        *,
        run: str | None = None,
        then_run: str | None = None,
        after_s: float = 0.0,
        models: Sequence[str] | None = None,
    ) -> None:
        if not recorded.runs:
            raise InvalidInput("outcomes.parquet", "holds no outcome")
        first = recorded.runs[-1] if run is None else run
        in_use = [first] if then_run is None else [first, then_run]
        offered = [set(recorded.models_in(label)) for label in in_use]
        shared = tuple(model for model in recorded.models if all(model in there for there in offered))
        for model in models or ():
            if model not in shared:
                raise InvalidInput(
                    "models", f"{model!r} is not in {' and '.join(in_use)}; there are {', '.join(shared)}"
                )
        self._recorded = recorded
        self._models = shared if models is None else tuple(dict.fromkeys(models))
        self._run, self._then_run, self._after_s = first, then_run, after_s
        self._run_index = {label: i for i, label in enumerate(recorded.runs)}
        self._model_index = {model: i for i, model in enumerate(recorded.models)}
        self._by_text = {text: i for i, text in reversed(list(enumerate(recorded.prompts)))}
        self._typical = {
            (r, m): _typical(recorded, r, m)
            for r in range(len(recorded.runs))
            for m in range(len(recorded.models))
            if recorded.present[r, m].any()
        }

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that may be asked."""
        return self._models

    @property
    def runs(self) -> tuple[str, ...]:
        """Labels of the recorded runs."""
        return self._recorded.runs

    def run_at(self, elapsed_s: float) -> str:
        """The run it answers from `elapsed_s` after the start."""
        return self._run if self._then_run is None or elapsed_s < self._after_s else self._then_run

    def use_run(self, run: str) -> None:
        """Answer from `run` from now on; a change that was planned no longer happens."""
        _position(self.runs, run, "run")
        self._run, self._then_run = run, None

    def price(self, model: str) -> Price | None:
        """The inferred list price; see `RecordedSet.list_price`."""
        return self._recorded.list_price(model)

    def answer(
        self, model: str, prompt_text: str, category: str | None, rng: np.random.Generator, elapsed_s: float
    ) -> Answer:
        """What was recorded. Raises UnknownArm when the present run lacks the model."""
        del category, rng  # a recording has no chance in it
        run = self.run_at(elapsed_s)
        r, m = self._run_index[run], self._model_index.get(model, -1)
        typical = self._typical.get((r, m))
        if typical is None:
            raise UnknownArm(model, self._recorded.models_in(run))
        recorded, p = self._recorded, self._by_text.get(prompt_text)
        if p is None or not recorded.present[r, m, p]:
            output_tokens = _tokens(typical.output_tokens, prompt_text)
            return Answer(
                text=UNKNOWN_PROMPT_NOTE + answer_text(typical.quality, output_tokens, "estimated"),
                quality=typical.quality,
                latency_s=typical.latency_s,
                input_tokens=_tokens(typical.input_tokens, prompt_text),
                output_tokens=output_tokens,
            )
        quality, latency_s = float(recorded.quality[r, m, p]), float(recorded.latency_s[r, m, p])
        measured = not math.isnan(quality)
        quality = quality if measured else typical.quality
        output_tokens = _tokens(float(recorded.output_tokens[r, m, p]), prompt_text)
        return Answer(
            text=answer_text(quality, output_tokens, "recorded" if measured else "estimated"),
            quality=quality,
            latency_s=typical.latency_s if math.isnan(latency_s) else latency_s,
            input_tokens=_tokens(float(recorded.input_tokens[r, m, p]), prompt_text),
            output_tokens=output_tokens,
        )


def _read(path: Path, columns: str) -> dict[str, NDArray[Any]]:
    import duckdb

    if not path.is_file():
        raise InvalidInput(path.name, f"not found in {path.parent}; give the folder that holds it")
    try:
        with duckdb.connect(":memory:") as connection:
            # Only constants of this module are put into the statement.
            query = f"SELECT {columns} FROM read_parquet(?)"  # noqa: S608
            table: dict[str, NDArray[Any]] = connection.execute(query, [str(path)]).fetchnumpy()
    except duckdb.Error as error:
        raise InvalidInput(path.name, f"cannot be read as expected ({columns}): {error}") from error
    return {name: np.ma.filled(column, np.nan if column.dtype.kind == "f" else "") for name, column in table.items()}


def _spread(
    outcomes: dict[str, NDArray[Any]], runs: tuple[str, ...], models: tuple[str, ...], ids: tuple[str, ...]
) -> tuple[BoolArray, dict[str, FloatArray]]:
    """Rows to arrays of shape (n_runs, n_models, n_prompts): which are present, and each measure by name."""
    shape = (len(runs), len(models), len(ids))
    columns = (("run", runs), ("model", models), ("prompt_id", ids))
    cell = []
    for column, names in columns:
        index = {name: i for i, name in enumerate(names)}
        try:
            cell.append(np.array([index[str(name)] for name in outcomes[column]], dtype=np.intp))
        except KeyError as error:
            raise InvalidInput("outcomes.parquet", f"{column} {error} is not in prompts.parquet") from None
    flat = np.ravel_multi_index((cell[0], cell[1], cell[2]), shape) if len(cell[0]) else np.zeros(0, np.intp)
    present = np.zeros(shape, dtype=np.bool_)
    present.ravel()[flat] = True
    if int(present.sum()) != len(flat):
        raise InvalidInput("outcomes.parquet", "holds two rows for one prompt, model and run")
    arrays = {}
    for name in _MEASURES:
        values, highest = outcomes[name], 1.0 if name == "quality" else np.inf
        if np.any((values < 0.0) | (values > highest)):  # False for NaN
            raise InvalidInput(f"outcomes.parquet.{name}", f"must be between 0 and {highest:g}")
        arrays[name] = np.full(shape, np.nan)
        arrays[name].ravel()[flat] = values
    return present, arrays


def _position(names: tuple[str, ...], name: str, kind: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        some = ", ".join(names[:50])
        raise InvalidInput(kind, f"{name!r} was not recorded; there are {some}") from None


def _typical(recorded: RecordedSet, r: int, m: int) -> _Typical:
    def known(values: FloatArray) -> FloatArray:
        of_model: FloatArray = values[r, m]
        return of_model[~np.isnan(of_model)]

    def median(values: FloatArray, default: float) -> float:
        return float(np.median(known(values))) if len(known(values)) else default

    quality = known(recorded.quality)
    return _Typical(
        quality=float(quality.mean()) if len(quality) else 0.0,
        latency_s=median(recorded.latency_s, UNMEASURED_LATENCY_S),
        input_tokens=median(recorded.input_tokens, np.nan),
        output_tokens=median(recorded.output_tokens, np.nan),
    )


def _tokens(recorded: float, prompt_text: str) -> int:
    return estimate_tokens(prompt_text) if math.isnan(recorded) else round(recorded)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
