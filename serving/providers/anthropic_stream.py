"""A streamed answer of Anthropic's Messages API as OpenAI's chunks; holds the state of that one stream.

Nothing is passed on before something was said, so that an answer that breaks off at once can still be had elsewhere.
It must never know what was asked for, nor whom the chunks go to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from serving.providers.anthropic_answer import finish_reason, tokens, usage_fields, written

__all__ = ["MessageEvents"]

Event = Mapping[str, Any]
_DONE = b"[DONE]"


class _Block:
    """A content block that has begun: what has to be known of it until it stops."""

    def __init__(self, content: Event, tool: int) -> None:
        self.content, self.tool = content, tool
        self.has_arguments = False
        self.thinking: list[str] = []
        self.signature = ""


class MessageEvents:
    """Implements `EventTranslator`; `created` (unix seconds) is what the chunks are dated."""

    def __init__(self, created: int) -> None:
        self._created = created
        self._opened = self._finished = False
        self._tools = 0
        self._blocks: dict[int, _Block] = {}
        self._tokens: dict[str, int] = {}
        self._steps: dict[str, Callable[[Event], list[bytes]]] = {
            "message_start": self._message_start,
            "content_block_start": self._block_start,
            "content_block_delta": self._block_delta,
            "content_block_stop": self._block_stop,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
            "error": self._error,
        }

    def translate(self, data: bytes) -> list[bytes]:
        """The payloads of OpenAI's chunks that an event becomes; ValueError: it is not what the protocol says.

        Events of other types, `ping` and those that the protocol may yet get, become none.
        """
        event = orjson.loads(data)
        if not isinstance(event, dict):
            raise ValueError("a stream event is not a JSON object")  # noqa: TRY004 - one kind for all that is malformed
        step = self._steps.get(str(event.get("type")))
        return [] if step is None else step(event)

    def _message_start(self, event: Event) -> list[bytes]:
        self._tokens |= tokens(_part(event, "message").get("usage"))
        return []

    def _block_start(self, event: Event) -> list[bytes]:
        content = _part(event, "content_block")
        block = self._blocks[_index(event)] = _Block(content, self._tools)
        if content.get("type") == "text" and content.get("text"):
            return self._said({"content": _text(content, "text")})
        if content.get("type") != "tool_use":
            return []
        self._tools += 1
        function = {"name": _text(content, "name"), "arguments": ""}
        call = {"index": block.tool, "id": _text(content, "id"), "type": "function", "function": function}
        return self._said({"tool_calls": [call]})

    def _block_delta(self, event: Event) -> list[bytes]:
        block, delta = self._block(event), _part(event, "delta")
        kind = delta.get("type")
        if kind == "text_delta":
            return self._said({"content": _text(delta, "text")})
        if kind == "input_json_delta":
            piece = _text(delta, "partial_json")
            return self._arguments(block, piece) if piece and block.content.get("type") == "tool_use" else []
        if kind == "thinking_delta":
            block.thinking.append(_text(delta, "thinking"))
            return self._said({"reasoning_content": block.thinking[-1]})
        if kind == "signature_delta":
            block.signature = _text(delta, "signature")
        return []

    def _block_stop(self, event: Event) -> list[bytes]:
        block = self._block(event)
        del self._blocks[_index(event)]
        kind = block.content.get("type")
        if kind == "tool_use" and not block.has_arguments:  # a tool without arguments streams none; callers parse them
            return self._arguments(block, written(block.content.get("input") or {}).decode())
        if kind == "thinking":
            thought = {"type": kind, "thinking": "".join(block.thinking), "signature": block.signature}
            return self._said({"thinking_blocks": [thought]})
        return self._said({"thinking_blocks": [block.content]}) if kind == "redacted_thinking" else []

    def _message_delta(self, event: Event) -> list[bytes]:
        self._tokens |= tokens(event.get("usage"))  # its counts are of the whole message
        reason = _part(event, "delta").get("stop_reason")
        if reason is None:
            return []
        self._finished = True
        return self._said({}, finish_reason(reason))

    def _message_stop(self, event: Event) -> list[bytes]:
        del event
        if not self._finished:
            raise ValueError("the message stopped without a reason")
        usage = usage_fields(self._tokens)
        return [_DONE] if usage is None else [self._chunk([], usage=usage), _DONE]

    def _error(self, event: Event) -> list[bytes]:
        del event
        raise ValueError("the upstream reported an error in its stream")

    def _block(self, event: Event) -> _Block:
        block = self._blocks.get(_index(event))
        if block is None:
            raise ValueError("an event is of a content block that has not begun")
        return block

    def _arguments(self, block: _Block, piece: str) -> list[bytes]:
        block.has_arguments = True
        return self._said({"tool_calls": [{"index": block.tool, "function": {"arguments": piece}}]})

    def _said(self, delta: dict[str, Any], finish: str | None = None) -> list[bytes]:
        """A chunk with `delta`; before the first, the one that says who speaks."""
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        if self._opened:
            return [self._chunk(choices)]
        self._opened = True
        first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._chunk([first]), self._chunk(choices)]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {"id": "", "object": "chat.completion.chunk", "created": self._created, "model": ""}
        return written(chunk | {"choices": choices} | more)


def _part(event: Event, name: str) -> Event:
    part = event.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"a stream event has no {name}")  # noqa: TRY004 - one kind for all that is malformed
    return part


def _text(part: Event, name: str) -> str:
    text = part.get(name)
    if not isinstance(text, str):
        raise ValueError(f"a stream event has no {name}")  # noqa: TRY004 - one kind for all that is malformed
    return text


def _index(event: Event) -> int:
    index = event.get("index")
    if not isinstance(index, int):
        raise ValueError("a stream event has no index")  # noqa: TRY004 - one kind for all that is malformed
    return index
