"""What is known of the request under way beside what it asks: its id, its decision, its trace, what went wrong.

One object for each request; log lines find it by the context they are written in. It must never hold a prompt or key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bandit.types import Decision, Outcome
    from serving.endpoint import Endpoint
    from serving.telemetry.trace_context import TraceContext
    from serving.telemetry.traces import Trace
    from serving.upstream import ModelEndpoints
    from serving.wire import Call

__all__ = ["ABOUT", "About", "under_way"]

ABOUT = "pointsman.about"  # where a request keeps its own
under_way: ContextVar[About | None] = ContextVar("under_way", default=None)


@dataclass(slots=True)
class About:
    """`context`: the caller's trace. `trace`: ours of the call, None where it is not traced; then this costs nothing.

    `error`: the code of what was answered, or broke off, instead of an answer.
    """

    request_id: str = ""
    context: TraceContext | None = None
    trace: Trace | None = None
    decision: Decision | None = None
    error: str | None = None

    def admitted(self, call: Call) -> None:
        """The call may be made."""
        if self.trace is not None:
            self.trace.admitted(call)

    def deciding(self) -> None:
        """A model is about to be chosen."""
        if self.trace is not None:
            self.trace.deciding()

    def decided(self, decision: Decision) -> None:
        """It was; or an answer was found for which none is needed."""
        self.decision = decision
        if self.trace is not None:
            self.trace.decided(decision)

    def logging(self, durable: asyncio.Future[None]) -> None:
        """The decision is being written; the future resolves once it is durable."""
        if self.trace is not None:
            self.trace.logging(durable)

    def attempting(self, number: int, model: ModelEndpoints, endpoint: Endpoint) -> Mapping[str, str] | None:
        """An attempt begins; what it is to pass upstream of the trace, ours or the caller's."""
        if self.trace is not None:
            return self.trace.attempting(number, model, endpoint)
        return None if self.context is None else self.context.headers()

    def attempted(self, outcome: Outcome) -> None:
        """It has ended."""
        if self.trace is not None:
            self.trace.attempted(outcome)
