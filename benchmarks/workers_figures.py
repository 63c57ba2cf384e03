"""The arithmetic of `benchmarks.workers`: what rounds of one service say of a call, and what follows for more cores.

A round has the seconds it took, and of each worker the calls it took and the CPU it used. Measures nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Round", "figures"]


@dataclass(frozen=True, slots=True)
class Round:
    """Of one service: `calls[i]` and `cpu_s[i]` are worker i's; a service without workers is its own worker 0.

    `listener_s`: of a process on the same store that takes no calls.
    """

    wall_s: float
    calls: Sequence[int]
    cpu_s: Sequence[float]
    parent_s: float = 0.0
    valkey_s: float = 0.0
    listener_s: float = 0.0

    @property
    def total(self) -> int:
        """Calls of all workers."""
        return sum(self.calls)

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def figures(rounds: Sequence[Round], one_process_us: float | None = None, others_us: float = 0.0) -> dict[str, Any]:
    """Medians over the rounds, and the projection: calls a second at which a process of it would use a core whole.

    `one_process_us`: CPU a call of the one process it is compared with; `others_us`: of a process that only folds
    others' calls. *Even*: as if connections had fallen to the workers evenly.
    """
    each = [_of_round(r) for r in rounds]
    found: dict[str, Any] = {name: round(statistics.median(r[name] for r in each), 1) for name in each[0]}
    count = len(rounds[0].calls)
    found["share_of_others"] = round((count - 1) * others_us / (found["even_us_per_call_of_all"] * count), 3)
    full = {
        name: round(1e6 / found[f"{name}_us_per_call{of}"], 1)
        for name, of in (("busiest", "_of_all"), ("even", "_of_all"), ("valkey", ""))
        if found[f"{name}_us_per_call{of}"]
    }
    found["projection"] = {"full_at_calls_per_s": full}
    if one_process_us:
        first_full = min(value for name, value in full.items() if name != "busiest")
        found["projection"]["over_one_process"] = round(first_full * one_process_us / 1e6, 2)
    return found


def _of_round(r: Round) -> dict[str, float]:
    """CPU in µs; the busiest worker is the one that used most."""
    busiest = max(range(len(r.cpu_s)), key=r.cpu_s.__getitem__)
    return {
        "calls_per_s": r.total / r.wall_s,
        "cpu_us_per_call": (sum(r.cpu_s) + r.parent_s) / r.total * 1e6,
        "busiest_us_per_own_call": r.cpu_s[busiest] / max(1, r.calls[busiest]) * 1e6,
        "busiest_us_per_call_of_all": r.cpu_s[busiest] / r.total * 1e6,
        "even_us_per_call_of_all": sum(r.cpu_s) / len(r.cpu_s) / r.total * 1e6,
        "parent_us_per_call": r.parent_s / r.total * 1e6,
        "valkey_us_per_call": r.valkey_s / r.total * 1e6,
    }
