"""OpenAI's wire format: request bodies in, response bodies and server-sent events out.

Reads and checks only what routing needs; every other field passes through untouched. Knows nothing of pools, arms or
decisions beyond the id and the model's name that it writes into answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from bandit.types import Prompt, RequestLimits
from serving.errors import InvalidRequest
from serving.request_headers import NO_LIMITS, Hints

__all__ = [
    "Call",
    "EventReader",
    "Kind",
    "StreamRewriter",
    "Usage",
    "answer_body",
    "answers_asked",
    "model_name",
    "parse_body",
    "parse_call",
    "parse_json",
    "parse_route",
    "upstream_body",
    "usage_of",
]

Kind = Literal["chat/completions", "completions", "embeddings", "infer"]
MAX_NAME = 256
_FRAME_TOKENS = 8  # that a chat template puts around a message
_READ_TOO = {"chat/completions": ("tools", "functions", "response_format"), "completions": ("suffix",)}  # by the model
_CHARACTERS_PER_TOKEN = 4  # the common rule of thumb for English; only until the upstream's own count comes
_MOST_ANSWERS = 10_000  # that one may ask for of a prompt


@dataclass(frozen=True, slots=True)
class Call:
    """One inference request: what it asks for, and what the features may see of it.

    `session` is the caller's own name for it. `in_tool_loop`: the last message is a tool's result. `worst_input_tokens`
    bounds the input's tokens, `max_output_tokens` the output's of all choices (None: the caller set no bound).
    `passed_on`: headers that go upstream with it.
    """

    kind: Kind
    model: str
    body: dict[str, Any]
    stream: bool
    wants_usage: bool
    prompt: Prompt
    limits: RequestLimits = NO_LIMITS
    session: str | None = None
    in_tool_loop: bool = False
    worst_input_tokens: int = 0
    max_output_tokens: int | None = None
    timeout_s: float | None = None
    cache_control: str | None = None
    passed_on: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, `cached_tokens` of the input's from the upstream's cache; None: it did not say."""

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None = None


def parse_json(raw: bytes) -> Any:
    """The JSON value in `raw`, or InvalidRequest."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, or InvalidRequest."""
    body = parse_json(raw)
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return body


def parse_call(kind: Kind, body: dict[str, Any], hints: Hints, max_messages: int) -> Call:
    """The request in `body`, checked as far as routing reads it, with what its caller said beside it."""
    stream = _boolean(body, "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidRequest("must be an object", "stream_options")
    if kind == "chat/completions":
        prompt = _chat_prompt(body, hints, max_messages)
    else:
        if stream and kind == "embeddings":
            raise InvalidRequest("embeddings cannot be streamed", "stream")
        prompt = _text_prompt(body, "prompt" if kind == "completions" else "input", hints, max_messages)
    wants_usage = bool(options and options.get("include_usage"))
    return Call(
        kind,
        model_name(body),
        body,
        stream,
        wants_usage,
        prompt,
        hints.limits,
        session=hints.session,
        in_tool_loop=kind == "chat/completions" and body["messages"][-1]["role"] in ("tool", "function"),
        worst_input_tokens=_worst_input_tokens(kind, body),
        max_output_tokens=_max_output_tokens(kind, body),
        timeout_s=hints.timeout_s,
        cache_control=hints.cache_control,
    )


def parse_route(body: dict[str, Any], hints: Hints, max_messages: int) -> Call:
    """The request that a caller will make itself; where it shows nothing of it, it could be any chat."""
    if "messages" in body:
        return parse_call("chat/completions", body, hints, max_messages)
    if "prompt" in body or "input" in body:
        return parse_call("completions" if "prompt" in body else "embeddings", body, hints, max_messages)
    call = parse_call("embeddings", {**body, "input": ""}, hints, max_messages)
    return replace(call, kind="chat/completions")


def _worst_input_tokens(kind: Kind, body: Mapping[str, Any]) -> int:
    """An upper bound of the input's tokens: no tokenizer makes more of them than bytes, but for a message's frame."""
    content = body.get({"chat/completions": "messages", "completions": "prompt"}.get(kind, "input"))
    messages = len(content) if isinstance(content, list) else 1
    try:
        tokens = len(orjson.dumps(content)) + _FRAME_TOKENS * messages
        return tokens + sum(len(orjson.dumps(body[name])) for name in _READ_TOO.get(kind, ()) if body.get(name))
    except orjson.JSONEncodeError:  # refused by `upstream_body`
        return 0


def _max_output_tokens(kind: Kind, body: Mapping[str, Any]) -> int | None:
    given = body.get("max_completion_tokens")
    tokens = _count(body.get("max_tokens") if given is None else given)
    return None if tokens is None else tokens * answers_asked(kind, body)


def answers_asked(kind: Kind, body: Mapping[str, Any]) -> int:
    """How many answers are made: `n`, or `best_of`, for each of the prompts."""
    counts = [_count(body.get(name)) or 1 for name in ("n", "best_of")]
    prompts = body.get("prompt") if kind == "completions" else None
    many = isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], str | list)
    return min(_MOST_ANSWERS, max(counts)) * (len(prompts) if many and prompts is not None else 1)


def model_name(body: Mapping[str, Any]) -> str:
    """The field `model`, checked."""
    name = body.get("model")
    if not isinstance(name, str) or not name or len(name) > MAX_NAME:
        raise InvalidRequest(f"must be the name of a pool or model, 1 to {MAX_NAME} characters", "model")
    return name


def upstream_body(call: Call, upstream_model: str) -> bytes:
    """The body to send: the caller's own, with the model's name, and usage asked for where it is streamed."""
    body = {**call.body, "model": upstream_model}
    if call.stream and not call.wants_usage:
        body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:  # a lone surrogate, for one
        raise InvalidRequest(f"the body cannot be passed on as JSON: {error}", code="invalid_json") from None


def answer_body(answer: Any, marks: Mapping[str, str]) -> bytes:
    """The body to answer with: the endpoint's own with our id and model in it; ValueError: it is nested too deeply."""
    return _dumped({**answer, **marks} if marks else answer)


def usage_of(body: Mapping[str, Any]) -> Usage:
    """Tokens from an answer's `usage`; anything that is not a count is taken as not said."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return Usage(None, None)
    output = usage.get("completion_tokens", 0 if "prompt_tokens" in usage else None)
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(_count(usage.get("prompt_tokens")), _count(output), cached)


class EventReader:
    """Cuts a byte stream into the data of server-sent events (WHATWG HTML, section 9.2), comments left out."""

    def __init__(self, max_event_bytes: int) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._max = max_event_bytes

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that `chunk` completes; ValueError when one grows past the limit."""
        self._buffer += chunk
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            line = bytes(self._buffer[start:end]).rstrip(b"\r")
            start = end + 1
            if not line:
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    self._data, self._size = [], 0
                    yield data
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._size += len(line)
        del self._buffer[:start]
        if len(self._buffer) + self._size > self._max:
            raise ValueError(f"an event is larger than {self._max:,} bytes")


class StreamRewriter:
    """Rewrites a streamed answer's events: our id and model in each, usage kept and shown only to who asked for it.

    `seen` is told each event as it came, with its size.
    """

    def __init__(
        self,
        decision_id: str,
        model: str,
        *,
        show_usage: bool,
        seen: Callable[[Mapping[str, Any], int], None] | None = None,
    ) -> None:
        self._id, self._model, self._show_usage, self._seen = decision_id, model, show_usage, seen
        self.usage = Usage(None, None)
        self.pieces = 0  # events that carried content; about one token each, the estimate when usage never comes
        self.done = False
        self._begun: set[int] = set()  # choices by their index
        self._ended: set[int] = set()

    @property
    def whole(self) -> bool:
        """Whether every choice has come to its end: all there is, where a server leaves out the `[DONE]` behind it."""
        return bool(self._begun) and self._begun == self._ended

    def rewrite(self, data: bytes) -> bytes:
        """The event to pass on, empty for one to leave out; ValueError when it is not what the protocol says."""
        if data == b"[DONE]":
            self.done = True
            return b"data: [DONE]\n\n"
        event = orjson.loads(data)
        if not isinstance(event, dict):
            raise ValueError("a stream event is not a JSON object")  # noqa: TRY004 - one kind for all that is malformed
        if event.get("error"):
            raise ValueError("the upstream reported an error in its stream")
        if self._seen is not None:
            self._seen(event, len(data))
        choices = event.get("choices")
        if event.get("usage") is not None:
            self.usage = usage_of(event)
            if not choices and not self._show_usage:
                return b""
        if not self._show_usage:
            event.pop("usage", None)
        if choices:
            self.pieces += 1
            self._note_ends(choices)
        event["id"], event["model"] = self._id, self._model
        return b"data: " + _dumped(event) + b"\n\n"

    def _note_ends(self, choices: Any) -> None:
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and isinstance(index := choice.get("index", 0), int):
                self._begun.add(index)
                if choice.get("finish_reason") is not None:
                    self._ended.add(index)


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:  # what may be read is deeper than what may be written
        raise ValueError(str(error)) from None


def _chat_prompt(body: Mapping[str, Any], hints: Hints, max_messages: int) -> Prompt:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("must be a non-empty list of messages", "messages")
    if len(messages) > max_messages:
        raise InvalidRequest(
            f"at most {max_messages:,} messages, not {len(messages):,}", "messages", "too_many_messages"
        )
    characters, turns, last, system = 0, 0, "", False
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest("must be an object", f"messages[{i}]")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest("must be a string", f"messages[{i}].role")
        text = _content_text(message.get("content"), f"messages[{i}].content")
        characters += len(text)
        if role == "user":
            turns += 1
            last = text
        elif role in ("system", "developer"):
            system = True
    tools, tools_length = _tools(body)
    response_format = body.get("response_format")
    if response_format is not None and not isinstance(response_format, dict):
        raise InvalidRequest("must be an object", "response_format")
    return Prompt(
        text=last,
        input_tokens=(characters + tools_length) // _CHARACTERS_PER_TOKEN,
        turns=turns,
        has_system=system,
        tools=tools,
        json_mode=bool(response_format and str(response_format.get("type", "")).startswith("json")),
        category=hints.category,
        vector=hints.vector,
    )


def _tools(body: Mapping[str, Any]) -> tuple[int, int]:
    """How many tools, and their length as text: they are sent, and paid for, like any; in function calling most of it.

    What cannot be passed on has length 0 here, and is refused by `upstream_body`.
    """
    tools = body.get("tools")
    if not tools and (tools is None or isinstance(tools, list)):
        return 0, 0
    if not isinstance(tools, list):
        raise InvalidRequest("must be a list", "tools")
    try:
        return len(tools), len(orjson.dumps(tools))
    except orjson.JSONEncodeError:
        return len(tools), 0


def _content_text(content: Any, param: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise InvalidRequest("must be a string or a list of parts", param)
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict):
            raise InvalidRequest("must be an object", f"{param}[{i}]")
        text = part.get("text")
        if isinstance(text, str):
            texts.append(text)
    return "\n".join(texts)


def _text_prompt(body: Mapping[str, Any], field: str, hints: Hints, max_items: int) -> Prompt:
    value = body.get(field)
    items = value if isinstance(value, list) else [value]
    sound = all(isinstance(item, (str, int, list)) and not isinstance(item, bool) for item in items)
    if not items or not sound or not isinstance(value, (str, list)):
        raise InvalidRequest("must be a string, a list of strings, or tokens", field)
    tokens_given = isinstance(value, list) and isinstance(items[0], int)
    if not tokens_given and len(items) > max_items:
        raise InvalidRequest(f"at most {max_items:,} items", field)
    texts = [item for item in items if isinstance(item, str)]
    tokens = sum(len(item) if isinstance(item, list) else 1 for item in items if not isinstance(item, str))
    return Prompt(
        text=texts[-1] if texts else "",
        input_tokens=tokens + sum(map(len, texts)) // _CHARACTERS_PER_TOKEN,
        turns=1 if tokens_given else len(items),
        category=hints.category,
        vector=hints.vector,
    )


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest("must be true or false", name)
    return bool(value)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**9 else None
