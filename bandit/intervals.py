"""How sure one may be of a mean of grades: an interval for a proportion.

Plain arithmetic. Knows nothing of models, suites or logs; intervals for weighted rounds are evaluation's matter.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from bandit.errors import InvalidInput

__all__ = ["wilson"]


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval (low, high) for the proportion behind `successes` in `n` independent trials (Wilson, 1927).

    With p = successes/n and z the normal quantile of `confidence`, two-sided:
    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± z·√(p(1−p)/n) it stays in [0, 1] and is of use at
    p = 0 or 1 and for small n; its coverage is `confidence` on average over p, not at each. Without a trial: (0, 1).

    `successes` may be a sum of grades in [0, 1]: grades of mean p have at most the variance p(1 − p) of right or wrong
    (Bhatia & Davis, 2000), so the interval is then wider than need be, never narrower. Raises InvalidInput.
    """
    if n < 0:
        raise InvalidInput("n", "must be at least 0")
    if not 0 <= successes <= n:
        raise InvalidInput("successes", f"must be between 0 and n, {n}")
    if not 0 < confidence < 1:
        raise InvalidInput("confidence", "must be between 0 and 1")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, z2n = successes / n, z * z / n
    centre = (p + z2n / 2) / (1 + z2n)
    half = z * sqrt(p * (1 - p) / n + z2n / (4 * n)) / (1 + z2n)
    # Exactly 0 and 1 at the ends: there the two terms cancel, but for rounding.
    return 0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half)
