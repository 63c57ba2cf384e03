"""Two randomised groups compared: by how much their means differ, with an interval that holds whenever one looks.

Pure arithmetic on sums, all of it a fold: the same observations in any process give the same interval. Knows nothing of
canaries, experiments or what follows from a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log, sqrt
from typing import Any, Literal

from bandit.errors import InvalidInput, SnapshotMismatch

__all__ = ["START", "Comparison", "Group", "Side", "normal_mixture_boundary"]

Side = Literal["treated", "control"]
START = 50  # observations of each group before a stratum says anything: the variance is an estimate
_INFORMATION = 1.5  # · resolution⁻²: where the boundary is tightest, at 11 times that, a decision is expected


def normal_mixture_boundary(information: float, alpha: float, rho: float) -> float:
    """The u with P(∃t: S_t ≥ u(V_t)) ≤ α for sums S whose exp(λS − λ²V/2) is a supermartingale for every λ ≥ 0.

    u(v) = √(2(v + ρ)·ln(√((v + ρ)/ρ)/(2α) + 1)): a half-normal mixture over λ (Robbins, 1970; Howard, Ramdas, McAuliffe
    & Sekhon, 2021, proposition 6 and equation 14). For α = 0.01 it is tightest about v = 11·ρ: 3.3·√v there.
    """
    grown = information + rho
    return sqrt(2.0 * grown * log(sqrt(grown / rho) / (2.0 * alpha) + 1.0))


@dataclass(slots=True)
class Group:
    """Weighted sums of one group's values, for the ratio estimator Σwx/Σw and its error."""

    count: int = 0
    w: float = 0.0
    w2: float = 0.0
    wx: float = 0.0
    w2x: float = 0.0
    w2x2: float = 0.0

    def add(self, x: float, weight: float) -> None:
        """One more value."""
        squared = weight * weight
        self.count += 1
        self.w += weight
        self.w2 += squared
        self.wx += weight * x
        self.w2x += squared * x
        self.w2x2 += squared * x * x

    @property
    def mean(self) -> float:
        """Σwx/Σw; NaN before the first value."""
        return self.wx / self.w if self.w > 0.0 else float("nan")

    def squared_error(self, scale: float) -> float:
        """Estimated variance of `mean`: Σw²(x − mean)²/(Σw)², with one pseudo-observation that is `scale` away.

        Without that, a group of equal values (no error in fifty calls) would seem to have no error at all.
        """
        mean = self.mean
        spread = self.w2x2 - 2.0 * mean * self.w2x + mean * mean * self.w2
        return (max(spread, 0.0) + scale * scale * self.w2 / self.count) / (self.w * self.w)


@dataclass(slots=True)
class _Stratum:
    treated: Group = field(default_factory=Group)
    control: Group = field(default_factory=Group)


class Comparison:
    """The difference "treated minus control" of two means, from values that arrive one at a time.

    *Groups.* Each call must be put into a group at random with a probability that is known and does not depend on its
    answer; `weight` is the inverse of that probability, up to a factor that is the same for the group's whole stratum.
    Then Σwx/Σw estimates the mean over the same calls for both groups, even where a context-dependent policy sent the
    control some of its calls (Hájek's ratio estimator). Missing values must be missing alike in both groups.

    *Strata.* While the shares of the groups are other ones, it is another stratum: differences are taken within strata
    and combined by their information, so that a change of the traffic between two strata is no difference of groups.

    *Interval.* With I_j = 1/(v_treated + v_control) of stratum j, v the estimated squared errors of the means, the
    score Σ I_j·d_j has independent increments in the information Σ I_j, asymptotically (Jennison & Turnbull, 1997), and
    so keeps within `normal_mixture_boundary` of its drift at all times together with probability 1 − α: an asymptotic
    confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, 2024).

    *Limits.* Valid as groups grow, not for every n: a stratum counts from START values of each group on, with one
    pseudo-observation each, and values need finite variance: in [0, 1], or costs whose few largest do not make the sum.
    `relative`: differences are in units of the control's mean. `resolution`: the smallest difference that matters; the
    interval is tightest where that is about to be resolved.
    """

    __slots__ = ("_relative", "_rho", "_strata")

    def __init__(self, resolution: float, *, relative: bool = False) -> None:
        if not 0 < resolution < inf:
            raise InvalidInput("resolution", "must be above 0")
        self._rho = _INFORMATION / resolution**2
        self._relative = relative
        self._strata: dict[int, _Stratum] = {}

    def add(self, side: Side, x: float, *, stratum: int = 0, weight: float = 1.0) -> None:
        """One more value of one group."""
        entry = self._strata.get(stratum)
        if entry is None:
            entry = self._strata[stratum] = _Stratum()
        (entry.treated if side == "treated" else entry.control).add(x, weight)

    def count(self, side: Side, stratum: int | None = None) -> int:
        """How many values a group has, in one stratum or in all."""
        return sum(getattr(entry, side).count for j, entry in self._strata.items() if stratum in (None, j))

    def mean(self, side: Side) -> float:
        """A group's weighted mean over all strata; NaN without a value."""
        groups = [getattr(entry, side) for entry in self._strata.values()]
        total = sum(group.w for group in groups)
        return sum(group.wx for group in groups) / total if total > 0.0 else float("nan")

    @property
    def estimate(self) -> float:
        """The difference of the means, combined over strata; NaN while no stratum has START values of each group."""
        difference, information = self._combined(1.0)
        return difference if information > 0.0 else float("nan")

    def interval(self, alpha: float = 0.05, *, factor: float = 1.0) -> tuple[float, float]:
        """(low, high) for mean(treated) − factor · mean(control); each side misses with probability ≤ α, ever."""
        difference, information = self._combined(factor)
        if information <= 0.0:
            return -inf, inf
        half = normal_mixture_boundary(information, alpha, self._rho) / information
        return difference - half, difference + half

    def against_earlier(self, stratum: int, alpha: float, *, factor: float = 1.0) -> tuple[float, float]:
        """As `interval`, of one stratum's treated against the control of all others, where it has none of its own.

        Not concurrent, and so not randomised: what changed in between is in the difference, too.
        """
        treated = self._strata[stratum].treated if stratum in self._strata else Group()
        control = Group()
        for j, entry in self._strata.items():
            if j != stratum:
                for name in Group.__slots__:
                    setattr(control, name, getattr(control, name) + getattr(entry.control, name))
        alone = Comparison(1.0, relative=self._relative)
        alone._rho, alone._strata = self._rho, {stratum: _Stratum(treated, control)}
        return alone.interval(alpha, factor=factor)

    def state(self) -> list[list[float]]:
        """All sums as plain data; `load` is its inverse."""
        return [
            [float(j), *([float(getattr(group, n)) for group in (s.treated, s.control) for n in group.__slots__])]
            for j, s in self._strata.items()
        ]

    def load(self, state: list[list[float]]) -> None:
        """Take over the sums of another comparison."""
        strata: dict[int, _Stratum] = {}
        size = len(Group.__slots__)
        for j, *sums in state:
            if len(sums) != 2 * size:
                raise SnapshotMismatch("a comparison's state has another length")
            treated, control = (Group(int(part[0]), *part[1:]) for part in (sums[:size], sums[size:]))
            strata[int(j)] = _Stratum(treated, control)
        self._strata = strata

    def summary(self, alpha: float) -> Mapping[str, Any]:
        """What there is to show: estimate, interval, counts and means; None where unknown."""
        low, high = self.interval(alpha)
        return {
            "estimate": _known(self.estimate),
            "low": _known(low),
            "high": _known(high),
            "treated": {"count": self.count("treated"), "mean": _known(self.mean("treated"))},
            "control": {"count": self.count("control"), "mean": _known(self.mean("control"))},
        }

    def _combined(self, factor: float) -> tuple[float, float]:
        """(difference, information), over the strata that have enough of both groups; (0, 0) without one."""
        able = [s for s in self._strata.values() if min(s.treated.count, s.control.count) >= START]
        scale = 1.0
        if self._relative and able:
            scale = sum(s.control.wx for s in able) / sum(s.control.w for s in able)
            if not scale > 0.0:
                return 0.0, 0.0  # a ratio to nothing
        score = information = 0.0
        for s in able:
            error = s.treated.squared_error(scale) + factor**2 * s.control.squared_error(scale)
            share = scale * scale / error
            information += share
            score += share * (s.treated.mean - factor * s.control.mean) / scale
        return (score / information, information) if information > 0.0 else (0.0, 0.0)


def _known(value: float) -> float | None:
    return value if -inf < value < inf else None
