"""The HTTP client side: sends one attempt to one model's endpoint and says what came, or how it failed.

One attempt, no retries and no choice of model. Never follows redirects, never decompresses, and reads no more than a
stated size. Knows nothing of pools or decisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from serving.errors import UpstreamError, UpstreamRefused, UpstreamTimeout
from serving.settings import ModelSettings

__all__ = ["Endpoint", "Upstreams"]

_CALLERS_FAULT = (400, 409, 413, 415, 422)  # as in bandit.types.Outcome.failed
_FAILURES = (TimeoutError, aiohttp.ClientError)
_ERROR_BYTES = 65_536  # as much of an error's body as is read


class Endpoint:
    """One model's endpoint, with its own bounded connections."""

    def __init__(self, model: ModelSettings, max_response_bytes: int) -> None:
        self.name = model.name
        self.upstream_model = model.upstream_model
        self.timeout_s = model.timeout_s
        self.arm = model.to_arm()
        self._max_response_bytes = max_response_bytes
        self._under_way, self._idle = 0, asyncio.Event()
        self._idle.set()
        self._urls = {
            kind: URL(f"{model.endpoint}/{kind}") for kind in ("chat/completions", "completions", "embeddings")
        }
        self._headers = CIMultiDict({"Content-Type": "application/json", "Accept-Encoding": "identity"})
        for name, value in model.headers.items():
            self._headers[name] = value.get_secret_value()
        if model.api_key is not None:
            self._headers["Authorization"] = f"Bearer {model.api_key.get_secret_value()}"
        connector = aiohttp.TCPConnector(limit=model.max_connections, keepalive_timeout=30, ttl_dns_cache=60)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=model.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent",),
        )

    def cost_usd(
        self, input_tokens: int | None, output_tokens: int | None, cached_tokens: int | None = None
    ) -> float | None:
        """What those tokens cost; None where the price or a count is unknown."""
        if self.arm.price is None or input_tokens is None or output_tokens is None:
            return None
        return self.arm.price.cost_usd(input_tokens, output_tokens, cached_tokens or 0)

    async def send(self, kind: str, body: bytes) -> dict[str, Any]:
        """The endpoint's JSON answer; raises UpstreamError and its kinds."""
        self._begin()
        try:
            response = await self._post(kind, body)
            async with response:
                raw = await self._read(response)
        except _FAILURES as error:
            raise self._failure(error) from None
        finally:
            self._end()
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise UpstreamError(self.name, "the answer is not valid JSON", 200, "upstream_malformed") from None
        if not isinstance(answer, dict):
            raise UpstreamError(self.name, "the answer is not a JSON object", 200, "upstream_malformed")
        if isinstance(answer.get("error"), dict) and "choices" not in answer and "data" not in answer:
            raise UpstreamError(self.name, "the answer is an error with status 200", 200, "upstream_malformed")
        return answer

    @asynccontextmanager
    async def stream(self, kind: str, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """The endpoint's streamed answer as chunks of bytes as they come; raises UpstreamError and its kinds."""
        self._begin()
        try:
            response = await self._post(kind, body)
            async with response:
                if response.content_type != "text/event-stream":
                    raise UpstreamError(self.name, "the answer is not an event stream", 200, "upstream_malformed")
                yield response.content.iter_any()
        except _FAILURES as error:
            raise self._failure(error) from None
        finally:
            self._end()

    async def close(self, *, when_idle: bool = False) -> None:
        """Close its connections; with `when_idle` once the last call under way has ended."""
        if when_idle:
            await self._idle.wait()
        await self._session.close()

    def _begin(self) -> None:
        self._under_way += 1
        self._idle.clear()

    def _end(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    async def _post(self, kind: str, body: bytes) -> aiohttp.ClientResponse:
        """A response whose status is 200."""
        response = await self._session.post(self._urls[kind], data=body, headers=self._headers, allow_redirects=False)
        if response.status != 200:
            async with response:
                await self._refuse(response)
        return response

    def _failure(self, error: BaseException) -> UpstreamError:
        if isinstance(error, TimeoutError):
            return UpstreamTimeout(self.name, self.timeout_s)
        if isinstance(error, aiohttp.ClientPayloadError):
            return UpstreamError(self.name, "the answer broke off", None, "upstream_disconnected")
        # Its kind and not its text, which may quote addresses and whatever bytes came: that is no caller's matter.
        message = f"the connection failed ({type(error).__name__})"
        return UpstreamError(self.name, message, None, "upstream_unreachable")

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        raw = b""
        while len(raw) < _ERROR_BYTES and (part := await response.content.read(_ERROR_BYTES - len(raw))):
            raw += part
        try:
            body = orjson.loads(raw)
            own = body["error"] if isinstance(body.get("error"), dict) else {"message": str(body.get("error", ""))}
        except (orjson.JSONDecodeError, AttributeError, KeyError):
            own = {"message": f"status {response.status}"}
        if response.status in _CALLERS_FAULT:
            raise UpstreamRefused(self.name, response.status, own)
        # What an endpoint says about *our* key or its own trouble is for the operator, not for the caller.
        error = UpstreamError(self.name, f"the endpoint answered {response.status}", response.status)
        error.retry_after = response.headers.get("Retry-After") if response.status in (429, 503) else None
        raise error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._max_response_bytes
        if response.content_length is not None and response.content_length <= limit:
            return await response.read()
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise UpstreamError(self.name, f"the answer is larger than {limit:,} bytes", 200, "upstream_malformed")
            chunks.append(chunk)
        return b"".join(chunks)


class Upstreams:
    """The endpoints of all models, by name."""

    def __init__(self, models: Sequence[ModelSettings], max_response_bytes: int) -> None:
        self._models, self._max_response_bytes = tuple(models), max_response_bytes
        self._endpoints: dict[str, Endpoint] = {}
        self._leaving: dict[asyncio.Task[None], Endpoint] = {}

    async def __aenter__(self) -> Self:
        for model in self._models:
            self.open(model)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        endpoints = (*self._endpoints.values(), *self._leaving.values())
        await asyncio.gather(*(endpoint.close() for endpoint in endpoints))
        for task in self._leaving:
            task.cancel()

    def open(self, model: ModelSettings) -> None:
        """Take calls for one more model from now on."""
        self._endpoints[model.name] = Endpoint(model, self._max_response_bytes)

    def retire(self, name: str) -> None:
        """Take no more calls for a model; those under way finish."""
        endpoint = self._endpoints.pop(name)
        task = asyncio.create_task(endpoint.close(when_idle=True))
        self._leaving[task] = endpoint
        task.add_done_callback(self._leaving.pop)

    def __getitem__(self, name: str) -> Endpoint:
        return self._endpoints[name]

    def __contains__(self, name: object) -> bool:
        return name in self._endpoints

    def __iter__(self) -> Iterator[str]:
        return iter(self._endpoints)
