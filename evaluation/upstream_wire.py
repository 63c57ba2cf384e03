"""The OpenAI protocol as an upstream speaks it: requests to calls, answers to bodies and paced events.

Pure: bytes and plain data. Never waits, and knows nothing of sockets, sources or faults.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import orjson

from bandit.errors import InvalidInput
from evaluation.answers import Answer, estimate_tokens

__all__ = ["Call", "Reply", "embeddings_body", "error_body", "parse_call", "reply_body", "reply_events"]

Kind = Literal["chat", "text", "embeddings"]

MAX_EVENTS: Final = 32
MIN_EVENTS: Final = 4
MIN_EVENT_GAP_S: Final = 0.01
"""A stream so short that events would come closer than this has fewer: each event costs CPU time."""

TOOL_MARK: Final = "[tool]"
DEFAULT_EMBEDDING_DIMENSIONS: Final = 64
MAX_EMBEDDING_DIMENSIONS: Final = 3072
MAX_EMBEDDING_INPUTS: Final = 2048
_FINGERPRINT: Final = "fp_trial"
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as far as an answer depends on it. `tool`: the function which the answer shall call."""

    kind: Kind
    model: str
    prompt_text: str
    category: str | None = None
    stream: bool = False
    include_usage: bool = False
    tool: str | None = None
    inputs: tuple[str, ...] = ()
    dimensions: int = DEFAULT_EMBEDDING_DIMENSIONS
    as_base64: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer on its way out; `created_ts` in unix seconds."""

    call: Call
    answer: Answer
    reply_id: str
    created_ts: int


def parse_call(kind: Kind, body: bytes, category: str | None) -> Call:
    """A request body to a call; `category` is the caller's header. Raises InvalidInput."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput("body", f"is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidInput("body", "must be a JSON object")
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput("model", "must be a text that is not empty")
    if kind == "embeddings":
        return _embeddings_call(model, data, category)
    stream = data.get("stream") is True
    options = data.get("stream_options") or {}
    text = _last_user_text(data.get("messages")) if kind == "chat" else _joined("prompt", data.get("prompt"))
    return Call(
        kind=kind,
        model=model,
        prompt_text=text,
        category=category,
        stream=stream,
        include_usage=stream and isinstance(options, dict) and options.get("include_usage") is True,
        tool=_first_tool(data.get("tools")) if TOOL_MARK in text else None,
    )


def reply_body(reply: Reply) -> bytes:
    """The whole answer of a chat or text completion, with usage."""
    call, answer = reply.call, reply.answer
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": _finish_reason(call)}
    if call.kind == "text":
        choice["text"] = answer.text
    elif call.tool is None:
        choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
    else:
        called = _tool_call(reply, _tool_arguments(answer))
        choice["message"] = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [called]}
    kind = "chat.completion" if call.kind == "chat" else "text_completion"
    return orjson.dumps({**_head(reply, kind), "choices": [choice], "usage": _usage(answer)})


def reply_events(reply: Reply, first_s: float, last_s: float) -> list[tuple[float, bytes]]:
    """The same answer as a stream: writes of whole events, each with its time after the request came in.

    The first (role and first words) is due at `first_s`, the last (which ends the stream) at `last_s`, the
    others evenly between. At most MAX_EVENTS writes.
    """
    call, answer = reply.call, reply.answer
    text = answer.text if call.tool is None else _tool_arguments(answer)
    n_paced = min(MAX_EVENTS, max(MIN_EVENTS, 1 + int((last_s - first_s) / MIN_EVENT_GAP_S)))
    size = -(-len(text) // min(n_paced, max(2, answer.output_tokens)))
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    writes = [_event(reply, _delta(call, piece)) for piece in pieces]
    if call.kind == "chat":
        writes[0] = _event(reply, _opening(reply)) + writes[0]
    ending = _event(reply, {} if call.kind == "chat" else {"text": ""}, _finish_reason(call))
    if call.include_usage:
        ending += _event(reply, None)
    writes[-1] += ending + _DONE
    step = (last_s - first_s) / max(1, len(writes) - 1)
    times = [first_s + i * step for i in range(len(writes) - 1)] + [last_s]
    return list(zip(times, writes, strict=True))


def embeddings_body(reply: Reply) -> bytes:
    """Unit vectors that depend on nothing but each input's text."""
    call = reply.call
    data = []
    for i, text in enumerate(call.inputs):
        rng = np.random.Generator(np.random.SFC64(zlib.crc32(text.encode())))
        vector = rng.standard_normal(call.dimensions, dtype=np.float32)
        vector /= np.linalg.norm(vector)
        value = base64.b64encode(vector.tobytes()).decode() if call.as_base64 else vector.tolist()
        data.append({"object": "embedding", "index": i, "embedding": value})
    tokens = sum(map(estimate_tokens, call.inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": call.model, "usage": usage})


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _embeddings_call(model: str, data: dict[str, Any], category: str | None) -> Call:
    given = data.get("input")
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(inputs) > MAX_EMBEDDING_INPUTS:
        raise InvalidInput("input", f"must have at most {MAX_EMBEDDING_INPUTS} entries")
    texts = tuple(_joined("input", entry) for entry in inputs)
    dimensions = data.get("dimensions", DEFAULT_EMBEDDING_DIMENSIONS)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_EMBEDDING_DIMENSIONS:
        raise InvalidInput("dimensions", f"must be a whole number from 1 to {MAX_EMBEDDING_DIMENSIONS}")
    return Call(
        kind="embeddings",
        model=model,
        prompt_text=texts[0],
        category=category,
        inputs=texts,
        dimensions=dimensions,
        as_base64=data.get("encoding_format") == "base64",
    )


def _last_user_text(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages", "must be a list that is not empty")
    for message in reversed(messages):
        if not isinstance(message, dict):
            raise InvalidInput("messages", "must hold objects")
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
            if not isinstance(content, str):
                raise InvalidInput("messages", "a user message's content must be a text or a list of parts")
            return content
    return ""


def _joined(param: str, value: Any) -> str:
    """A text, or several in one list, or token numbers, as one text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(entry, str | int) for entry in value):
        return " ".join(map(str, value))
    raise InvalidInput(param, "must be a text or a list that is not empty")


def _first_tool(tools: Any) -> str | None:
    if not isinstance(tools, list) or not tools:
        return None
    function = tools[0].get("function") if isinstance(tools[0], dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidInput("tools", "each must have a function with a name")
    return name


def _head(reply: Reply, kind: str) -> dict[str, Any]:
    return {
        "id": reply.reply_id,
        "object": kind,
        "created": reply.created_ts,
        "model": reply.call.model,
        "system_fingerprint": _FINGERPRINT,
    }


def _usage(answer: Answer) -> dict[str, int]:
    tokens_in, tokens_out = answer.input_tokens, answer.output_tokens
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }


def _finish_reason(call: Call) -> str:
    return "stop" if call.tool is None else "tool_calls"


def _tool_arguments(answer: Answer) -> str:
    return orjson.dumps({"note": answer.text}).decode()


def _tool_call(reply: Reply, arguments: str) -> dict[str, Any]:
    call_id = "call_" + reply.reply_id.rpartition("-")[2]
    return {"id": call_id, "type": "function", "function": {"name": reply.call.tool, "arguments": arguments}}


def _opening(reply: Reply) -> dict[str, Any]:
    if reply.call.tool is None:
        return {"role": "assistant", "content": "", "refusal": None}
    return {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_tool_call(reply, "")}]}


def _delta(call: Call, piece: str) -> dict[str, Any]:
    if call.kind == "text":
        return {"text": piece}
    if call.tool is None:
        return {"content": piece}
    return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _event(reply: Reply, delta: dict[str, Any] | None, finish_reason: str | None = None) -> bytes:
    """One event. `delta` None: the one that carries usage and no choice."""
    call = reply.call
    event = _head(reply, "chat.completion.chunk" if call.kind == "chat" else "text_completion")
    if delta is None:
        event["choices"] = []
    else:
        content = delta if call.kind == "text" else {"delta": delta}
        event["choices"] = [{"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}]
    if call.include_usage:
        event["usage"] = _usage(reply.answer) if delta is None else None
    return b"data: " + orjson.dumps(event) + b"\n\n"
