"""The service as `evaluate` meets it: its models, one pinned call, a batch of results.

One attempt each, and what came of it. Never retries, and knows no suite, budget or state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from bandit.errors import InvalidInput
from evaluation.grades import Message

__all__ = ["Answered", "CallFailed", "ServedModel", "ServiceClient", "Unusable", "service_url"]

MAX_BODY_BYTES: Final = 64 * 2**20
ADMIN_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 10.0
MAX_CODE: Final = 64
_SHOWN: Final = 200
_SERVICE_DOWN: Final = ("unavailable", "store_unavailable", "overloaded")
"""Codes of a 503 that are the service's own trouble, not a model's."""


class Unusable(Exception):
    """The service cannot be worked with at all; a sentence that says what to change."""


class CallFailed(Exception):
    """One request that came to nothing. `code` says how; `passing`: trying again may help; `gone`: no service."""

    def __init__(
        self, code: str, message: str, *, passing: bool, gone: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.passing, self.gone, self.retry_after_s = code[:MAX_CODE], passing, gone, retry_after_s


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model the service has; `problem`: why it cannot be called."""

    name: str
    pools: tuple[str, ...]
    priced: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, the wall time until all of it was here, and what the service says it cost; None: unknown."""

    message: Message
    latency_s: float
    cost_usd: float | None
    input_tokens: int | None
    output_tokens: int | None


def service_url(text: str) -> str:
    """The base URL of a service, without a slash at its end and without `/v1`. Raises InvalidInput."""
    try:
        parts = urlsplit(text.strip())
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or parts.username is not None:
        raise InvalidInput("--url", f"must be the service's base URL, such as http://127.0.0.1:8080, not {text!r:.100}")
    return text.strip().rstrip("/").removesuffix("/v1").rstrip("/")


class ServiceClient:
    """A session with the service at `url`; an asynchronous context. `key`: the admin key, None where it runs open."""

    def __init__(self, url: str, key: str | None, *, timeout_s: float, connections: int) -> None:
        self._url, self._timeout_s, self._connections = url, timeout_s, connections
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def models(self) -> list[ServedModel]:
        """Every model. Raises Unusable."""
        try:
            status, raw, _ = await self._send("GET", "/admin/models", None, {}, ADMIN_TIMEOUT_S)
        except CallFailed as error:
            raise Unusable(f"nothing usable answers at {self._url}: {error}") from None
        self._check_admitted(status, raw)
        try:
            entries = orjson.loads(raw)["models"] if status == 200 else None
            return [_served(entry) for entry in entries or ()] if entries is not None else self._no_service(status)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return self._no_service(status)

    async def complete(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answered:
        """The answer of one chat completion. Raises CallFailed, and Unusable where the key is refused."""
        started = time.perf_counter()
        status, raw, facts = await self._send(
            "POST", "/v1/chat/completions", orjson.dumps(body), headers, self._timeout_s
        )
        latency_s = time.perf_counter() - started
        self._check_admitted(status, raw)
        if status != 200:
            raise _refused(status, raw, facts)
        try:
            answer = orjson.loads(raw)
            message, usage = answer["choices"][0]["message"], answer.get("usage") or {}
            cost = facts.get("x-pointsman-cost-usd")
            return Answered(
                Message.of(message),
                latency_s,
                None if cost is None else float(cost),
                _count(usage.get("prompt_tokens")),
                _count(usage.get("completion_tokens")),
            )
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError, ValueError):
            message = "the answer is not a chat completion"
            raise CallFailed("malformed_answer", message, passing=True) from None

    async def post(self, suite: str, run: str, results: Sequence[Mapping[str, Any]]) -> None:
        """Have results of one run recorded. Raises CallFailed, and Unusable."""
        body = orjson.dumps({"suite": suite, "run": run, "results": results})
        status, raw, facts = await self._send("POST", "/admin/benchmarks", body, {}, ADMIN_TIMEOUT_S)
        self._check_admitted(status, raw)
        if status == 200:
            return
        failed = _refused(status, raw, facts)
        if status in (404, 405) and failed.code != "model_not_found":
            raise Unusable(f"the service at {self._url} has no POST /admin/benchmarks; is it an older one?")
        if not failed.passing and failed.code != "model_not_found":
            raise Unusable(f"the service refuses the results: {failed}")
        raise failed

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes, Mapping[str, str]]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                raw = bytearray()
                async for chunk in response.content.iter_any():
                    raw += chunk
                    if len(raw) > MAX_BODY_BYTES:
                        raise CallFailed("answer_too_large", f"more than {MAX_BODY_BYTES >> 20} MiB", passing=False)
                return response.status, bytes(raw), response.headers
        except aiohttp.ConnectionTimeoutError as error:
            raise CallFailed("service_unreachable", str(error), passing=True, gone=True) from None
        except TimeoutError:
            raise CallFailed("client_timeout", f"no answer within {timeout_s:g} s", passing=True) from None
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            message = str(error) or "the connection was closed"
            raise CallFailed("service_unreachable", message, passing=True, gone=True) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise CallFailed("malformed_answer", str(error) or type(error).__name__, passing=True) from None

    def _check_admitted(self, status: int, raw: bytes) -> None:
        if status == 401:
            raise Unusable(f"the service at {self._url} knows no such key: {_error(raw)[1]}")
        if status == 403:
            raise Unusable(f"the service at {self._url} wants its admin key: {_error(raw)[1]}")

    def _no_service(self, status: int) -> list[ServedModel]:
        hint = "a redirect; give the address it leads to" if 300 <= status < 400 else f"status {status}"
        raise Unusable(f"no Pointsman answers at {self._url}: GET /admin/models gave {hint}")


def _served(entry: Mapping[str, Any]) -> ServedModel:
    pools = tuple(str(part["pool"]) for part in entry["pools"])
    problem = "it is no chat model" if entry.get("kind") == "http" else entry.get("problem")
    return ServedModel(str(entry["name"]), pools, entry.get("price") is not None, problem)


def _refused(status: int, raw: bytes, headers: Mapping[str, str]) -> CallFailed:
    code, message = _error(raw)
    passing = status in (408, 429) or status >= 500
    retry_after = headers.get("Retry-After", "").strip()
    wait_s = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else None
    return CallFailed(
        code or f"status_{status}",
        f"status {status}: {message}",
        passing=passing,
        gone=status == 503 and code in _SERVICE_DOWN,
        retry_after_s=wait_s,
    )


def _error(raw: bytes) -> tuple[str | None, str]:
    """Code and message of OpenAI's error body; of another body its beginning."""
    try:
        error = orjson.loads(raw)["error"]
        return str(error.get("code") or "") or None, str(error.get("message"))[:_SHOWN]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None, raw[:_SHOWN].decode(errors="replace")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
