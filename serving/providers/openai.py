"""Endpoints that speak OpenAI's protocol: OpenAI itself, vLLM, Ollama, llama.cpp, Groq, Mistral, Together and others.

Calls and answers pass as they are. It must never know what an inference server or another provider wants.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import SecretStr

from serving.providers.protocol import EventTranslator, Reason
from serving.wire import Call, Usage, upstream_body, usage_of

__all__ = ["OpenAI", "reason_of"]

_CONTEXT_CODES = (
    "context_length_exceeded",
    "exceed_context_size_error",
    "request_too_large",
    "string_above_max_length",
)
_CONTENT_CODES = ("content_filter", "content_policy_violation", "content_policy", "moderation_blocked")
# Most servers have no code for it, only a sentence: vLLM and Groq, llama.cpp, Ollama, Mistral, Together, Anthropic,
# xAI, Gemini, Moonshot.
_CONTEXT_TEXT = re.compile(
    r"maximum (context|prompt) length|context (length|window|size)|reduce the length|prompt is too long|"
    r"prompt contains \d+ tokens|max_new_tokens. must be|too many (input )?tokens|exceed context limit|"
    r"exceeds the maximum number of tokens|exceeded model token limit",
    re.IGNORECASE,
)
_CONTENT_TEXT = re.compile(r"content (management )?(policy|filter)|usage polic(y|ies)|safety system", re.IGNORECASE)


class OpenAI:
    """OpenAI's protocol, as it is."""

    def path(self, call: Call, upstream_model: str) -> str:
        """The call's own path."""
        del upstream_model
        return f"/{call.kind}"

    def can_say(self, call: Call) -> bool:
        """All but an inference call."""
        return call.kind != "infer"

    def body(self, call: Call, upstream_model: str) -> bytes:
        """The caller's own body, with the endpoint's name for the model, and usage asked for where it is streamed."""
        return upstream_body(call, upstream_model)

    def headers(self, api_key: SecretStr | None) -> dict[str, str]:
        """The key as a bearer token."""
        return {} if api_key is None else {"Authorization": f"Bearer {api_key.get_secret_value()}"}

    def answer(self, call: Call, parsed: dict[str, Any]) -> dict[str, Any]:
        """The answer as it is, once it is one; some servers answer an error with status 200."""
        expected = "data" if call.kind == "embeddings" else "choices"
        if not isinstance(parsed.get(expected), list):
            wrong = "the answer is an error with status 200" if parsed.get("error") else f"it has no list of {expected}"
            raise ValueError(wrong)  # noqa: TRY004 - the answer is malformed, as any that is no JSON
        return parsed

    def usage(self, call: Call, answer: dict[str, Any]) -> Usage:
        """From its field `usage`."""
        del call
        return usage_of(answer)

    def marks(self, call: Call, decision_id: str, model: str) -> dict[str, str]:
        """`id` and `model`; an answer of embeddings has no id."""
        return {"model": model} if call.kind == "embeddings" else {"id": decision_id, "model": model}

    def events(self, call: Call) -> EventTranslator | None:
        """None: they are OpenAI's."""
        del call
        return None

    def refusal(self, status: int, error: dict[str, Any]) -> Reason | None:
        """By the error's code, or by what its message says."""
        return reason_of(status, error)


def reason_of(status: int, error: dict[str, Any]) -> Reason | None:
    """What a refusal's code, type or message says; only of the statuses that find fault with a request."""
    if status not in (400, 413, 422):
        return None
    named = {error.get("code"), error.get("type")} if _hashable(error) else set()
    message = str(error.get("message", ""))[:2_000]
    if named & set(_CONTEXT_CODES) or _CONTEXT_TEXT.search(message):
        return "context_window"
    if named & set(_CONTENT_CODES) or _CONTENT_TEXT.search(message):
        return "content_policy"
    return None


def _hashable(error: dict[str, Any]) -> bool:
    return all(isinstance(error.get(name), str | int | None) for name in ("code", "type"))
