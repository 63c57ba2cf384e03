"""Which model one call goes to: the pool's choice under all that stands above it, or the one model it names.

What stands above, the first that applies: models that are disabled or down, or whose protocol cannot say the call > the
model of the call's session > no exploration inside a tool-call loop > an experiment > a canary > the operator's weights
> the policy. Only puts together what the parts say; the probabilities are `bandit.steering`'s, and nothing is recorded
or sent here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import numpy as np

from bandit.policy import one_hot
from bandit.pool import Pool
from bandit.steering import Steer, fixed_shares
from bandit.types import BoolArray, Context, Decision, FloatArray, Mode
from serving.errors import InvalidRequest, NotAllowed, NothingAvailable, UnknownModel
from serving.learner import Learner
from serving.records import Caller, Labels
from serving.traffic.experiments import Experiment
from serving.traffic.sessions import Kept, session_hash
from serving.traffic.settings import VariantSettings
from serving.traffic.state import PoolTraffic, Traffic
from serving.wire import Call, Kind

__all__ = ["Endpoints", "Steering", "unlearned"]

_RETRY_AFTER_S = 5.0
_NO_FEATURES = np.zeros(0, dtype=np.float32)


class Endpoints(Protocol):
    """What is known of the models' endpoints."""

    def __contains__(self, model: object) -> bool:
        """Whether there is such a model."""
        ...

    def available(self, model: str) -> bool:
        """Whether it can take a call now."""
        ...

    def rested(self, model: str) -> bool:
        """Whether it can, and did not ask for rest."""
        ...

    def all_ready(self, models: Sequence[str], call: Call) -> bool:
        """Whether nothing stands in the way of any: each serves and can say the call, is up and rested."""
        ...

    def serves(self, model: str, kind: Kind) -> bool:
        """Whether it serves calls of this kind at all."""
        ...

    def can_say(self, model: str, call: Call) -> bool:
        """Whether its protocol can say what the call asks for."""
        ...


@dataclass(slots=True)
class _Call:
    """One call of a pool and what is known of it before anything is chosen; arrays in the pool's order."""

    call: Call
    caller: Caller
    ts: float
    pool: Pool
    traffic: PoolTraffic
    available: BoolArray
    held: BoolArray
    mixed: tuple[tuple[int, float], ...]
    session: str | None
    kept: Kept | None

    @property
    def keep(self) -> int | None:
        """The session's arm, where it can take the call."""
        if self.kept is None or self.kept.model not in self.pool.names:
            return None
        arm = self.pool.names.index(self.kept.model)
        on_canary = any(part == arm for part, share in self.mixed if share > 0.0)
        return arm if self.available[arm] and (on_canary or not self.held[arm]) else None

    @property
    def free(self) -> BoolArray:
        """Arms that can take the call and are not held out."""
        return np.asarray(self.available & ~self.held)

    def shares(self, weights: Mapping[str, float]) -> FloatArray:
        """Weights in the pool's order; a model they do not name gets none."""
        return np.array([weights.get(name, 0.0) for name in self.pool.names])


class Steering:
    """Decides calls. `key` hashes sessions, `rng` draws where the pool's own arithmetic is not to be used."""

    def __init__(
        self, learner: Learner, traffic: Traffic, endpoints: Endpoints, key: bytes, rng: np.random.Generator
    ) -> None:
        self._learner, self._traffic, self._endpoints = learner, traffic, endpoints
        self._key, self._rng = key, rng

    def decide(self, call: Call, caller: Caller, ts: float) -> tuple[Decision, Labels]:
        """The decision for a call and what is logged beside it. Nothing is recorded yet.

        Raises UnknownModel, NotAllowed, NothingAvailable, InvalidRequest, NothingFeasible, LimitsNotMet.
        """
        if call.model in self._learner.pools:
            return self._of_pool(self._seen(call, caller, ts))
        if call.model not in self._endpoints:
            raise UnknownModel(call.model, [*self._learner.pools, *self._learner.roster.names])
        if not self.serves(call.model, call.kind):
            raise _wrong_kind(call)
        if call.limits.set:
            message = f"{call.model!r} is one model, and limits choose among those of a pool: leave them out"
            raise InvalidRequest(message, "model", "limits_need_pool")
        if not self._traffic.usable(call.model, call.model):
            raise NotAllowed(f"{call.model!r} is disabled by the operator")
        one = np.ones(1)
        decision = unlearned(call, self._learner.ids.new(ts), ts, (call.model,), one > 0.0, one, 0, "pinned")
        return decision, Labels(caller.principal, caller.tags)

    def labels(self, call: Call, caller: Caller) -> Labels:
        """What is logged beside any decision about a call of a pool."""
        return Labels(caller.principal, caller.tags, self._session(call, caller))

    def serves(self, name: str, kind: Kind) -> bool:
        """Whether a pool, by any of its models, or a model serves calls of this kind."""
        names = self._learner.pools[name].names if name in self._learner.pools else (name,)
        return any(self._endpoints.serves(model, kind) for model in names)

    def outside(self, call: Call, caller: Caller, ts: float, model: str) -> tuple[Decision, Labels]:
        """The decision for a call whose pool can take none: `model`, which the operator has named for that.

        It begins no session and no experiment, and teaches the pool nothing: the model need not even be in it.
        """
        one = np.ones(1)
        decision = unlearned(call, self._learner.ids.new(ts), ts, (model,), one > 0.0, one, 0, "weighted")
        return replace(decision, policy_version="fallback"), Labels(caller.principal, caller.tags)

    def _seen(self, call: Call, caller: Caller, ts: float) -> _Call:
        pool, traffic = self._learner.pools[call.model], self._traffic.pools[call.model]
        available = self._available(pool, call)
        held, mixed = traffic.canary.steer(pool.names)
        session = self._session(call, caller)
        kept = None if session is None else traffic.sessions.find(session, ts)
        return _Call(call, caller, ts, pool, traffic, available, held, mixed, session, kept)

    def _session(self, call: Call, caller: Caller) -> str | None:
        """The hash of its session's name, within tenant and pool."""
        if call.session is None:
            return None
        return session_hash(self._key, caller.principal.tenant, call.model, call.session)

    def _available(self, pool: Pool, call: Call) -> BoolArray:
        """Arms that can take the call, by operators and endpoints; at least one."""
        names, usable, endpoints = pool.names, self._traffic.usable, self._endpoints
        if self._traffic.all_usable(pool.name) and endpoints.all_ready(names, call):
            return np.ones(len(names), dtype=np.bool_)
        serving = {name for name in names if endpoints.serves(name, call.kind)}
        if not serving:
            raise _wrong_kind(call)
        able = [name in serving and usable(pool.name, name) and endpoints.available(name) for name in names]
        available = np.array(able, dtype=np.bool_)
        sayable = np.array([endpoints.can_say(name, call) for name in names], dtype=np.bool_)
        if sayable.any():  # where none can, the one that is chosen says what is wrong
            available &= sayable
        if not available.any():
            raise _nothing_available(pool)
        rested = available & np.array([endpoints.rested(name) for name in names], dtype=np.bool_)
        # Where all were told to rest, one of them is asked all the same.
        return np.asarray(rested if rested.any() else available)

    def _of_pool(self, seen: _Call) -> tuple[Decision, Labels]:
        labels = Labels(seen.caller.principal, seen.caller.tags, seen.session)
        if seen.traffic.learning == "bypass":
            return self._bypassed(seen), labels
        experiment, variant = self._variant(seen, labels)
        decision = self._decided(seen, variant)
        if decision.mode == "sticky":
            kept = seen.kept
            stayed = kept is not None and kept.model == decision.chosen
            return decision, (replace(labels, experiment=kept.experiment) if kept is not None and stayed else labels)
        if experiment is None or variant is None:
            return decision, labels
        return self._over_variants(seen, experiment, variant, decision), replace(
            labels, experiment=experiment.label(variant)
        )

    def _variant(self, seen: _Call, labels: Labels) -> tuple[Experiment | None, VariantSettings | None]:
        """The first experiment that takes the call, and what it gets there."""
        for experiment in seen.traffic.experiments.values():
            unit = experiment.unit(labels)
            variant = None if unit is None else experiment.variant(unit)
            if variant is not None and self._open(seen)[seen.shares(variant.shares) > 0.0].any():
                return experiment, variant
        return None, None

    def _open(self, seen: _Call) -> BoolArray:
        """Arms that fixed shares may go to."""
        return np.asarray(seen.free & (seen.pool.filters.compliance() > 0.0))

    def _decided(self, seen: _Call, variant: VariantSettings | None) -> Decision:
        call = seen.call
        on_canary = any(seen.available[arm] for arm, share in seen.mixed if share > 0.0)
        if not seen.free.any() and not on_canary and seen.keep is None:
            raise _nothing_available(seen.pool)
        return self._learner.decide(call.model, call.prompt, seen.ts, call.limits, self._steer(seen, variant))

    def _steer(self, seen: _Call, variant: VariantSettings | None) -> Steer:
        traffic, loop, keep = seen.traffic, seen.call.in_tool_loop, seen.keep
        held, mixed = seen.held, seen.mixed
        mode: Mode = "canary" if mixed else "bandit"
        shares: FloatArray | None = None
        if variant is not None:
            shares, mixed, mode = seen.shares(variant.shares), (), "weighted"
        elif traffic.weights is not None or traffic.learning == "observe":
            shares, mode = self._fixed(seen), "canary" if mixed else "weighted"
        if keep is not None and held[keep]:  # a running canary's own session: the policy still may not choose its arm
            held = held & (one_hot(keep, held.size) == 0.0)
        in_experiment = variant is not None or (seen.kept is not None and seen.kept.experiment is not None)
        if loop and keep is None and shares is not None and seen.free.any():
            shares, mixed, mode = self._largest(seen, shares), (), "sticky"
        return Steer(
            available=None if seen.available.all() else seen.available,
            held=held if held.any() else None,
            shares=shares,
            mixed=mixed,
            keep=keep,
            margin=inf if loop or in_experiment or shares is not None else traffic.settings.sessions.switch_margin,
            greedy=loop and shares is None,
            mode=mode,
        )

    def _fixed(self, seen: _Call) -> FloatArray:
        """The operator's weights, or else all for the first model that may be chosen."""
        if seen.traffic.weights is not None:
            return seen.shares(seen.traffic.weights)
        able = self._open(seen)
        return one_hot(int(able.argmax()) if able.any() else int(seen.available.argmax()), able.size)

    def _largest(self, seen: _Call, shares: FloatArray) -> FloatArray:
        able = self._open(seen)
        return one_hot(int(np.where(able if able.any() else seen.available, shares, -1.0).argmax()), shares.size)

    def _over_variants(
        self, seen: _Call, experiment: Experiment, variant: VariantSettings, decision: Decision
    ) -> Decision:
        """The decision with the probabilities it had before its unit's place was looked up: Σ share · p(variant).

        A unit's place is random, but the same for all its calls: that is why a replay must leave these rows out.
        """
        without_session = replace(seen, kept=None)
        total = sum(other.share for other in experiment.settings.variants)
        p = np.zeros(len(decision.arms))
        for other in experiment.settings.variants:
            of = decision if other is variant else self._decided(without_session, other)
            p += other.share / total * of.probabilities
        p /= p.sum()
        return replace(decision, probabilities=p, propensity=float(p[decision.arms.index(decision.chosen)]))

    def _bypassed(self, seen: _Call) -> Decision:
        """By the static rule alone: nothing that was learned is asked, and nothing is learned."""
        names = seen.pool.names
        mode: Mode = "weighted"
        able = seen.free
        if not able.any():
            raise _nothing_available(seen.pool)
        weights = seen.traffic.weights
        p = one_hot(int(able.argmax()), len(names))
        if weights is not None:
            p = fixed_shares(seen.shares(weights), able.astype(np.float64))
        if seen.keep is not None:
            p, mode = one_hot(seen.keep, len(names)), "sticky"
        elif seen.call.in_tool_loop:
            p, mode = one_hot(int(p.argmax()), len(names)), "sticky"
        cumulated = p.cumsum()
        chosen = int(cumulated.searchsorted(self._rng.random() * cumulated[-1], side="right"))
        return unlearned(seen.call, self._learner.ids.new(seen.ts), seen.ts, names, able, p, chosen, mode)


def unlearned(  # noqa: PLR0917 - the fields of a decision
    call: Call,
    decision_id: str,
    ts: float,
    names: tuple[str, ...],
    feasible: BoolArray,
    p: FloatArray,
    chosen: int,
    mode: Mode,
) -> Decision:
    """A decision without features, by which no pool can learn anything."""
    unknown = np.full(len(names), np.nan)
    return Decision(
        decision_id=decision_id,
        ts=ts,
        pool=call.model,
        mode=mode,
        step=0,
        context=Context(_NO_FEATURES, "none", call.prompt.input_tokens, call.prompt.category),
        policy_version=mode if mode in ("pinned", "cached") else "bypass",
        arms=names,
        feasible=feasible,
        probabilities=p,
        chosen=names[chosen],
        propensity=float(p[chosen]),
        predicted_quality=unknown,
        predicted_cost_usd=unknown,
        predicted_latency_s=unknown,
    )


def _wrong_kind(call: Call) -> InvalidRequest:
    path = "/v1/infer/{pool}" if call.kind == "infer" else f"/v1/{call.kind}"
    message = f"{call.model!r} has no model that serves POST {path}; a model's kind says what it serves"
    return InvalidRequest(message, "model", "wrong_kind_of_model")


def _nothing_available(pool: Pool) -> NothingAvailable:
    message = f"every model of pool {pool.name!r} is disabled, held out or down"
    return NothingAvailable(message, [], _RETRY_AFTER_S)
