"""One endpoint of a model: an attempt's request, and what came of it or how it failed.

No retries and no choice of model or endpoint. Never follows redirects, never decompresses, and reads no more than a
stated size. Knows nothing of pools or decisions.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from serving.breaker import Breaker
from serving.errors import UpstreamError, UpstreamRefused, UpstreamTimeout
from serving.model_settings import EndpointSettings, ModelSettings
from serving.providers.protocol import Provider
from serving.reach import PrivateAddress, open_session
from serving.refusals import RetryAfter, own_error
from serving.traffic.batching import Batcher, Shared
from serving.wire import Call

__all__ = ["Endpoint", "Moved", "Spared"]

_CALLERS_FAULT = (400, 409, 413, 415, 422)  # as in bandit.types.Outcome.failed
_FAILURES = (TimeoutError, aiohttp.ClientError)
_ERROR_BYTES = 65_536  # as much of an error's body as is read
_SHORTEST_SECRET = 8  # characters: what is shorter is no secret, and may be part of any word
Spared = Callable[[str, int], None]
Moved = Callable[[str, str, float, int], None]


class Endpoint:
    """One endpoint of a model, with its own bounded connections, breaker, batches and count of calls under way.

    `spared` is told the model and how many calls to it a batch made unnecessary; `moved` the model, this endpoint and
    what its breaker says. `public_only`: it is never called at a private address.
    """

    def __init__(
        self,
        model: ModelSettings,
        place: EndpointSettings,
        provider: Provider,
        max_response_bytes: int,
        *,
        spared: Spared | None = None,
        moved: Moved | None = None,
        public_only: bool = False,
    ) -> None:
        self.model, self.name, self.weight = model.name, place.name or "1", place.weight
        self.breaker = Breaker(
            model.breaker, None if moved is None else functools.partial(moved, model.name, self.name)
        )
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
        """Whether it can, and its last Retry-After is over; where all rest, one of them is asked all the same."""
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
        """A response that says it is an answer: 200, or any other of its kind."""
        path = self._provider.path(call, self._upstream_model)
        url = self._urls.get(path) or self._urls.setdefault(path, URL(f"{self._base}{path}"))
        headers = self._headers
        if call.passed_on is not None:
            headers = headers.copy()
            headers.update(call.passed_on)
        response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        if not 200 <= response.status < 300:
            async with response:
                raise await self._refusal(response)
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

    async def _refusal(self, response: aiohttp.ClientResponse) -> UpstreamError:
        raw = b""
        while len(raw) < _ERROR_BYTES and (part := await response.content.read(_ERROR_BYTES - len(raw))):
            raw += part
        own = own_error(raw, response.status, self._secrets)
        if response.status in _CALLERS_FAULT:
            reason = self._provider.refusal(response.status, own)
            return UpstreamRefused(self.model, response.status, own, reason)
        # What an endpoint says about *our* key or its own trouble is for the operator, not for the caller.
        error = UpstreamError(self.model, f"the endpoint answered {response.status}", response.status)
        if response.status in (429, 503, 529):  # 529: Anthropic's word for being overloaded
            asked = RetryAfter(response.headers.get("Retry-After"))
            error.retry_after = asked.passed_on
            if asked.rest_s is not None:
                self.rests_until = time.monotonic() + asked.rest_s
        return error

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
