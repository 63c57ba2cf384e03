"""Other people's bandits behind one small Protocol, for the policy benchmark; one module a peer.

Each adapter hands its library what that library's public interface takes (warm-up data, mean costs, a budget) and
says where that ends. Nothing here reads a data set, measures or reports, and the service never imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Protocol, cast

import numpy as np

from bandit.errors import InvalidInput
from bandit.types import FloatArray

__all__ = ["PEERS", "Peer", "PeerNotInstalled", "Task", "Warm", "make", "warm_rows"]

Warm = tuple[FloatArray, FloatArray, FloatArray]
"""Contexts (n, d), qualities (n, n_arms) and costs in USD (n, n_arms); NaN where not measured."""

_MODULES: Final = {
    "paretobandit": "pareto",
    "vw_squarecb": "vowpal_wabbit",
    "vw_softmax": "vowpal_wabbit",
    "mabwiser_lints": "mabwiser_lints",
    "bayesianbandits": "bayesian_bandits",
    "river_thompson": "river_bandits",
    "river_epsilon": "river_bandits",
    "river_ucb": "river_bandits",
    "river_linucb": "river_bandits",
    "litellm_adaptive": "litellm_adaptive",
}
PEERS: Final[tuple[str, ...]] = tuple(_MODULES)


class Peer(Protocol):
    """One peer, cold or warmed up. It draws inside, with the seed it was made with; it gives no propensities."""

    name: str

    def choose(self, x: FloatArray, category: str = "") -> int:
        """The arm's index for context `x`, shape (d,), whose first element is 1."""
        ...

    def learn(self, x: FloatArray, arm: int, quality: float, cost_usd: float, category: str = "") -> None:
        """Take in what one call yielded: quality in [0, 1] and its real cost in USD.

        The benchmark calls it once for every `choose`, in the same order, though maybe later.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a peer is made for; `make` says what the fields mean."""

    name: str
    n_arms: int
    dimension: int
    seed: int
    usd_per_request: float | None
    mean_cost_usd: FloatArray | None
    warm: Warm | None
    warm_categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.mean_cost_usd is not None and self.mean_cost_usd.shape != (self.n_arms,):
            raise InvalidInput("mean_cost_usd", f"has shape {self.mean_cost_usd.shape}, not ({self.n_arms},)")
        if self.warm is None:
            return
        n = len(self.warm[0])
        shapes = {"contexts": (n, self.dimension), "quality": (n, self.n_arms), "cost_usd": (n, self.n_arms)}
        for (field, shape), array in zip(shapes.items(), self.warm, strict=True):
            if array.shape != shape:
                raise InvalidInput(f"warm.{field}", f"has shape {array.shape}, not {shape}")
        if self.warm_categories and len(self.warm_categories) != n:
            raise InvalidInput("warm_categories", f"there are {len(self.warm_categories)} for {n} rows")

    def mean_costs(self) -> FloatArray:
        """`mean_cost_usd` for a peer that cannot do without. Raises InvalidInput unless there is one an arm."""
        if self.mean_cost_usd is None or not np.isfinite(self.mean_cost_usd).all():
            raise InvalidInput("mean_cost_usd", f"{self.name} weighs costs: give one for each of {self.n_arms} arms")
        return self.mean_cost_usd


class PeerNotInstalled(ModuleNotFoundError):
    """A peer's library is missing; the extra `peers` installs all of them."""

    def __init__(self, peer: str, library: str | None) -> None:
        super().__init__(f"peer {peer!r} needs {library}, which the extra `peers` installs: pip install -e '.[peers]'")
        self.peer = peer


def make(
    name: str,
    *,
    n_arms: int,
    dimension: int,
    seed: int,
    usd_per_request: float | None = None,
    mean_cost_usd: FloatArray | None = None,
    warm: Warm | None = None,
    warm_categories: tuple[str, ...] = (),
) -> Peer:
    """A fresh peer of `PEERS`.

    `mean_cost_usd`, shape (n_arms,): each arm's expected cost of a call, from list prices or warm-up data; needed
    by the peers that weigh costs (`paretobandit`, `litellm_adaptive`). `usd_per_request`: the budget, which only
    `paretobandit` can keep. `warm`: contexts (n, d), qualities (n, n_arms) in [0, 1] and costs in USD (n, n_arms)
    of calls that every arm answered, NaN where not measured; each peer learns from all of it before the first
    `choose`. `warm_categories`: their n request types, for `litellm_adaptive`; without them it warms up type "".
    Raises InvalidInput for a name that is no peer or shapes that disagree, PeerNotInstalled without the library.
    """
    if name not in _MODULES:
        raise InvalidInput("peer", f"{name!r} is none of {', '.join(PEERS)}")
    task = Task(name, n_arms, dimension, seed, usd_per_request, mean_cost_usd, warm, warm_categories)
    try:
        module = import_module(f"benchmarks.peers.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        raise PeerNotInstalled(name, error.name) from error
    create = cast("Callable[[Task], Peer]", module.create)
    return create(task)


def warm_rows(warm: Warm | None) -> Iterator[tuple[int, FloatArray, int, float]]:
    """Each measured outcome of the warm-up data, row by row and arm by arm: (row, context, arm, quality).

    Nothing without warm-up data.
    """
    if warm is None:
        return
    contexts, quality, _ = warm
    for row, arm in np.argwhere(~np.isnan(quality)).tolist():
        yield row, contexts[row], arm, float(quality[row, arm])
