"""Whether the service finishes the calls it has and takes no new ones, as operators say; of several workers, of all.

Logged as a change, and never read back: a service that starts anew takes calls. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from serving.errors import ServiceError

__all__ = ["SUBJECT", "Changes", "Drain", "Draining"]

SUBJECT: Final = "drain"


class Draining(ServiceError):
    """The service finishes what it has, by an operator's wish; others may serve this call."""

    retry_after = "5"

    def __init__(self) -> None:
        super().__init__("the service finishes the calls it has and takes no new ones; DELETE /admin/drain ends that")


class Changes(Protocol):
    """What logs change rows: the learner."""

    def change(self, rows: Sequence[Mapping[str, Any]]) -> asyncio.Future[None]:
        """Log; the future resolves once it is durable."""


class Drain:
    """`under_way`: how many inference calls run now."""

    def __init__(self, changes: Changes, under_way: Callable[[], int]) -> None:
        self._changes, self._under_way = changes, under_way
        self.since: float | None = None

    def check(self) -> None:
        """Raises Draining where no new call is taken."""
        if self.since is not None:
            raise Draining

    def status(self) -> dict[str, Any]:
        """As JSON."""
        return {"draining": self.since is not None, "since": self.since, "under_way": self._under_way()}

    async def begin(self, by: str | None, now: float) -> dict[str, Any]:
        """Take no new calls from now on; durable on return. Begun already: nothing changes."""
        if self.since is None:
            await self._change("begun", now, by, now)
        return self.status()

    async def end(self, by: str | None, now: float) -> dict[str, Any]:
        """Take calls again; durable on return."""
        if self.since is not None:
            await self._change("ended", None, by, now)
        return self.status()

    def heard(self, row: Mapping[str, Any]) -> None:
        """Do as the change row of another process says."""
        self.since = float(row["ts"]) if row["what"] == "begun" else None

    async def _change(self, what: str, since: float | None, by: str | None, now: float) -> None:
        row = {"ts": now, "subject": SUBJECT, "what": what, "pool": None, "model": None, "reason": None, "by": by}
        row |= {"before": {"draining": self.since is not None}, "after": {"draining": since is not None}}
        durable = self._changes.change([row])
        self.since = since
        await asyncio.shield(durable)  # an operator who goes away must not cancel what has been done
