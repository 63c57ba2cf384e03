"""Arms that joined a running pool: what share they may take until they have shown what they can do.

Owns who is new. Knows nothing of utilities or limits: it caps the probabilities a policy gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bandit.errors import InvalidInput
from bandit.types import FloatArray

__all__ = ["Newcomers"]


class Newcomers:
    """All new arms together get at most `share` of the traffic, each until it has `samples` graded answers."""

    def __init__(self, share: float = 0.25, samples: int = 30) -> None:
        if not 0 < share <= 1:
            raise InvalidInput("newcomers.share", "must be above 0 and at most 1")
        if samples < 0:
            raise InvalidInput("newcomers.samples", "must be at least 0")
        self.share, self.samples = share, samples
        self.names: frozenset[str] = frozenset()

    def replace(self, names: Iterable[str]) -> None:
        """Take over who is new."""
        self.names = frozenset(names)

    def graded(self, name: str, count: float) -> None:
        """An arm has `count` graded answers (discounted) by now."""
        if name in self.names and count >= self.samples:
            self.names -= {name}

    def capped(self, p: FloatArray, names: Sequence[str]) -> FloatArray:
        """Probabilities in which new arms have at most their share; as they were where there is none but new ones."""
        if not self.names:
            return p
        new = np.array([name in self.names for name in names])
        total, known = float(p[new].sum()), ~new & (p > 0.0)
        if total <= self.share or not known.any():
            return p
        p = p.copy()
        p[new] *= self.share / total
        p[known] *= (1.0 - self.share) / p[known].sum()
        return p
