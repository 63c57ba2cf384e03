"""What `replay` and `report` share: what a user writes after `--policy`, and times, and where results go.

A pool of a configuration becomes a candidate here, since only the command line knows both sides. Opens no log.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bandit.pool import Pool
    from evaluation.candidates import Candidate
    from evaluation.measures import Measures
    from evaluation.selection import SelectedRounds
    from serving.settings import PoolSettings, Settings

__all__ = ["candidate_of", "check_places", "measures_of", "parse_time"]


def check_places(page: Path | None, json_out: Path | None) -> None:
    """What can be known to go wrong at the end is said at the beginning. Raises InvalidInput."""
    from bandit.errors import InvalidInput

    for path in (page, json_out):
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidInput(str(path), "its folder does not exist")
    if page is not None:
        from evaluation.report_svg import canvas

        with canvas(1.0, 1.0):
            pass


def parse_time(text: str | None, option: str) -> float | None:
    """A time in unix seconds, from ISO 8601 (UTC unless it says otherwise), unix seconds, or an age: 7d, 12h."""
    from bandit.errors import InvalidInput

    if text is None:
        return None
    age = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if age:
        return time.time() - float(age[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[age[2]]
    if re.fullmatch(r"\d+(?:\.\d+)?", text) and len(text.partition(".")[0]) >= 9:
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            option, f"{text!r} is no time; write 2026-01-31T08:00, unix seconds, or an age: 7d"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def measures_of(pool: PoolSettings, settings: Settings, latency_limit_s: float | None = None) -> Measures:
    """Reward, cost and slow calls as a pool of a configuration has them."""
    from evaluation.measures import Measures

    prices = {name: settings.model(name).to_arm().price for name in pool.models}
    limit = latency_limit_s or pool.constraints.p95_latency_s
    return Measures(pool.to_objective(), prices, limit)


def candidate_of(spec: str, rounds: SelectedRounds, measures: Measures, log_paths: Sequence[Path] = ()) -> Candidate:
    """The candidate a `--policy` names. Raises InvalidInput, ConfigError.

    `measures`: for those that bring none; `log_paths`: a warm start's features are looked for beside these, too.
    """
    from evaluation.candidates import named, of_callable

    if spec.startswith("config:"):
        return _pool_candidate(spec, rounds, measures, log_paths)
    if spec.startswith("python:"):
        return of_callable(spec, measures)
    return named(spec, rounds.arms, measures)


def _pool_candidate(spec: str, rounds: SelectedRounds, measures: Measures, log_paths: Sequence[Path]) -> Candidate:
    from bandit.errors import InvalidInput
    from evaluation.learning import Learning

    file, mark, rest = spec.removeprefix("config:").partition("#")
    name, _, changes = rest.partition("?")
    if not file or not mark or not name:
        raise InvalidInput("--policy", f"{spec!r} must be config:FILE#POOL, then ?PATH=VALUE&PATH=VALUE if need be")
    settings, pool = _configured(Path(file), name, changes.split("&") if changes else [])
    notes: list[str] = []
    if pool.constraints.on_infeasible == "fail":
        refusing = f"pool.{name}.constraints.on_infeasible=least_violation"
        settings, pool = _configured(Path(file), name, [*(changes.split("&") if changes else []), refusing])
        notes.append("on_infeasible is taken for least_violation: a call refused has no outcome to judge")
    unknown = [model for model in pool.models if model not in rounds.arms]
    if unknown:
        notes.append(f"never in the log, so nothing is known of: {', '.join(unknown)}")
        rounds.admit(unknown)
    if pool.feedback.missing != "ignore":
        notes.append("quality that was only assumed (feedback.missing) is not learned here, as the service learned it")
    limit = measures.latency_limit_s if pool.constraints.p95_latency_s is None else pool.constraints.p95_latency_s
    make = _maker(pool, settings, rounds, log_paths, notes)
    return Learning(spec, make, measures_of(pool, settings, limit), notes=notes, answers=rounds.answers())


def _configured(file: Path, name: str, changes: Sequence[str]) -> tuple[Settings, PoolSettings]:
    from bandit.errors import InvalidInput
    from serving.settings import load_settings

    paths = [change if change.startswith(("pool.", "model.")) else f"pool.{name}.{change}" for change in changes]
    settings = load_settings(file, os.environ, overrides=paths, offline=True)
    pool = next((pool for pool in settings.pools if pool.name == name), None)
    if pool is None:
        known = ", ".join(pool.name for pool in settings.pools)
        raise InvalidInput("--policy", f"{file} has no pool {name!r}; there are {known}")
    return settings, pool


def _maker(
    pool: PoolSettings, settings: Settings, rounds: SelectedRounds, log_paths: Sequence[Path], notes: list[str]
) -> Callable[[], Pool]:
    """Makes the pool as it starts, with the features that the log's contexts were made with."""
    from bandit.errors import InvalidInput
    from bandit.features import Features
    from serving.pools import build_pool, plain_features, start_pool
    from serving.warmstart import read_warm_starts

    if plain_features(pool).version == rounds.version:
        return lambda: build_pool(pool, settings)
    folders = [settings.server.data_dir, *(path if path.is_dir() else path.parent for path in log_paths)]
    for folder in dict.fromkeys(folders):
        for start in read_warm_starts(folder).values():
            features = Features.from_state(start.features)
            if features.version != rounds.version:
                continue
            if start.made_at <= rounds.first_ts:
                notes.append(f"starts from the warm start in {folder}, as the log's service may have")
                return lambda: start_pool(pool, settings, start)
            notes.append(f"starts cold: the warm start in {folder} is younger than the log and knows its future")
            return lambda: build_pool(pool, settings, features)
    raise InvalidInput(
        "--policy",
        f"the log's contexts have features {rounds.version}, which neither the pool {pool.name!r} makes nor a"
        f" warmstart.npz beside the log or in {settings.server.data_dir}: prompts are not logged, so contexts cannot be"
        " made anew; use the log's features settings",
    )
