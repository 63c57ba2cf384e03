"""What operators see of budgets, and change while the service runs.

Checks a change before it is made; what it means is the ledger's to know, and that it lasts is the learner's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import isfinite
from typing import Any

from serving.access.ledger import Ledger
from serving.errors import InvalidRequest, UnknownModel
from serving.learner import Learner

__all__ = ["BudgetDesk"]

_MOST = 1e12


class BudgetDesk:
    """Shows and changes the budgets of `ledger`."""

    def __init__(self, ledger: Ledger, learner: Learner) -> None:
        self._ledger, self._learner = ledger, learner

    def listed(self, ts: float) -> list[dict[str, Any]]:
        """Every budget with what is spent of it, and set aside by this process."""
        return self._ledger.listed(ts)

    async def listed_of_all(self, ts: float) -> list[dict[str, Any]]:
        """As `listed`, with what all processes of the service have set aside."""
        return await self._ledger.listed_of_all(ts)

    async def patch(self, name: str, body: Mapping[str, Any], by: str | None, ts: float) -> dict[str, Any]:
        """Another limit for a budget, in its own unit; durable on return. Raises UnknownModel, InvalidRequest."""
        entry, before = self._ledger.entry(name), self._ledger.limit(name)
        if entry is None:
            raise UnknownModel(name, [budget["name"] for budget in self._ledger.listed(ts)], "budget")
        unit = "usd" if entry.tokens is None else "tokens"
        if set(body) != {unit}:
            raise InvalidRequest(f"send {unit}, a number above 0, or null for the configuration's", unit)
        limit = body[unit]
        number = isinstance(limit, int | float) and not isinstance(limit, bool) and isfinite(limit)
        if limit is not None and not (number and 0 < limit <= _MOST and (unit == "usd" or limit == int(limit))):
            raise InvalidRequest(f"must be a number above 0, at most {_MOST:g}, or null", unit)
        row = {"ts": ts, "subject": self._ledger.subject, "what": "limit", "pool": None, "model": None, "by": by}
        row |= {"before": {"budget": name, "limit": before}, "after": {"budget": name, "limit": limit}, "reason": None}
        await asyncio.shield(self._learner.change([row]))
        return next(budget for budget in await self.listed_of_all(ts) if budget["name"] == name)
