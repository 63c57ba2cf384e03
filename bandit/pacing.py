"""Keeps a pool's realised spend at its budget: a price on cost in the utility, and a bound that no window may pass.

Owns the multiplier λ and the ledger of the last 1,000 requests. Knows nothing of arms or policies: it is told what
requests cost, and says what a dollar weighs and how many may be spent on the next one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bandit.errors import InvalidInput, SnapshotMismatch

__all__ = ["Pacer"]

WINDOW = 1000
OVERSPEND = 0.01
_KEPT_BACK = 0.005  # of it, for calls that cost more than was thought possible
_STEP = 0.003
_SMALLEST_MULTIPLIER = 0.01  # below it steps are additive, above it relative to λ itself
_LARGEST_GAP = 4.0  # one very dear call moves λ by at most four average budgets


class Pacer:
    """Dual ascent on the budget for the average, and a token bucket for every window.

    *Multiplier*: `λ ← [λ + η·(λ + λ₀)·(c/B − 1)]₊` on realised cost, the gap clipped at 4; the policy subtracts
    `λ·ĉ/B` from each arm's utility (Agrawal & Devanur, 2014). The step is relative to λ, which is mirror descent with
    the entropy as its mirror map (Balseiro, Lu & Mirrokni, 2023): what λ has to be depends on how far costs lie apart,
    over orders of magnitude, and no absolute step suits them all. Near 0 it is the additive step `η·λ₀`.

    *Bucket*: each request brings B; what is not spent stays for 1,000 requests, then expires. `room_usd` is what the
    next request may cost so that no 1,000 requests in a row cost more than 1.01·1,000·B, half of that 1 % kept back. At
    the start the bucket holds the other half (5·B), as if B had been spent on each of 1,000 requests before: a stream
    of n ≤ 1,000 requests costs at most `n·B + 10·B`. A request's expected cost is booked when it is decided and put
    right when its real cost is known; whoever chooses compares `room_usd` with the worst it expects. The bound is
    passed only by as much as realised costs pass that by more than is kept back (one answer of 28 budgets did, on real
    outcomes), by calls in flight that cost more than expected, and by the cheapest arm, which must remain where nothing
    is affordable.
    """

    def __init__(self, usd_per_request: float) -> None:
        if not usd_per_request > 0:
            raise InvalidInput("budget.usd_per_request", "must be above 0")
        self.usd_per_request = usd_per_request
        self.multiplier = 0.0
        self._ledger_usd = np.full(WINDOW, usd_per_request)  # cost of the request at step s, at s mod WINDOW
        self._spent_usd = float(self._ledger_usd.sum())

    def room_usd(self, step: int) -> float:
        """The most that the request at `step` may cost, in USD; negative while the window is overspent."""
        most_usd = (1.0 + OVERSPEND - _KEPT_BACK) * WINDOW * self.usd_per_request
        return most_usd - (self._spent_usd - float(self._ledger_usd[step % WINDOW]))

    def reserve(self, step: int, expected_usd: float) -> None:
        """Book the request at `step`, the one after the last, at its expected cost ≥ 0."""
        self._book(step, expected_usd - float(self._ledger_usd[step % WINDOW]))

    def settle(
        self, made_at: int, now: int, reserved_usd: float, cost_usd: float | None, withheld_usd: float = 0.0
    ) -> None:
        """What the request made at step `made_at` really cost; None: unknown, what was booked stays. `now` ≥ made_at.

        A request that left the window meanwhile moves λ only.
        """
        if cost_usd is None:
            return
        if now - made_at <= WINDOW:
            self._book(made_at, cost_usd - reserved_usd)
        self._move((cost_usd + withheld_usd) / self.usd_per_request - 1.0)

    def settle_more(self, made_at: int, now: int, cost_usd: float | None) -> None:
        """What a further attempt at the request made at step `made_at` cost on top; one request brings one budget."""
        if cost_usd is None:
            return
        if now - made_at <= WINDOW:
            self._book(made_at, cost_usd)
        self._move(cost_usd / self.usd_per_request)

    @property
    def spent_share(self) -> float:
        """What the last 1,000 requests cost, as a share of their budget; at the start it counts as spent."""
        return self._spent_usd / (WINDOW * self.usd_per_request)

    def state(self) -> dict[str, Any]:
        """Everything that was learned; `load` is its inverse."""
        return {"multiplier": self.multiplier, "usd": self._ledger_usd.copy()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state; dollars stay dollars where the budget has changed."""
        usd = np.asarray(state["usd"], dtype=np.float64)
        if usd.shape != (WINDOW,):
            raise SnapshotMismatch("the pacer's ledger has another length")
        self.multiplier = float(state["multiplier"])
        self._ledger_usd = usd.copy()
        self._spent_usd = float(usd.sum())

    def _move(self, gap: float) -> None:
        change = _STEP * (self.multiplier + _SMALLEST_MULTIPLIER) * min(gap, _LARGEST_GAP)
        self.multiplier = max(0.0, self.multiplier + change)

    def _book(self, step: int, change_usd: float) -> None:
        self._ledger_usd[step % WINDOW] += change_usd
        self._spent_usd += change_usd
        if step % WINDOW == 0:  # rounding must not add up
            self._spent_usd = float(self._ledger_usd.sum())
