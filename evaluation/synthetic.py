"""A pool of fictional models given by a table: quality by category, latency, tokens, price. Needs no files.

Qualities are Bernoulli and latencies lognormal, drawn from the generator of each call. Nothing here knows of
HTTP, of waiting, or of faults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bandit.errors import InvalidInput, UnknownArm
from bandit.types import Price
from evaluation.answers import Answer, answer_text, estimate_tokens

__all__ = [
    "CATEGORIES",
    "DEFAULT_POOL",
    "SyntheticModel",
    "SyntheticSource",
    "pool_from_table",
    "sample_prompt",
]

TOKEN_SPREAD: Final = 0.3
"""Sigma of the lognormal by which an answer's length varies about its mean."""

_CATEGORY_TAG = re.compile(r"\s*\[([A-Za-z][A-Za-z0-9_.-]{0,63})\]")


def _check(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidInput(name, f"must be a number between {low:g} and {high:g}, not {value!r}")


@dataclass(frozen=True, slots=True)
class SyntheticModel:
    """One row of the table. `quality`: chance of a right answer by category, `default_quality` elsewhere.

    Latency is lognormal with this median and sigma (of its logarithm). A price of None is unknown, not zero.
    """

    name: str
    default_quality: float
    latency_median_s: float
    latency_sigma: float
    output_tokens_mean: float
    input_per_million: float | None = None
    output_per_million: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise InvalidInput("name", "must be a text that is not empty")
        if not isinstance(self.quality, Mapping):
            raise InvalidInput(f"{self.name}.quality", "must map categories to probabilities")
        for category, probability in {"default_quality": self.default_quality, **self.quality}.items():
            _check(f"{self.name}.quality.{category}", probability, 0.0, 1.0)
        _check(f"{self.name}.latency_median_s", self.latency_median_s, 0.0, 3600.0)
        _check(f"{self.name}.latency_sigma", self.latency_sigma, 0.0, 5.0)
        _check(f"{self.name}.output_tokens_mean", self.output_tokens_mean, 1.0, 1e6)
        if (self.input_per_million is None) != (self.output_per_million is None):
            raise InvalidInput(f"{self.name}.price", "give both input_per_million and output_per_million, or neither")
        for name in ("input_per_million", "output_per_million"):
            if getattr(self, name) is not None:
                _check(f"{self.name}.{name}", getattr(self, name), 0.0, 1e6)

    def quality_for(self, category: str | None) -> float:
        """Probability of a right answer to a prompt of this category."""
        return self.quality.get(category or "", self.default_quality)


# name, quality elsewhere, median and sigma of latency, mean tokens, USD per million in and out, quality by category
_DEFAULT_ROWS: Final = (
    ("swift-small", 0.66, 0.22, 0.22, 90, 0.10, 0.40, {"chat": 0.84, "extraction": 0.82, "code": 0.50, "math": 0.42}),
    ("reed-coder", 0.64, 0.38, 0.25, 160, 0.25, 1.00, {"chat": 0.68, "extraction": 0.78, "code": 0.88, "math": 0.60}),
    ("heron-math", 0.66, 0.80, 0.28, 320, 0.60, 2.40, {"chat": 0.66, "extraction": 0.72, "code": 0.70, "math": 0.93}),
    ("oak-medium", 0.80, 0.55, 0.25, 150, 0.80, 3.20, {"chat": 0.90, "extraction": 0.88, "code": 0.76, "math": 0.72}),
    ("atlas-large", 0.90, 0.95, 0.25, 210, 3.0, 15.0, {"chat": 0.94, "extraction": 0.94, "code": 0.90, "math": 0.88}),
    ("summit-max", 0.92, 2.60, 0.35, 420, 10.0, 40.0, {"chat": 0.93, "extraction": 0.94, "code": 0.93, "math": 0.95}),
)
DEFAULT_POOL: Final = tuple(SyntheticModel(*row) for row in _DEFAULT_ROWS)
"""Cheap models that are strong in one category each, a sound generalist, and one too slow for most limits."""

_PROMPTS: Final[Mapping[str, tuple[str, ...]]] = {
    "chat": (
        "I moved to a new town {a} weeks ago and know nobody. How do I meet people?",
        "My sister turns {a} next month. Suggest {b} small surprises she would remember, in a warm tone.",
        "Tell me in a friendly way why people enjoy getting up at {b} in the morning to go for a walk.",
    ),
    "extraction": (
        'Return the customer, the order number and the total as JSON: "Order {a}-{b}, Ms Lindqvist, {a}.90 EUR."',
        "List every date and place named here: on {b} May the crew left Aarhus and {a} days later came to Bergen.",
        "Extract name, street and postcode into a table: Tomas Keller, Mill Lane {b}, {a}04 Weston.",
    ),
    "code": (
        "Write a Python function `chunks(items, size={b})` that yields lists, and a test with {a} items.",
        "This loop is quadratic: `for i in range({a}): if i in seen: ...`. Rewrite it to run in linear time.",
        "Refactor the class Cache so that get() and put() are O(1) and at most {a} entries are kept. Explain.",
    ),
    "math": (
        "Solve for x: {b}x + {a} = {a}{b}. Show each step of the algebra.",
        "A tank fills at {b} litres a minute and leaks {a} litres an hour. When does it hold 500?",
        "What is the probability that the sum of {b} fair dice exceeds {a}? Derive the number exactly.",
    ),
}
_SHARES: Final = {"chat": 0.35, "extraction": 0.25, "code": 0.25, "math": 0.15}
CATEGORIES: Final = tuple(_SHARES)


def sample_prompt(rng: np.random.Generator) -> tuple[str, str]:
    """A prompt and its category; the text opens with the category's tag and is of that category's kind."""
    category = CATEGORIES[int(rng.choice(len(CATEGORIES), p=list(_SHARES.values())))]
    texts = _PROMPTS[category]
    text = texts[int(rng.integers(len(texts)))].format(a=int(rng.integers(11, 99)), b=int(rng.integers(2, 10)))
    return f"[{category}] {text}", category


def pool_from_table(rows: Iterable[Mapping[str, Any]]) -> tuple[SyntheticModel, ...]:
    """Models from rows as YAML or JSON gives them; keys are SyntheticModel's fields. Raises InvalidInput."""
    models = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidInput(f"models[{number}]", "must be a mapping")
        try:
            models.append(SyntheticModel(**row))
        except TypeError as error:
            raise InvalidInput(f"models[{number}]", str(error)) from None
    return tuple(models)


class SyntheticSource:
    """Answers from a table of models; right or wrong by chance, in the time its latency profile gives.

    The category of a prompt is the one the caller names, else its text's leading tag, as in `[math] Solve
    ...`.
    """

    def __init__(self, pool: Sequence[SyntheticModel] = DEFAULT_POOL) -> None:
        self._pool = {model.name: model for model in pool}
        if not pool or len(self._pool) != len(pool):
            raise InvalidInput("models", "must hold at least one model, and no name twice")

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that may be asked."""
        return tuple(self._pool)

    @property
    def runs(self) -> tuple[str, ...]:
        """None: a table has no runs."""
        return ()

    def run_at(self, elapsed_s: float) -> None:
        """None: a table has no runs."""

    def use_run(self, run: str) -> None:
        """Raises InvalidInput: a table has no runs."""
        raise InvalidInput("run", f"{run!r} cannot be chosen: a synthetic pool has no runs; use latency_multiplier")

    def price(self, model: str) -> Price | None:
        """The price in the table."""
        row = self._pool[model]
        if row.input_per_million is None or row.output_per_million is None:
            return None
        return Price(row.input_per_million, row.output_per_million)

    def answer(
        self, model: str, prompt_text: str, category: str | None, rng: np.random.Generator, elapsed_s: float
    ) -> Answer:
        """One draw: quality 0 or 1, lognormal latency, lognormal length of the given mean."""
        del elapsed_s  # what changes with time is up to the server's conditions
        row = self._pool.get(model)
        if row is None:
            raise UnknownArm(model, self.models)
        quality = float(rng.random() < row.quality_for(category or _tagged_category(prompt_text)))
        z_latency, z_tokens = rng.standard_normal(2).tolist()
        # The mean of exp(s z) is exp(s² / 2), taken off so that the table's number is the mean.
        output_tokens = row.output_tokens_mean * math.exp(TOKEN_SPREAD * z_tokens - TOKEN_SPREAD**2 / 2)
        output_tokens = max(1, round(output_tokens))
        return Answer(
            text=answer_text(quality, output_tokens, "simulated"),
            quality=quality,
            latency_s=row.latency_median_s * math.exp(row.latency_sigma * z_latency),
            input_tokens=estimate_tokens(prompt_text),
            output_tokens=output_tokens,
        )


def _tagged_category(prompt_text: str) -> str | None:
    tag = _CATEGORY_TAG.match(prompt_text)
    return tag[1] if tag else None
