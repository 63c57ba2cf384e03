"""What an endpoint said when it refused, made fit to be passed on: its error without our secrets, its Retry-After.

An endpoint may be hostile: nothing of what it said goes on that was not looked at here. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

__all__ = ["RetryAfter", "own_error"]

_FIELDS: Final = ("message", "type", "param", "code")
_LONGEST_REST_S: Final = 60.0  # that an endpoint's Retry-After keeps others from it
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_DATE = re.compile(r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT", re.ASCII)


class RetryAfter:
    """The header of that name (RFC 9110, section 10.2.3): `passed_on` and `rest_s` are None for anything else in it."""

    __slots__ = ("passed_on", "rest_s")

    def __init__(self, value: str | None) -> None:
        asked = (value or "").strip()
        seconds = _SECONDS.fullmatch(asked)
        self.passed_on = asked if seconds or _DATE.fullmatch(asked) else None
        self.rest_s = min(_LONGEST_REST_S, float(asked)) if seconds else None


def own_error(raw: bytes, status: int, secrets: Sequence[bytes]) -> dict[str, Any]:
    """The error in a body as OpenAI's object has it; `secrets`, as JSON spells them, are replaced by `***`.

    What is passed on to the caller may quote the request, and with it our key and headers. Some servers have no object
    of its own for an error (Mistral, older vLLM), some a list of one (Google).
    """
    try:
        text = orjson.dumps(orjson.loads(raw))
        for secret in secrets:
            text = text.replace(secret, b"***")
        body = orjson.loads(text)
        if isinstance(body, list):
            (body,) = body
        said = body.get("error") or body.get("detail")  # a sentence, where it is not OpenAI's object
        if said is None:
            said = {name: body[name] for name in _FIELDS if body.get(name) is not None}
        return said if isinstance(said, dict) and said else {"message": str(said or f"status {status}")}
    except (ValueError, TypeError, AttributeError):  # no JSON, deeper than may be written, or no object
        return {"message": f"status {status}"}
