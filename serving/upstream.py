"""The HTTP client side: the endpoints of each model, which of them an attempt goes to, and what came or how it failed.

One attempt, no retries and no choice of model. Never follows redirects, never decompresses, and reads no more than a
stated size. Knows nothing of pools or decisions.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from serving.breaker import Breaker, State
from serving.errors import UpstreamError, UpstreamRefused, UpstreamTimeout
from serving.model_settings import EndpointSettings, ModelSettings
from serving.providers.kinds import provider_of, served_by
from serving.providers.protocol import Provider
from serving.reach import PrivateAddress, Reach, open_session
from serving.refusals import RetryAfter, own_error
from serving.traffic.batching import Batcher, Shared
from serving.wire import Call, Kind, Usage

__all__ = ["Endpoint", "ModelEndpoints", "Upstreams"]

_CALLERS_FAULT = (400, 409, 413, 415, 422)  # as in bandit.types.Outcome.failed
_FAILURES = (TimeoutError, aiohttp.ClientError)
_ERROR_BYTES = 65_536  # as much of an error's body as is read
_SHORTEST_SECRET = 8  # characters: what is shorter is no secret, and may be part of any word
Spared = Callable[[str, int], None]


class Endpoint:
    """One endpoint of a model, with its own bounded connections, breaker, batches and count of calls under way.

    `spared` is told the model and how many calls to it a batch made unnecessary. `public_only`: it is never called at
    a private address.
    """

    def __init__(
        self,
        model: ModelSettings,
        place: EndpointSettings,
        provider: Provider,
        max_response_bytes: int,
        *,
        spared: Spared | None = None,
        public_only: bool = False,
    ) -> None:
        self.model, self.name, self.weight = model.name, place.name or "1", place.weight
        self.breaker = Breaker(model.breaker)
        self.under_way = self._joining = 0
        self.rests_until = 0.0
        self._batcher: Batcher | None = None
        if model.batching is not None:
            told = None if spared is None else functools.partial(spared, model.name)
            self._batcher = Batcher(model.batching, most_at_once=model.max_concurrent, spared=told)
        self._provider, self._upstream_model = provider, model.upstream_model
        self._timeout_s, self._most = model.timeout_s, model.max_concurrent
        self._max_response_bytes, self._base = max_response_bytes, place.url
        self.host, self.port = URL(place.url).host, URL(place.url).port
        self._idle = asyncio.Event()
        self._idle.set()
        self._urls: dict[str, URL] = {}
        self._headers = CIMultiDict({"Content-Type": "application/json", "Accept-Encoding": "identity"})
        for name, value in (model.headers | place.headers).items():
            self._headers[name] = value.get_secret_value()
        api_key = place.api_key or model.api_key
        self._headers.update(provider.headers(api_key))
        secrets = [value.get_secret_value() for value in (api_key, *(model.headers | place.headers).values()) if value]
        self._secrets = [orjson.dumps(secret)[1:-1] for secret in secrets if len(secret) >= _SHORTEST_SECRET]
        self._session = open_session(model.max_connections, model.timeout_s, public_only=public_only)

    def available(self, now: float) -> bool:
        """Whether it can take a call at `now`, on the monotonic clock."""
        return (self._most is None or self.under_way < self._most) and self.breaker.allows(now)

    def rested(self, now: float) -> bool:
        """Whether it can, and the rest that it last asked for (by Retry-After) is over.

        One that rests is left for others, but not refused: where all rest, one of them is asked.
        """
        return now >= self.rests_until and self.available(now)

    async def send_shared(self, call: Call, tenant: str, send_one: Callable[[Call], Any]) -> Shared:
        """The answer to a call that may go as one with others, by whichever `send_one` of theirs; raises as it does."""
        if self._batcher is None:
            return Shared(await send_one(call))
        self._joining += 1
        self._idle.clear()
        try:
            return await self._batcher.send(call, tenant, send_one)
        finally:
            self._joining -= 1
            self._note_idle()

    async def send(self, call: Call, body: bytes) -> Any:
        """The endpoint's answer to the provider's `body` of a call; UpstreamError and its kinds.

        A JSON object in OpenAI's shape, but to an inference call, whose answer may be any JSON value.
        """
        self.begin()
        try:
            response = await self._post(call, body)
            async with response:
                raw = await self._read(response)
        except _FAILURES as error:
            raise self._failure(error) from None
        finally:
            self.end()
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise self._malformed("the answer is not valid JSON") from None
        if not isinstance(answer, dict) and call.kind != "infer":
            raise self._malformed("the answer is not a JSON object")
        try:
            return self._provider.answer(call, answer)
        except ValueError as error:
            raise self._malformed(str(error)) from None

    @asynccontextmanager
    async def stream(self, call: Call, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """The endpoint's streamed answer as chunks of bytes as they come; raises as `send`."""
        self.begin()
        try:
            response = await self._post(call, body)
            async with response:
                if response.content_type != "text/event-stream":
                    raise self._malformed("the answer is not an event stream")
                yield response.content.iter_any()
        except _FAILURES as error:
            raise self._failure(error) from None
        finally:
            self.end()

    async def close(self, *, when_idle: bool = False) -> None:
        """Close its connections; with `when_idle` once the last call under way has ended."""
        if when_idle:
            await self._idle.wait()
        if self._batcher is not None:
            await self._batcher.close()
        await self._session.close()

    def begin(self) -> None:
        """One more call is under way."""
        self.under_way += 1
        self._idle.clear()

    def end(self) -> None:
        """One has ended."""
        self.under_way -= 1
        self._note_idle()

    def _note_idle(self) -> None:
        if not self.under_way and not self._joining:
            self._idle.set()

    async def _post(self, call: Call, body: bytes) -> aiohttp.ClientResponse:
        """A response whose status is 200."""
        path = self._provider.path(call, self._upstream_model)
        url = self._urls.get(path) or self._urls.setdefault(path, URL(f"{self._base}{path}"))
        headers = self._headers
        if call.passed_on is not None:
            headers = headers.copy()
            headers.update(call.passed_on)
        response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        if response.status != 200:
            async with response:
                await self._refuse(response)
        return response

    def _malformed(self, message: str) -> UpstreamError:
        return UpstreamError(self.model, message, 200, "upstream_malformed")

    def _failure(self, error: BaseException) -> UpstreamError:
        if isinstance(error, TimeoutError):
            return UpstreamTimeout(self.model, self._timeout_s)
        if isinstance(error, aiohttp.ClientPayloadError):
            return UpstreamError(self.model, "the answer broke off", None, "upstream_disconnected")
        # Its kind and not its text, which may quote addresses and whatever bytes came: that is no caller's matter.
        message = f"the connection failed ({type(error).__name__})"
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PrivateAddress):
            message = "its address is a private one, which an added model may have by server.private_upstreams alone"
        return UpstreamError(self.model, message, None, "upstream_unreachable")

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        raw = b""
        while len(raw) < _ERROR_BYTES and (part := await response.content.read(_ERROR_BYTES - len(raw))):
            raw += part
        own = own_error(raw, response.status, self._secrets)
        if response.status in _CALLERS_FAULT:
            reason = self._provider.refusal(response.status, own)
            raise UpstreamRefused(self.model, response.status, own, reason)
        # What an endpoint says about *our* key or its own trouble is for the operator, not for the caller.
        error = UpstreamError(self.model, f"the endpoint answered {response.status}", response.status)
        if response.status in (429, 503, 529):  # 529: Anthropic's word for being overloaded
            asked = RetryAfter(response.headers.get("Retry-After"))
            error.retry_after = asked.passed_on
            if asked.rest_s is not None:
                self.rests_until = time.monotonic() + asked.rest_s
        raise error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._max_response_bytes
        if response.content_length is not None and response.content_length <= limit:
            return await response.read()
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise self._malformed(f"the answer is larger than {limit:,} bytes")
            chunks.append(chunk)
        return b"".join(chunks)


class ModelEndpoints:
    """All endpoints of one model."""

    def __init__(
        self, model: ModelSettings, max_response_bytes: int, *, spared: Spared | None = None, reach: Reach | None = None
    ) -> None:
        self.bounded = _bounded(model, reach)
        self.name, self.upstream_model = model.name, model.upstream_model
        self.timeout_s, self.max_output_tokens = model.timeout_s, model.max_output_tokens
        self.unasked_output_tokens = model.unasked_output_tokens
        self.settings, self.arm, self.provider = model, model.to_arm(), provider_of(model)
        self.endpoints = tuple(
            Endpoint(model, place, self.provider, max_response_bytes, spared=spared, public_only=public_only)
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
    """The endpoints of all models, by name; `spared` as for each endpoint. Constructed in the running loop.

    `reach` says which are only called at public addresses; without it none is. Models that `before` has as they are now
    keep their endpoints: connections, breakers, batches, rests.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        max_response_bytes: int,
        *,
        spared: Spared | None = None,
        reach: Reach | None = None,
        before: Upstreams | None = None,
    ) -> None:
        self._max_response_bytes, self._spared, self._reach = max_response_bytes, spared, reach
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
        opened = ModelEndpoints(model, self._max_response_bytes, spared=self._spared, reach=self._reach)
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
