"""What a call passes before it is routed, and what is told of it after: the gate, rates, the cache, budgets, shadows.

Puts parts together; each keeps its own law. Knows nothing of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.access.ledger import Ledger
from serving.access.rates import Rates, Taken
from serving.records import Caller
from serving.traffic.caching import Caching
from serving.traffic.gate import Gate
from serving.traffic.shadow import Shadows
from serving.wire import Call

__all__ = ["Intake"]


@dataclass(frozen=True, slots=True)
class Intake:
    """The parts, one of each for the whole service."""

    gate: Gate
    rates: Rates
    ledger: Ledger
    shadows: Shadows
    caching: Caching

    async def take(self, call: Call, caller: Caller, now: float) -> Taken:
        """Count a call against the caller's rates at unix time `now`; raises RateLimited.

        Its tokens are the input's estimate and the output's bound, where the caller gave one, until they are known.
        """
        taken = await self.rates.take(caller.principal, call.prompt.input_tokens + (call.max_output_tokens or 0), now)
        caller.headers.update(taken.headers)
        return taken

    def settle(self, taken: Taken, caller: Caller, now: float) -> None:
        """Count the tokens that a call took in truth, as far as they are known: also of one that was given up."""
        self.rates.settle(taken, caller.tokens, now)

    def told(self, caller: Caller, now: float) -> dict[str, str]:
        """The headers that say what is left of the caller's budgets."""
        return self.ledger.headers(caller.principal, now)
