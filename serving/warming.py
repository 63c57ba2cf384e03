"""Makes a pool's warm start from prompts and outcomes, and prints what came of it.

Fits the features, teaches a fresh pool, and says what the service will do with it. Knows nothing of where records come
from (folders: `evaluation.experience`; the log: `serving.log_experience`) or how a start is kept (`serving.warmstart`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bandit.features import Features
from bandit.pool import Pool
from bandit.posterior import HEADS
from bandit.types import Context, FloatArray, Prompt
from bandit.warmup import Experience, warm_start
from serving.pool_settings import PoolSettings
from serving.pools import build_pool, plain_features
from serving.settings import Settings
from serving.warmstart import WarmStart, disagreement

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Warmed", "fitted_features", "present_features", "render_warmed", "warm"]

_UNKNOWN = "—"


@dataclass(frozen=True, slots=True)
class Warmed:
    """A pool that was taught, with what it was taught by: what `WarmStart` keeps, and what is printed."""

    pool: Pool
    experience: Mapping[str, Experience]
    source: str
    effective_samples: float

    def to_start(self, made_at: float) -> WarmStart:
        """What is kept of it; `made_at` in unix seconds."""
        counts = {name: _count(seen.quality) for name, seen in self.experience.items()}
        return WarmStart(
            self.pool.features.state(), self.pool.state(), self.source, made_at, self.effective_samples, counts
        )


def fitted_features(pool: PoolSettings, prompts: Sequence[Prompt], clusters: int) -> Features:
    """The features of a pool's settings with what prompts teach: names of categories where none are set, clusters.

    Raises InvalidInput for too few texts, or more columns than fit.
    """
    return plain_features(pool).fitted(prompts, clusters=clusters)


def present_features(pool: PoolSettings, start: WarmStart | None) -> Features:
    """The features a service with this warm start serves a pool with."""
    fits = start is not None and disagreement(pool, start) is None
    return Features.from_state(start.features) if start is not None and fits else plain_features(pool)


def warm(
    pool: PoolSettings,
    settings: Settings,
    features: Features,
    contexts: Sequence[Context],
    experience: Mapping[str, Experience],
    *,
    source: str,
    effective_samples: float,
) -> Warmed:
    """A fresh pool taught by `experience` in `contexts`; see `bandit.warmup.warm_start`, also for what it raises."""
    taught = build_pool(pool, settings, features)
    warm_start(taught, contexts, experience, effective_samples=effective_samples)
    return Warmed(taught, experience, source, effective_samples)


def render_warmed(warmed: Warmed, console: Console) -> None:
    """Print what each model was seen to do, and what the pool makes of it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    pool = warmed.pool
    title = Text(f"Pool {pool.name}, from {warmed.source}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "graded", "measured", "mean quality", "mean USD", "mean s"):
        table.add_column(column, overflow="fold", justify="left" if column == "model" else "right")
    for name in pool.names:
        table.add_row(*(Text(cell) for cell in _model_row(name, warmed.experience.get(name))))
    console.print(table)
    for line in _lines(warmed):
        console.print(Text(line), soft_wrap=True)


def _model_row(name: str, seen: Experience | None) -> tuple[str, ...]:
    if seen is None:
        return (name, "0", "0", *[_UNKNOWN] * 3)
    measured = max(_count(seen.latency_s), _count(seen.output_tokens), _count(seen.cost_usd))
    means = (_mean(seen.quality, ".4f"), _mean(seen.cost_usd, ".3g"), _mean(seen.latency_s, ".3g"))
    return (name, f"{_count(seen.quality):,}", f"{measured:,}", *means)


def _lines(warmed: Warmed) -> Iterator[str]:
    pool, most = warmed.pool, warmed.effective_samples
    cold = [name for name in pool.names if name not in warmed.experience]
    if cold:
        yield f"  nothing recorded, so the prior stays: {', '.join(cold)}"
    used = ", ".join(f"{head} {'yes' if on else 'no'}" for head, on in zip(HEADS, pool.heads.uses_slopes, strict=True))
    yield f"  context used for: {used}"
    features = pool.features
    names = "hashed" if features.categories is None else ", ".join(features.categories) or "none"
    clusters = "" if features.clusters is None else f"; {len(features.clusters)} clusters of text"
    yield f"  categories: {names}{clusters}; features {features.version}"
    if pool.pacer is not None:
        yield f"  λ starts at {pool.pacer.multiplier:.4g}, for {pool.pacer.usd_per_request:g} USD a request"
    yield (
        f"  each model counts for at most {most:,g} observations of each kind:"
        f" after {most:,g} calls of its own, what it does now weighs as much as what is believed here"
    )


def _count(values: FloatArray) -> int:
    return int((~np.isnan(values)).sum())


def _mean(values: FloatArray, form: str) -> str:
    return f"{float(np.nanmean(values)):{form}}" if _count(values) else _UNKNOWN
