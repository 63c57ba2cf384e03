"""The arithmetic of `benchmarks.workers`: what rounds of one service say of a call, and what follows for more cores.

A round has the seconds it took, and of each worker the calls it took and the CPU it used. Measures nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Round", "figures", "shares"]


@dataclass(frozen=True, slots=True)
class Round:
    """Of one service: `calls[i]` and `cpu_s[i]` are worker i's; a service without workers is its own worker 0."""

    wall_s: float
    calls: Sequence[int]
    cpu_s: Sequence[float]
    parent_s: float = 0.0
    valkey_s: float = 0.0

    @property
    def total(self) -> int:
        """Calls of all workers."""
        return sum(self.calls)

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def shares(rounds: Sequence[Round]) -> dict[str, float]:
    """CPU µs of a worker for a call of its own, for one of another's, and on top in worker 0 for one of anybody's.

    Least squares over all workers and rounds: connections fall to workers unevenly, so their parts differ. Of one
    worker all is its own. None is below 0: what the noise has so is 0, and the others are fitted without it.
    """
    names = ["own", "of_others", "on_top_in_worker_0"]
    rows = [
        (calls, r.total - calls, r.total if i == 0 else 0, cpu * 1e6)
        for r in rounds
        for i, (calls, cpu) in enumerate(zip(r.calls, r.cpu_s, strict=True))
    ]
    table = np.array(rows, dtype=float)
    used = [0, 1, 2] if len(rounds[0].calls) > 1 else [0]
    while True:
        found = np.linalg.lstsq(table[:, used], table[:, 3], rcond=None)[0]
        if found.min() >= 0.0 or len(used) == 1:
            break
        used = [column for column, value in zip(used, found, strict=True) if value > found.min()]
    return dict.fromkeys(names, 0.0) | {names[c]: round(float(v), 1) for c, v in zip(used, found, strict=True)}


def figures(rounds: Sequence[Round], one_process_us: float | None = None) -> dict[str, Any]:
    """Medians over the rounds, and the projection: calls a second at which a process of it would use a core whole.

    `one_process_us`: CPU a call of the one process it is compared with. `even`: as if each worker had as many calls.
    """
    each = [_of_round(r) for r in rounds]
    found: dict[str, Any] = {name: round(statistics.median(r[name] for r in each), 1) for name in each[0]}
    count, fitted = len(rounds[0].calls), shares(rounds)
    even_us = (fitted["own"] + (count - 1) * fitted["of_others"]) / count + fitted["on_top_in_worker_0"]
    behind_us = fitted["own"] + (count - 1) * fitted["of_others"]
    found["worker_us"] = fitted
    found["share_of_others"] = round((count - 1) * fitted["of_others"] / behind_us, 3) if behind_us else 0.0
    full = {"busiest": _a_second(found["busiest_us_per_call_of_all"]), "even": _a_second(even_us)}
    if found["valkey_us_per_call"]:
        full["valkey"] = _a_second(found["valkey_us_per_call"])
    found["projection"] = {"full_at_calls_per_s": full}
    if one_process_us:
        ratio = min(value for name, value in full.items() if name != "busiest") * one_process_us / 1e6
        found["projection"]["over_one_process"] = round(ratio, 2)
        found["cpu_over_one_process"] = round(found["cpu_us_per_call"] / one_process_us, 2)
    return found


def _of_round(r: Round) -> dict[str, float]:
    """CPU in µs; the busiest worker is the one that used most."""
    busiest = max(range(len(r.cpu_s)), key=r.cpu_s.__getitem__)
    return {
        "calls_per_s": r.total / r.wall_s,
        "cpu_us_per_call": (sum(r.cpu_s) + r.parent_s) / r.total * 1e6,
        "busiest_us_per_own_call": r.cpu_s[busiest] / max(1, r.calls[busiest]) * 1e6,
        "busiest_us_per_call_of_all": r.cpu_s[busiest] / r.total * 1e6,
        "parent_us_per_call": r.parent_s / r.total * 1e6,
        "valkey_us_per_call": r.valkey_s / r.total * 1e6,
    }


def _a_second(us: float) -> float:
    return round(1e6 / us, 1)
