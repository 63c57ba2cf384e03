"""The HTTP client side: the endpoints of each model, and which of them an attempt goes to.

No retries and no choice of model; asking one endpoint is `serving.endpoint`. Knows nothing of pools or decisions.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serving.breaker import State
from serving.endpoint import Endpoint, Moved, Spared
from serving.model_settings import ModelSettings
from serving.providers.kinds import provider_of, served_by
from serving.reach import Reach
from serving.wire import Call, Kind, Usage

__all__ = ["ModelEndpoints", "Upstreams"]


class ModelEndpoints:
    """All endpoints of one model."""

    def __init__(
        self,
        model: ModelSettings,
        max_response_bytes: int,
        *,
        spared: Spared | None = None,
        moved: Moved | None = None,
        reach: Reach | None = None,
    ) -> None:
        self.bounded = _bounded(model, reach)
        self.name, self.upstream_model = model.name, model.upstream_model
        self.timeout_s, self.max_output_tokens = model.timeout_s, model.max_output_tokens
        self.unasked_output_tokens = model.unasked_output_tokens
        self.settings, self.arm, self.provider = model, model.to_arm(), provider_of(model)
        self.endpoints = tuple(
            Endpoint(
                model, place, self.provider, max_response_bytes, spared=spared, moved=moved, public_only=public_only
            )
            for place, public_only in zip(model.places, self.bounded, strict=True)
        )
        self.served = served_by(model)
        self.shared = 1  # by how many `Upstreams`
        self._by_weight = model.balance == "weights"

    def let_go(self) -> bool:
        """One of those that share it does no more; whether that was the last."""
        self.shared -= 1
        return self.shared == 0

    def cost_usd(self, usage: Usage, *, answered: bool = False, calls: int = 1) -> float | None:
        """What those tokens cost, with this call's share of the price of one that `calls` went as; None: unknown.

        Unknown is what has no price, and what has a price per token and was not counted. Tokens that cost nothing need
        not be counted, once the call was answered.
        """
        price = self.arm.price
        if price is None:
            return None
        if usage.input_tokens is None or usage.output_tokens is None:
            by_the_call = answered and price.input_per_million == price.output_per_million == 0.0
            return price.per_call / calls if by_the_call else None
        usd = price.cost_usd(usage.input_tokens, usage.output_tokens, usage.cached_tokens or 0)
        return usd if calls == 1 else usd - price.per_call * (1.0 - 1.0 / calls)

    def available(self, now: float) -> bool:
        """Whether any endpoint can take a call."""
        return any(endpoint.available(now) for endpoint in self.endpoints)

    def rested(self, now: float) -> bool:
        """Whether any can that has not asked for rest."""
        return any(endpoint.rested(now) for endpoint in self.endpoints)

    def retry_after_s(self, now: float) -> float:
        """Seconds until one may be able to."""
        return min(max(e.breaker.wait_s(now), e.rests_until - now, 0.0) for e in self.endpoints)

    def states(self, now: float) -> dict[str, State]:
        """Each endpoint's breaker."""
        return {endpoint.name: endpoint.breaker.state(now) for endpoint in self.endpoints}

    def pick(self, rng: random.Random, now: float, avoid: frozenset[Endpoint] = frozenset()) -> Endpoint | None:
        """The endpoint for an attempt; None: none can take one. Those to avoid, or at rest, only if no other can.

        Of two drawn at random the one with fewer calls under way for its weight: nearly as even as looking at all,
        without the herd that runs to whichever is the least busy (Mitzenmacher, 2001).
        """
        able = [endpoint for endpoint in self.endpoints if endpoint.available(now)]
        able = [endpoint for endpoint in able if endpoint not in avoid] or able
        able = [endpoint for endpoint in able if endpoint.rested(now)] or able
        if len(able) <= 1:
            return able[0] if able else None
        if self._by_weight:
            return rng.choices(able, [endpoint.weight for endpoint in able])[0]
        one, other = rng.sample(able, 2)
        return min(one, other, key=lambda endpoint: (endpoint.under_way + 1) / endpoint.weight)


class Upstreams:
    """The endpoints of all models, by name; `spared` and `moved` as for each endpoint. Constructed in the running loop.

    `reach` says which are only called at public addresses; without it none is. Models that `before` has as they are now
    keep their endpoints: connections, breakers, batches, rests.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        max_response_bytes: int,
        *,
        spared: Spared | None = None,
        moved: Moved | None = None,
        reach: Reach | None = None,
        before: Upstreams | None = None,
    ) -> None:
        self._max_response_bytes, self._spared, self._moved, self._reach = max_response_bytes, spared, moved, reach
        self._by_model: dict[str, ModelEndpoints] = {}
        self._leaving: dict[asyncio.Task[None], Endpoint] = {}
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        for model in models:
            kept = None if before is None else before.shared(model, max_response_bytes, _bounded(model, reach))
            if kept is None:
                self.open(model)
            else:
                self._by_model[model.name] = kept

    def shared(self, model: ModelSettings, most_bytes: int, bounded: tuple[bool, ...]) -> ModelEndpoints | None:
        """The endpoints of a model that is here as it is there, for one more to use; None where there are none."""
        found = self._by_model.get(model.name)
        if found is None or (found.settings, self._max_response_bytes, found.bounded) != (model, most_bytes, bounded):
            return None
        found.shared += 1
        return found

    async def close(self, *, when_unused: bool = False) -> None:
        """Close what nobody else shares; with `when_unused` once the last call that may use it has ended."""
        if when_unused:
            await self._unused.wait()
        gone = [model for model in self._by_model.values() if model.let_go()]
        self._by_model = {}
        present = [endpoint for model in gone for endpoint in model.endpoints]
        await asyncio.gather(*(endpoint.close() for endpoint in (*present, *self._leaving.values())))
        for task in self._leaving:
            task.cancel()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """For as long as a call may make attempts here."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    def open(self, model: ModelSettings) -> None:
        """Take calls for one more model from now on."""
        opened = ModelEndpoints(
            model, self._max_response_bytes, spared=self._spared, moved=self._moved, reach=self._reach
        )
        self._by_model[model.name] = opened

    def retire(self, name: str) -> None:
        """Take no more calls for a model; those under way finish."""
        model = self._by_model.pop(name)
        for endpoint in model.endpoints if model.let_go() else ():
            task = asyncio.create_task(endpoint.close(when_idle=True))
            self._leaving[task] = endpoint
            task.add_done_callback(self._leaving.pop)

    def available(self, name: str) -> bool:
        """Whether a model can take a call now: it is there, and some endpoint of it is up and has room."""
        return name in self._by_model and self._by_model[name].available(time.monotonic())

    def rested(self, name: str) -> bool:
        """Whether it can without disturbing an endpoint's rest."""
        return name in self._by_model and self._by_model[name].rested(time.monotonic())

    def all_ready(self, names: Sequence[str], call: Call) -> bool:
        """Whether each of these models serves and can say the call, and has an endpoint that is up and rested."""
        now, models = time.monotonic(), [self._by_model.get(name) for name in names]
        return all(
            m is not None and call.kind in m.served and m.rested(now) and m.provider.can_say(call) for m in models
        )

    def serves(self, name: str, kind: Kind) -> bool:
        """Whether a model that is there can serve calls of this kind."""
        return name in self._by_model and kind in self._by_model[name].served

    def can_say(self, name: str, call: Call) -> bool:
        """Whether a model's protocol can say what a call asks for."""
        return name in self._by_model and self._by_model[name].provider.can_say(call)

    def __getitem__(self, name: str) -> ModelEndpoints:
        return self._by_model[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_model

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_model)


def _bounded(model: ModelSettings, reach: Reach | None) -> tuple[bool, ...]:
    """Of each endpoint, whether it is only called at public addresses."""
    return tuple(reach is not None and reach.bounds(place.url) for place in model.places)
