"""What a kind of endpoint has to say of itself for a call to be sent to it: paths, bodies, headers, answers, refusals.

Pure: calls and plain data in, bytes and OpenAI-shaped data out. A provider must never know of sockets, decisions,
retries or the model that another endpoint stands for.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import SecretStr

from serving.wire import Call, Usage

__all__ = ["EventTranslator", "Provider", "Reason"]

Reason = Literal["context_window", "content_policy"]


class EventTranslator(Protocol):
    """Turns one streamed answer's events into OpenAI's; holds the state of that one stream."""

    def translate(self, data: bytes) -> list[bytes]:
        """The payloads of OpenAI's events that one event becomes; the last of a whole answer is `[DONE]`.

        ValueError: the event is not what the endpoint's protocol says.
        """
        ...


class Provider(Protocol):
    """One kind of endpoint."""

    def path(self, call: Call, upstream_model: str) -> str:
        """What follows the endpoint's base URL, with its leading slash; empty: the URL itself is called."""
        ...

    def can_say(self, call: Call) -> bool:
        """Whether `body` would not refuse the call: a pool's models that cannot take one have no part in it."""
        ...

    def body(self, call: Call, upstream_model: str) -> bytes:
        """The body to send. InvalidRequest, with the field's path, where the protocol cannot say what is asked for."""
        ...

    def headers(self, api_key: SecretStr | None) -> dict[str, str]:
        """Headers that the protocol wants of every call, with the key among them."""
        ...

    def answer(self, call: Call, parsed: dict[str, Any]) -> dict[str, Any]:
        """An answer in OpenAI's shape (an inference server's: in its own); ValueError: it is malformed."""
        ...

    def usage(self, call: Call, answer: dict[str, Any]) -> Usage:
        """What an answer, in the shape that `answer` gave it, says that it took."""
        ...

    def marks(self, call: Call, decision_id: str, model: str) -> dict[str, str]:
        """The fields of an answer in which our id and the model's public name stand."""
        ...

    def events(self, call: Call) -> EventTranslator | None:
        """A translator for one streamed answer; None: its events are OpenAI's already."""
        ...

    def refusal(self, status: int, error: dict[str, Any]) -> Reason | None:
        """Why a request was refused, where another model may well take it; `error`: the body's error object."""
        ...
