"""What recorded outcomes teach a pool before its first request: prompts, and what each of its models made of them.

Reads a folder in the canonical form (`evaluation.recorded`) and returns the library's values. Knows nothing of
configurations or of how a pool learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bandit.errors import InvalidInput
from bandit.types import Prompt
from bandit.warmup import Experience
from evaluation.answers import estimate_tokens
from evaluation.recorded import RecordedSet

__all__ = ["Recording", "read_recording"]

_WARM = "warm"


@dataclass(frozen=True, slots=True)
class Recording:
    """Prompts, and by model an Experience of shape (n_prompts,), NaN where it was not recorded; `source` for people."""

    prompts: tuple[Prompt, ...]
    experience: Mapping[str, Experience]
    source: str


def read_recording(
    folder: Path, names: Mapping[str, Sequence[str]], *, run: str | None = None, split: str | None = None
) -> Recording:
    """One run of a folder: the prompts of one split, and the outcomes of the models that it has.

    `names`: by model, the names it may have been recorded under, the first found counts. `run`: default the last one.
    `split`: default `warm`, or all prompts where none is in that. Lengths are estimated from the texts, as the service
    does. Raises InvalidInput for a folder of another form, unknown labels, or when no model was recorded.
    """
    recorded = RecordedSet.load(folder)
    if not recorded.runs:
        raise InvalidInput("outcomes.parquet", "holds no outcome")
    label = recorded.runs[-1] if run is None else run
    there = recorded.models_in(label)
    found = {model: next((name for name in given if name in there), None) for model, given in names.items()}
    known = {model: name for model, name in found.items() if name is not None}
    if not known:
        raise InvalidInput(
            "models", f"none of {', '.join(names)} is recorded in run {label!r}; there are {', '.join(there[:50])}"
        )
    part = split if split is not None else _WARM if _WARM in recorded.splits else None
    rows = recorded.rows(part)
    r = recorded.runs.index(label)
    experience = {}
    for model, name in known.items():
        at = (r, recorded.models.index(name), rows)
        experience[model] = Experience(
            recorded.quality[at], recorded.output_tokens[at], recorded.cost_usd[at], recorded.latency_s[at]
        )
    prompts = tuple(
        Prompt(recorded.prompts[i], estimate_tokens(recorded.prompts[i]), category=recorded.categories[i] or None)
        for i in rows
    )
    several = f", run {label}" if len(recorded.runs) > 1 else ""
    return Recording(prompts, experience, f"{folder}{several}, {f'split {part}' if part else 'all prompts'}")
