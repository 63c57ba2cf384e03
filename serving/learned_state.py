"""What was learned as one piece of plain data, and parts made from a configuration that take it over.

A restart, a replay's start and a reload go through here alike, and so end in the same state. Decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bandit.errors import SnapshotMismatch
from bandit.snapshot import loads

if TYPE_CHECKING:
    from bandit.pool import Pool
    from serving.folds import Fold
    from serving.roster import Roster
    from serving.store import Store

__all__ = ["latest_state", "state_of", "take_over"]

_log = logging.getLogger("pointsman.learner")


def state_of(pools: Mapping[str, Pool], roster: Roster, folds: Iterable[Fold]) -> dict[str, Any]:
    """All of it, for `bandit.snapshot`."""
    return {
        "roster": roster.state(),
        "pools": {name: pool.state() for name, pool in pools.items()},
        "folds": {part.subject: part.state() for part in folds},
    }


def take_over(state: Mapping[str, Any], pools: Mapping[str, Pool], roster: Roster, folds: Iterable[Fold]) -> None:
    """Make parts that are as configured what a state says; what no longer fits is left out, with a warning."""
    if "roster" in state:  # snapshots of earlier versions have none
        roster.load(state["roster"], pools)
    saved = state["pools"]
    for name, pool in pools.items():
        if name in saved:
            try:
                pool.load(saved[name])
            except SnapshotMismatch as error:
                _log.warning("pool %s starts without what it had learned: %s", name, error)
    for part in folds:
        if part.subject in state.get("folds", {}):
            part.load(state["folds"][part.subject])


def latest_state(store: Store) -> tuple[int, dict[str, Any]] | None:
    """(log position, state) of the last snapshot; None where there is none that can be read."""
    found = store.latest_snapshot()
    if found is None:
        return None
    seq, payload = found
    try:
        return seq, loads(payload)
    except SnapshotMismatch as error:
        _log.warning("the snapshot cannot be read, replaying the log instead: %s", error)
        return None
