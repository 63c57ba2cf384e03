"""A simulated run as a log of the service: the same events, copied by the same analytical log.

Told of a run's events one by one (it is what `evaluation.simulation` calls an observer). Knows neither where a run
comes from nor the operational store: what it keeps goes to the file in batches and is then forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from bandit.errors import InvalidInput
from bandit.pool import Change, Pool
from bandit.scorer import reward
from bandit.types import Decision, Feedback, Outcome
from serving.admission import Principal
from serving.analytics import AnalyticalLog
from serving.records import Labels, decision_event, feedback_event, filter_event, outcome_event
from serving.store import Event, Store

__all__ = ["SimulatedLog"]

_BATCH_EVENTS = 20_000
_LABELS = Labels(Principal(user="simulation"))


class SimulatedLog:
    """Writes the file at `path`, which must not be there yet, as a run of `pool` goes on; `close` writes the rest.

    Raises InvalidInput for a file that is there, OSError when it cannot be written.
    """

    def __init__(self, path: Path, pool: Pool) -> None:
        if path.exists():
            raise InvalidInput("--log", f"{path} is there already; name a new file")
        self._pool, self._path = pool, path
        self._events = _Events()
        # Of a store it uses what `_Events` has: `read` and `position`.
        self._log = AnalyticalLog(path, cast("Store", self._events), batch_events=_BATCH_EVENTS, memory_limit_mb=512)
        self._returned: dict[str, tuple[float | None, float | None]] = {}
        self._ts = 0.0

    def decided(self, decision: Decision) -> None:
        """A call was routed."""
        self._add([decision_event(decision, _LABELS)])

    def came_back(self, outcome: Outcome) -> None:
        """The model answered."""
        self._returned[outcome.decision_id] = outcome.cost_usd, outcome.latency_s
        self._ts = outcome.ts
        self._add([outcome_event(outcome)])

    def graded(self, feedback: Feedback) -> None:
        """Feedback came; a run grades an answer once."""
        cost_usd, latency_s = self._returned.pop(feedback.decision_id)
        self._ts = feedback.ts
        value = reward(self._pool.objective, feedback.quality, cost_usd, latency_s)
        self._add([feedback_event(feedback, value)])

    def changed(self, decision: Decision, changes: Sequence[Change]) -> None:
        """What was told of last changed standings or reset heads."""
        self._add([filter_event(decision.pool, self._pool.names, change, self._ts) for change in changes])

    def close(self) -> None:
        """Write what is left and let go of the file."""
        self._flush()
        asyncio.run(self._log.close())

    def _add(self, events: Sequence[Event]) -> None:
        self._events.append(events)
        if len(self._events.kept) >= _BATCH_EVENTS:
            self._flush()

    def _flush(self) -> None:
        while self._log.lag_events:
            copied = asyncio.run(self._log.flush())
            if not copied or self._log.rejected_events:
                reason = self._log.last_error or "the file is in use, or an event did not fit its table"
                raise OSError(f"cannot write {self._path}: {reason}")
            self._events.forget(self._log.position)


class _Events:
    """As much of a store as the analytical log uses: numbered events, kept until they were copied."""

    def __init__(self) -> None:
        self.kept: list[Event] = []
        self.position = 0

    def append(self, events: Sequence[Event]) -> None:
        for event in events:
            self.position += 1
            self.kept.append(replace(event, seq=self.position))

    def read(self, after_seq: int, limit: int) -> list[Event]:
        first = max(0, after_seq - (self.position - len(self.kept)))
        return self.kept[first : first + limit]

    def forget(self, up_to_seq: int) -> None:
        del self.kept[: len(self.kept) - (self.position - up_to_seq)]
