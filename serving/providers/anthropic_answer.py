"""An answer of Anthropic's Messages API in OpenAI's shape: content, calls of tools, why it ended, what it took.

Pure. It must never know what was asked for, nor how the answer came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["completion", "finish_reason", "tokens", "usage_fields", "written"]

_FINISHED = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}  # all others, those to come among them, are an end as it should be: end_turn, stop_sequence, pause_turn


def completion(message: Mapping[str, Any], created: int) -> dict[str, Any]:
    """A chat completion from a message; ValueError: it is none."""
    blocks = message.get("content")
    if message.get("type") == "error":
        raise ValueError("the answer is an error with status 200")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ValueError("the answer has no list of content blocks")
    said = "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    thoughts = [block for block in blocks if block.get("type") in ("thinking", "redacted_thinking")]
    answer: dict[str, Any] = {"role": "assistant", "content": said or (None if calls else ""), "refusal": None}
    if calls:
        answer["tool_calls"] = calls
    if thoughts:
        answer["reasoning_content"] = "".join(str(block.get("thinking", "")) for block in thoughts)
        answer["thinking_blocks"] = thoughts
    reason = finish_reason(message.get("stop_reason"))
    choice = {"index": 0, "message": answer, "logprobs": None, "finish_reason": reason}
    whole = {"id": message.get("id"), "object": "chat.completion", "created": created, "model": message.get("model")}
    usage = usage_fields(tokens(message.get("usage")))
    return whole | {"choices": [choice]} | ({} if usage is None else {"usage": usage})


def finish_reason(stop_reason: Any) -> str:
    """OpenAI's word for why an answer ended."""
    return _FINISHED.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"


def tokens(usage: Any) -> dict[str, int]:
    """The counts that a `usage` names."""
    named = usage if isinstance(usage, dict) else {}
    return {
        name: count
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
        if isinstance(count := named.get(name), int) and not isinstance(count, bool)
    }


def usage_fields(counts: Mapping[str, int]) -> dict[str, Any] | None:
    """OpenAI's `usage`, in which cached tokens are a part of the prompt's; here they are beside them. None: unknown."""
    if "input_tokens" not in counts or "output_tokens" not in counts:
        return None
    cached = counts.get("cache_read_input_tokens", 0)
    prompt = counts["input_tokens"] + cached + counts.get("cache_creation_input_tokens", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": counts["output_tokens"],
        "total_tokens": prompt + counts["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def written(value: dict[str, Any]) -> bytes:
    """JSON; ValueError: what may be read is deeper than what may be written."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    name, id_, arguments = block.get("name"), block.get("id"), block.get("input")
    if not isinstance(name, str) or not isinstance(id_, str) or not isinstance(arguments, dict):
        raise ValueError("a tool_use block lacks its id, name or input")  # noqa: TRY004 - malformed, like all the rest
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": written(arguments).decode()}}
