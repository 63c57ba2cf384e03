"""State beside the pools' that is a fold over the log: what operators set, what was spent, whose keys there are.

The contract alone. A part never changes itself: it proposes rows, the learner logs them, and the logged row is what
changes it, live and when the log is replayed; so a restart finds everything as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from bandit.types import Feedback, Outcome
    from serving.records import Record

__all__ = ["ChangeRow", "Fold"]

ChangeRow = Mapping[str, Any]
"""`{ts, subject, what, pool, model, before, after, reason, by}`, any of the last six None; more keys stay out of the
analytical log."""


class Fold(Protocol):
    """One part; `subject` marks its change rows, and is its key in a snapshot. All calls are in the log's order."""

    @property
    def subject(self) -> str:
        """Marks its rows."""
        ...

    def changed(self, row: ChangeRow) -> None:
        """Act on a change of this subject; what cannot be done any more is logged and left out, never raised."""

    def decided(self, record: Record) -> None:
        """A decision was recorded."""

    def outcome(self, record: Record, outcome: Outcome) -> Sequence[ChangeRow]:
        """An attempt ended; returns the changes this calls for (ignored in a replay: the log has them)."""

    def feedback(self, record: Record, feedback: Feedback) -> Sequence[ChangeRow]:
        """Feedback came, `record` being as before it; returns as `outcome` does."""

    def state(self) -> dict[str, Any]:
        """Everything as plain data; `load` is its inverse."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state of an earlier life."""
