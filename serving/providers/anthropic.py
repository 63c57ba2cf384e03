"""Endpoints that speak Anthropic's Messages API, version 2023-06-01: Anthropic itself, and servers that do as it does.

Callers see OpenAI's chat completions. It must never know what other providers want.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import SecretStr

from serving.errors import InvalidRequest
from serving.providers.anthropic_answer import completion
from serving.providers.anthropic_request import messages_request
from serving.providers.anthropic_stream import MessageEvents
from serving.providers.openai import reason_of
from serving.providers.protocol import EventTranslator, Reason
from serving.wire import Call, Usage, usage_of

__all__ = ["Anthropic"]


class Anthropic:
    """Anthropic's protocol. `max_output_tokens`: most of an answer; None: as many as the caller says, else 4096."""

    def __init__(self, max_output_tokens: int | None, clock: Callable[[], float] = time.time) -> None:
        self._most, self._clock = max_output_tokens, clock

    def path(self, call: Call, upstream_model: str) -> str:
        """One for all: the protocol has chats only."""
        del call, upstream_model
        return "/messages"

    def can_say(self, call: Call) -> bool:
        """Found out by saying it: what is refused depends on every message."""
        try:
            self._request(call, "")
        except InvalidRequest:
            return False
        return True

    def body(self, call: Call, upstream_model: str) -> bytes:
        """The chat as a request of that protocol; InvalidRequest for anything else."""
        request = self._request(call, upstream_model)
        try:
            return orjson.dumps(request)
        except orjson.JSONEncodeError as error:  # a lone surrogate, for one
            raise InvalidRequest(f"the body cannot be passed on as JSON: {error}", code="invalid_json") from None

    def headers(self, api_key: SecretStr | None) -> dict[str, str]:
        """The key and the version, both in headers of their own."""
        version = {"anthropic-version": "2023-06-01"}
        return version if api_key is None else version | {"x-api-key": api_key.get_secret_value()}

    def answer(self, call: Call, parsed: dict[str, Any]) -> dict[str, Any]:
        """The message as a chat completion."""
        del call
        return completion(parsed, int(self._clock()))

    def usage(self, call: Call, answer: dict[str, Any]) -> Usage:
        """From the completion's field `usage`."""
        del call
        return usage_of(answer)

    def marks(self, call: Call, decision_id: str, model: str) -> dict[str, str]:
        """A completion's `id` and `model`."""
        del call
        return {"id": decision_id, "model": model}

    def events(self, call: Call) -> EventTranslator:
        """A translator into OpenAI's chunks."""
        del call
        return MessageEvents(int(self._clock()))

    def refusal(self, status: int, error: dict[str, Any]) -> Reason | None:
        """By what its message says: its types tell only whose fault it is."""
        return reason_of(status, error)

    def _request(self, call: Call, upstream_model: str) -> dict[str, Any]:
        if call.kind != "chat/completions":
            message = f"{call.model!r} speaks Anthropic's protocol: call /v1/chat/completions"
            raise InvalidRequest(message, "model", "wrong_kind_of_model")
        return messages_request(call, upstream_model, self._most)
