"""What a ledger counts with: a budget's counter of one member, what is set aside, and whole units of USD or tokens.

Values and arithmetic. Never knows what changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bandit.types import Outcome
    from serving.access.budget_settings import BudgetEntry

__all__ = [
    "OK",
    "SPENT",
    "UNITS_PER_USD",
    "WARNED",
    "Counter",
    "Held",
    "Least",
    "Reservation",
    "amount_of",
    "exact",
    "over",
    "unit",
    "units",
    "used",
]

UNITS_PER_USD: Final = 10**12  # a token at 1 USD per million is 10**6 of them: nothing is rounded away
OK, WARNED, SPENT = 0, 1, 2


@dataclass(slots=True)
class Counter:
    """One budget of one member in one window; amounts in the budget's units. `reserved` is of no window."""

    budget: int
    member: str
    start: float
    end: float | None
    spent: int = 0
    reserved: int = 0
    requests: int = 0
    unpriced: int = 0
    saved: int = 0
    told: int = OK  # how far its spending has been reported
    refused: bool = False

    def roll(self, start: float, end: float | None) -> None:
        """A new window; what is reserved may still be spent in it."""
        self.start, self.end, self.refused, self.told = start, end, False, OK
        self.spent = self.requests = self.unpriced = self.saved = 0


Held = tuple[str, int]
"""A counter outside this process, and what is held there."""


@dataclass(slots=True)
class Reservation:
    """What a call under way may still spend. `hard`: some hard budget relies on it, so the call must be bounded."""

    parts: list[tuple[Counter, int]] = field(default_factory=list)
    hard: bool = False
    held: Sequence[Held] = ()


@dataclass(frozen=True, slots=True)
class Least:
    """What the member of a budget that has least left has: as a share of the limit, and in the budget's unit."""

    budget: str
    unit: str
    share: float
    amount: float
    members: int


def unit(entry: BudgetEntry) -> str:
    """What an entry counts: usd or tokens."""
    return "usd" if entry.tokens is None else "tokens"


def units(entry: BudgetEntry, limit: float | None) -> int:
    """A limit in whole units: one at least, since shares of it are told."""
    return max(1, int(limit or 0) if entry.usd is None else round((limit or 0) * UNITS_PER_USD))


def amount_of(entry: BudgetEntry, units: int) -> float | int:
    """Whole units in the entry's unit."""
    return units if entry.usd is None else units / UNITS_PER_USD


def exact(usd: float | None) -> int:
    """USD in whole units; 0 where it is not known."""
    return 0 if usd is None else round(usd * UNITS_PER_USD)


def used(entry: BudgetEntry, outcome: Outcome) -> int:
    """What an outcome takes of a budget, in whole units."""
    return (
        exact(outcome.cost_usd) if entry.usd is not None else (outcome.input_tokens or 0) + (outcome.output_tokens or 0)
    )


def over(counter: Counter, ts: float) -> bool:
    """Whether its window has ended."""
    return counter.end is not None and ts >= counter.end
