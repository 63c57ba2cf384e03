"""Who plays a stream: a learning pool with one of the library's policies, or a peer; and what each did.

The pool is the library's own (choose and update, in virtual time, feedback at once); nothing here stands in for it.
Knows nothing of scenarios, yardsticks or reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bandit.baselines import BestFeasible, EpsilonGreedy, LinUCB, LogisticThompson, SquareCB
from bandit.errors import InvalidInput
from bandit.features import Features
from bandit.filters import Transition
from bandit.policy import Policy
from bandit.pool import Pool
from bandit.thompson import Thompson
from bandit.types import Arm, BoolArray, Constraints, Context, FloatArray, Objective
from bandit.warmup import Experience, warm_start
from benchmarks.peers import PEERS, Peer, make
from benchmarks.policy_streams import FeatureKind, Stream, Study

__all__ = ["OWN", "Conditions", "Trace", "Visitor", "kind_of", "new_peer", "new_pool", "play", "play_peer"]

_THOMPSON: Final = ("pointsman", "thompson_context_free", "thompson_untempered")
_OTHERS: Final[dict[str, Callable[[], Policy]]] = {
    "logistic_thompson": LogisticThompson,
    "linucb": LinUCB,
    "squarecb": SquareCB,
    "best_feasible": BestFeasible,
    "epsilon_greedy": EpsilonGreedy,
}
OWN: Final = ("pointsman", "pointsman_text", *_THOMPSON[1:], *_OTHERS)
"""The library's policies by their names here; `_text` after a name: with clusters of the text for the category."""
_TEXT = "_text"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What every player of a setting is given: budget, limits, objective, and how a pool forgets and explores.

    `warm`: it learns the `warm` split's outcomes beforehand, counted as at most `effective_samples` (None: all).
    """

    usd_per_request: float | None = None
    objective: Objective = field(default_factory=Objective)
    constraints: Constraints = field(default_factory=Constraints)
    warm: bool = False
    effective_samples: float | None = None
    half_life_requests: float = 10_000.0
    exploration_floor: float = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What one player did: the model of each call (a row of the stream's arrays), and what a pool had to say.

    `flagged`: no feasible arm. `transitions`: (call, change of a filter's state), arms as rows of the stream.
    """

    chosen: NDArray[np.intp]
    flagged: BoolArray
    transitions: tuple[tuple[int, Transition], ...]
    choosing_s: float

    def of(self, values: FloatArray) -> FloatArray:
        """Of the stream's `values` (n_models, n) those that were realised, shape (n,)."""
        return np.asarray(values[self.chosen, np.arange(len(self.chosen))])


@dataclass(frozen=True, slots=True)
class Visitor:
    """A look into a running pool: called before each call's decision, and between it and its outcome."""

    before: Callable[[Pool, int], None] | None = None
    between: Callable[[Pool, int, str], None] | None = None


def kind_of(policy: str) -> FeatureKind:
    """`text` for a policy or peer that goes without the category, else `category`."""
    return "text" if policy.endswith(_TEXT) else "category"


def new_pool(study: Study, policy: str, contexts: Sequence[Context], features: Features, given: Conditions) -> Pool:
    """A pool of the study's models, warmed up if so wished. Raises InvalidInput for a name that is no policy."""
    arms = [Arm(name, price) for name, price in zip(study.models, study.prices, strict=True)]
    pool = Pool(
        arms,
        features=features,
        policy=_policy(policy.removesuffix(_TEXT), given.exploration_floor),
        objective=given.objective,
        constraints=given.constraints,
        usd_per_request=given.usd_per_request,
        half_life_requests=given.half_life_requests,
    )
    if given.warm:
        rows = study.rows("warm")
        values = [study.measured(m)[:, rows] for m in ("quality", "output_tokens", "cost_usd", "latency_s")]
        experience = {name: Experience(*(v[i] for v in values)) for i, name in enumerate(study.models)}
        warm_start(pool, [contexts[i] for i in rows], experience, effective_samples=given.effective_samples)
    return pool


def play(
    pool: Pool,
    stream: Stream,
    *,
    models: Sequence[str],
    contexts: Sequence[Context],
    rng: np.random.Generator,
    visitor: Visitor | None = None,
) -> Trace:
    """The stream through a learning pool, whose arms are among `models`, the names of the stream's rows."""
    look = visitor or Visitor()
    row_of = {name: row for row, name in enumerate(models)}
    chosen, flagged = np.empty(len(stream), dtype=np.intp), np.zeros(len(stream), dtype=np.bool_)
    transitions: list[tuple[int, Transition]] = []
    choosing_s = 0.0
    for call, prompt in enumerate(stream.prompts.tolist()):
        if look.before:
            look.before(pool, call)
        begun = time.perf_counter()
        decision = pool.choose(contexts[prompt], rng)
        choosing_s += time.perf_counter() - begun
        if look.between:
            look.between(pool, call, decision.chosen)
        row = row_of[decision.chosen]
        chosen[call], flagged[call] = row, decision.infeasible
        tokens = _known(stream.output_tokens[row, call])
        changes = pool.update(
            decision,
            quality=_known(stream.quality[row, call]),
            latency_s=_known(stream.latency_s[row, call]),
            output_tokens=None if tokens is None else int(tokens),
            cost_usd=_known(stream.cost_usd[row, call]),
        )
        transitions += [(call, change) for change in changes if isinstance(change, Transition)]
    return Trace(chosen, flagged, tuple(transitions), choosing_s)


def new_peer(study: Study, name: str, contexts: Sequence[Context], seed: int, given: Conditions) -> Peer:
    """A peer given what it can use: the budget, mean costs (of the warm split, or of the set), warm-up outcomes."""
    rows = study.rows("warm" if given.warm else None)
    vectors = np.array([contexts[i].x for i in rows], dtype=np.float64)
    costs = study.mean_cost_usd(rows)
    warm = (vectors, study.measured("quality")[:, rows].T, study.measured("cost_usd")[:, rows].T)
    return make(
        name.removesuffix(_TEXT),
        n_arms=len(study.models),
        dimension=vectors.shape[1],
        seed=seed,
        usd_per_request=given.usd_per_request,
        mean_cost_usd=costs if np.isfinite(costs).all() else None,
        warm=warm if given.warm else None,
        warm_categories=tuple(contexts[i].category or "" for i in rows) if given.warm else (),
    )


def play_peer(peer: Peer, contexts: Sequence[Context], stream: Stream) -> Trace:
    """The stream through a peer, which sees the vectors a pool would see."""
    chosen = np.empty(len(stream), dtype=np.intp)
    vectors = {i: contexts[i].x.astype(np.float64) for i in set(stream.prompts.tolist())}
    choosing_s = 0.0
    for call, prompt in enumerate(stream.prompts.tolist()):
        x, category = vectors[prompt], contexts[prompt].category or ""
        begun = time.perf_counter()
        row = peer.choose(x, category)
        choosing_s += time.perf_counter() - begun
        chosen[call] = row
        quality, cost_usd = stream.quality[row, call], stream.cost_usd[row, call]
        if not np.isnan(quality):
            peer.learn(x, row, float(quality), 0.0 if np.isnan(cost_usd) else float(cost_usd), category)
    return Trace(chosen, np.zeros(len(stream), dtype=np.bool_), (), choosing_s)


def _policy(name: str, floor: float) -> Policy:
    makers: dict[str, Callable[[], Policy]] = {
        "pointsman": partial(Thompson, floor),
        "thompson_context_free": partial(Thompson, floor, contextual=False),
        "thompson_untempered": partial(Thompson, floor, exploration_scale=1.0),
        **_OTHERS,
    }
    if name not in makers:
        raise InvalidInput("policies", f"{name!r} is none of {', '.join((*OWN, *PEERS))}")
    return makers[name]()


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
