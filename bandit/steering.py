"""What stands above the policy for one request: who is out, fixed shares, a canary's share, a session's arm.

Arithmetic on probabilities alone: whatever is combined, the result is the exact distribution the arm is drawn from.
Knows nothing of canaries, sessions or operators; those say what they want as a `Steer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.types import BoolArray, FloatArray, Mode

__all__ = ["UNSTEERED", "Steer", "fixed_shares", "kept_arm", "mixed"]


@dataclass(frozen=True, slots=True)
class Steer:
    """What is to be, whatever the policy would do; arrays have shape (n_arms,) in the pool's order.

    `available`: False for arms that can take no call now; they get nothing, not even probes. `held`: arms the policy
    may not choose; they get their part of `mixed` alone. `shares` (≥ 0): these instead of the policy, over what is
    feasible and available. `mixed`: (arm, share) each, shares summing to at most 1, taken out of all else evenly; an
    arm that is infeasible or unavailable gets none. `keep`: an arm that stays unless it is out, or the best arm's mean
    utility beats its own by more than `margin`. `greedy`: the arm of the best mean utility, unexplored. `mode`: what
    the decision is logged as.
    """

    available: BoolArray | None = None
    held: BoolArray | None = None
    shares: FloatArray | None = None
    mixed: tuple[tuple[int, float], ...] = ()
    keep: int | None = None
    margin: float = 0.0
    greedy: bool = False
    mode: Mode = "bandit"

    @property
    def open(self) -> BoolArray | None:
        """The arms the policy may choose; None: all."""
        if self.held is None:
            return self.available
        return ~self.held if self.available is None else self.available & ~self.held


UNSTEERED = Steer()


def fixed_shares(shares: FloatArray, compliance: FloatArray) -> FloatArray:
    """`shares` over the arms of compliance above 0, normalised to sum 1; evenly where none of those has a share."""
    p = np.where(compliance > 0.0, shares, 0.0)
    total = p.sum()
    if total <= 0.0:
        p = (compliance > 0.0).astype(np.float64)
        total = p.sum()
    return np.asarray(p / total)


def mixed(p: FloatArray, parts: tuple[tuple[int, float], ...], allowed: BoolArray) -> FloatArray:
    """(1 - Σ sᵢ) p + Σ sᵢ eᵢ over the parts whose arm is allowed; where `p` is all 0, the parts share all."""
    if parts:
        parts = tuple((arm, share) for arm, share in parts if allowed[arm] and share > 0.0)
    if not parts:
        return p
    total = sum(share for _, share in parts)
    rest = p.sum()
    scale = (1.0 - min(total, 1.0)) if rest > 0.0 else 0.0
    out = p * scale
    grown = max(total, 1.0) if rest > 0.0 else total
    for arm, share in parts:
        out[arm] += share / grown
    return np.asarray(out)


def kept_arm(mean: FloatArray, feasible: BoolArray, steer: Steer) -> int | None:
    """The arm that a session or a tool loop stays with, by mean utilities; None: the policy is to choose."""
    if (steer.keep is None and not steer.greedy) or not feasible.any():
        return None
    best = int(np.where(feasible, mean, -np.inf).argmax())
    if steer.keep is not None and feasible[steer.keep]:
        return best if mean[best] > mean[steer.keep] + steer.margin else steer.keep
    return best if steer.greedy else None
