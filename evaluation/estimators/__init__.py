"""Estimators of a policy's value from logged rounds, each a short pure function from `Rounds` to `Terms`.

`ESTIMATORS` names those without a setting; the ones with a threshold are tuned by `slope`. Nothing here reads a log.
"""

from __future__ import annotations

from collections.abc import Callable

from evaluation.estimators.direct import direct_method
from evaluation.estimators.doubly_robust import doubly_robust, self_normalised_dr, shrunk_dr, switch_dr
from evaluation.estimators.inverse_propensity import clipped_ips, ips, self_normalised_ips
from evaluation.rounds import Rounds, Terms

__all__ = ["ESTIMATORS", "TUNED"]

ESTIMATORS: dict[str, Callable[[Rounds], Terms]] = {
    "DM": direct_method,
    "IPS": ips,
    "SNIPS": self_normalised_ips,
    "DR": doubly_robust,
    "SNDR": self_normalised_dr,
}
TUNED: dict[str, Callable[[Rounds, float], Terms]] = {
    "clipped IPS": clipped_ips,
    "Switch-DR": switch_dr,
    "DRos": shrunk_dr,
}
"""Estimators with a threshold: the larger it is, the less bias and the more variance. `slope` chooses it."""
