"""When two requests are the same, and what `Cache-Control` asks: all that decides which answer may be given.

A key holds nothing that can be read back. Two calls with one key may share an answer, so whatever changes an answer, or
who may see it, is in it; when in doubt it is, since that costs a hit and the opposite gives a wrong answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal

import orjson

from serving.access.principal import Principal
from serving.errors import InvalidRequest
from serving.wire import Call

__all__ = ["CacheControl", "cache_key", "deterministic", "read_cache_control"]

Scope = Literal["tenant", "user", "all"]
# They say how an answer is sent or whom it is for, and never change it. `metadata` and `store` may have effects of
# their own at the upstream: they stay in the key, and `store` forbids caching (`deterministic`).
_WITHOUT_EFFECT: Final = frozenset(
    {
        "model",  # the pool's name is in the key as such
        "stream",
        "stream_options",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
_MAX_AGE_DIGITS = 10


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What the caller allows (RFC 9111, section 5.2.1): to read a kept answer, up to what age, and to keep its own."""

    read: bool = True
    keep: bool = True
    only_if_cached: bool = False
    max_age_s: float | None = None


def read_cache_control(value: str | None) -> CacheControl:
    """The directives in a header's value; those not known are ignored, as the RFC says. Raises InvalidRequest."""
    if not value:
        return _ANYTHING
    given = {}
    for part in value.split(","):
        name, _, argument = part.strip().partition("=")
        given[name.lower()] = argument.strip().strip('"')
    max_age = given.get("max-age")
    if max_age is not None and not re.fullmatch(rf"[0-9]{{1,{_MAX_AGE_DIGITS}}}", max_age):
        raise InvalidRequest("max-age must be a whole number of seconds", "cache-control", "invalid_header")
    fresh = "no-cache" in given or (max_age is not None and int(max_age) == 0)
    return CacheControl(
        read=not fresh and "no-store" not in given,
        keep="no-store" not in given,
        only_if_cached="only-if-cached" in given,
        max_age_s=None if max_age is None else float(max_age),
    )


_ANYTHING = CacheControl()


def deterministic(call: Call) -> bool:
    """Whether the request asks for one answer, the same each time."""
    if call.kind in ("embeddings", "infer"):
        return True
    body = call.body
    temperature = body.get("temperature")
    cold = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    return cold or body.get("seed") is not None


def cache_key(secret: bytes, call: Call, principal: Principal, scope: Scope, models: bytes) -> bytes | None:
    """The key of a call's answer, 32 bytes; None where there can be none. `models`: those that may answer it now.

    The tier counts in every scope: who may not use a model must not read its answers. So do the caller's own limits,
    category and vector: they choose the model. Order counts but at the top: an answer follows a schema's.
    """
    body = call.body
    if body.get("store"):
        return None  # the upstream is asked to keep the answer: it has to see the call
    whose: list[str | None] = [principal.tier]
    if scope != "all":
        whose.append(principal.tenant)
    if scope == "user":
        # not the user alone: keys without one would be one and the same
        whose += [principal.user, principal.key_id if principal.user is None else None]
    prompt, limits = call.prompt, call.limits
    chosen_by = [limits.max_cost_usd, limits.max_latency_s, prompt.category, prompt.vector]
    asked = [[name, body[name]] for name in sorted(body) if name not in _WITHOUT_EFFECT]
    try:
        text = orjson.dumps([scope, whose, call.model, call.kind, chosen_by, asked])
    except orjson.JSONEncodeError:
        return None  # what cannot be written cannot be sent: the upstream's way refuses it
    hashed = blake2b(text, digest_size=32, key=secret)
    hashed.update(models)
    return hashed.digest()
