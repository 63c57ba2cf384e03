"""The file a warm start is kept in, beside the stores: per pool its features, what it learned, and from what.

Owns the file's form and when a pool's settings agree with it. Knows neither how a warm start is made nor where its
records came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.features import Features
from bandit.snapshot import dumps, loads
from serving.pool_settings import PoolSettings

__all__ = [
    "FILE_NAME",
    "WarmStart",
    "WarmStartUnusable",
    "disagreement",
    "packed",
    "read_warm_starts",
    "write_warm_starts",
]

FILE_NAME = "warmstart.npz"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What one pool starts from.

    `features` and `state` are the library's (`Features.state`, `Pool.state`); `source` says what it was made from, for
    people; `made_at` is in unix seconds; `counts` are the graded answers per model.
    """

    features: Mapping[str, Any]
    state: Mapping[str, Any]
    source: str
    made_at: float
    effective_samples: float
    counts: Mapping[str, int]


class WarmStartUnusable(Exception):
    """The file at `path` cannot be read as a warm start, for `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot use {path}: {reason}; make it anew with `pointsman warmstart`, or move it away")
        self.path, self.reason = path, reason


def read_warm_starts(data_dir: Path) -> dict[str, WarmStart]:
    """The warm start of each pool that has one; none without a file. Raises WarmStartUnusable, OSError."""
    path = data_dir / FILE_NAME
    try:
        saved = loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except SnapshotMismatch as error:
        raise WarmStartUnusable(path, str(error)) from None
    if saved.get("format") != _FORMAT:
        raise WarmStartUnusable(path, f"its format is {saved.get('format')!r} and this program reads {_FORMAT}")
    try:
        starts = {name: WarmStart(**start) for name, start in saved["pools"].items()}
        for start in starts.values():
            Features.from_state(start.features)
    except InvalidInput as error:
        raise WarmStartUnusable(path, str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WarmStartUnusable(path, f"it is not of the right form ({error})") from None
    return starts


def packed(starts: Mapping[str, WarmStart]) -> bytes:
    """The file's contents."""
    return dumps({"format": _FORMAT, "pools": {name: asdict(start) for name, start in starts.items()}})


def write_warm_starts(data_dir: Path, starts: Mapping[str, WarmStart]) -> Path:
    """Replace the file, whole or not at all, even if the power fails meanwhile; returns its path. Raises OSError."""
    path = data_dir / FILE_NAME
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    payload = packed(starts)
    temporary = data_dir / f"{FILE_NAME}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(data_dir, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def disagreement(pool: PoolSettings, start: WarmStart) -> str | None:
    """Which feature setting of a pool differs from its warm start's, in words; None where they agree."""
    ours, theirs = pool.features, start.features
    text = theirs["text"] or "none"
    if text != ours.text:
        return f"features.text is {ours.text}, and was {text}"
    if theirs["vector"] != ours.vector:
        return f"features.vector is {ours.vector}, and was {theirs['vector']}"
    if ours.categories is not None and list(ours.categories) != theirs["categories"]:
        return "features.categories are others"
    return None
