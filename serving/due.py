"""What events called for while nobody led: kept until the log has it, or until this process leads and logs it.

Every process that shares the store keeps it, so whoever leads next has it, wherever it runs. Logs nothing itself, and
knows no pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import orjson

from serving.store import Event

__all__ = ["Due", "Proposal"]

Proposal: TypeAlias = tuple[tuple[Any, ...] | None, Event]
"""What to know it by while it waits for its place, and what is to be logged."""

_KEPT_S: Final = 60.0  # a lease is over sooner; what is older may be due by other settings than those of its time
_MOST: Final = 1_000
_SAYS: Final = ("pool", "model", "constraint_name", "to_state", "subject", "what")
_OF_ONE: Final = "reserved"  # in `after`: what only the process knows that says it


class Due:
    """By what each event says; of two that say the same the later is kept."""

    def __init__(self) -> None:
        self._due: dict[tuple[Any, ...], tuple[float, Proposal]] = {}

    def add(self, proposals: Sequence[Proposal], ts: float) -> None:
        """An event of unix time `ts` called for these, and nobody may have logged them."""
        for proposal in proposals:
            self._due[_said(proposal[1])] = ts, proposal
        while len(self._due) > _MOST:
            del self._due[next(iter(self._due))]

    def logged(self, event: Event) -> None:
        """The log has that."""
        if self._due and event.kind in ("filter_event", "change"):
            self._due.pop(_said(event), None)

    def taken(self, now: float) -> list[Proposal]:
        """All that is not too old, once."""
        due, self._due = self._due, {}
        return [proposal for ts, proposal in due.values() if now - ts <= _KEPT_S]


def _said(event: Event) -> tuple[Any, ...]:
    row = orjson.loads(event.payload)
    after = row.get("after")
    if isinstance(after, dict):
        after.pop(_OF_ONE, None)
    return (event.kind, *(row.get(name) for name in _SAYS), orjson.dumps(after))
