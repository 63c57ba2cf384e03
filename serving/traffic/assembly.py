"""A streamed answer put together into a whole one, and a whole one told as a stream again.

Knows OpenAI's two forms of an answer. Of a field that it does not know, the last value said counts, beside the choices
as in each. What it cannot put together without loss it gives up: such an answer is passed on and not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

__all__ = ["Assembly", "complete", "events_of"]

_ENDS = ("stop", "tool_calls", "function_call")
_OUR_OWN = ("id", "object", "model", "choices", "usage", "obfuscation")  # of an answer: not its other fields
_OF_A_CHOICE = ("index", "message", "delta", "text", "logprobs")
_TOLD_APART = ("role", "tool_calls")


class Assembly:
    """One streamed answer while it comes; `answer` is the whole one once all of it has been fed."""

    def __init__(self, kind: str, max_bytes: int) -> None:
        self._chat = kind == "chat/completions"
        self._max_bytes, self._size = max_bytes, 0
        self._top: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._choices: dict[int, dict[str, Any]] = {}
        self.given_up = False

    def feed(self, event: Mapping[str, Any], size: int) -> None:
        """One event of `size` bytes."""
        self._size += size
        # An event's own frame is about as large as a kept answer's: the sum is an upper bound of what is put together.
        if self._size > self._max_bytes * 16:
            self.given_up = True
        if self.given_up:
            return
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        self._top |= _others(event, _OUR_OWN)
        try:
            for choice in event.get("choices") or ():
                self._feed_choice(choice)
        except (TypeError, KeyError, AttributeError, ValueError):
            self.given_up = True  # not the form we know

    def answer(self) -> dict[str, Any] | None:
        """The whole answer; None where it could not be put together."""
        if self.given_up or not self._choices:
            return None
        choices = []
        for index in sorted(self._choices):
            choice = self._choices[index]
            if self._chat:
                message = choice["message"]
                calls = message.pop("tool_calls", {})
                if calls:
                    message["tool_calls"] = [calls[i] for i in sorted(calls)]
            choices.append(choice)
        name = "chat.completion" if self._chat else "text_completion"
        whole: dict[str, Any] = {"object": name, **self._top, "choices": choices}
        if self._usage is not None:
            whole["usage"] = self._usage
        return whole

    def _feed_choice(self, part: Mapping[str, Any]) -> None:
        index = _index(part.get("index", 0))
        choice = self._choices.get(index)
        if choice is None:
            start = {"message": {"role": "assistant", "content": None}} if self._chat else {"text": ""}
            choice = self._choices[index] = {"index": index, **start, "logprobs": None, "finish_reason": None}
        choice |= _others(part, _OF_A_CHOICE)
        if part.get("logprobs") is not None:
            choice["logprobs"] = _joined_lists(choice["logprobs"], part["logprobs"])
        if self._chat:
            self._feed_delta(choice["message"], part.get("delta") or {})
        else:
            choice["text"] += part.get("text") or ""

    def _feed_delta(self, message: dict[str, Any], delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            if value is None:
                continue
            if name == "role":
                message["role"] = value
            elif name == "tool_calls":
                calls = message.setdefault("tool_calls", {})
                for call in value:
                    _feed_tool_call(calls, call)
            elif isinstance(value, str):  # content, refusal, a reasoning model's thoughts
                message[name] = (message.get(name) or "") + value
            else:
                raise ValueError(name)


def complete(answer: Mapping[str, Any], kind: str) -> bool:
    """Whether a whole answer may be kept: each of its choices came to its own end, not cut off."""
    if kind not in ("chat/completions", "completions"):
        return True
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        return False
    return all(isinstance(choice, dict) and _ended(choice, chat=kind == "chat/completions") for choice in choices)


def events_of(kind: str, answer: Mapping[str, Any], decision_id: str, model: str, *, usage: bool) -> Iterator[bytes]:
    """The events of a stream that says what `answer` says; with its usage last where the caller wants it."""
    chat = kind == "chat/completions"
    frame = {"id": decision_id, "object": "chat.completion.chunk" if chat else "text_completion"}
    frame |= _others(answer, _OUR_OWN) | {"model": model}
    for choice in answer["choices"]:
        index, end = choice.get("index", 0), {"finish_reason": None} | _others(choice, _OF_A_CHOICE)
        if chat:
            for delta, more in _deltas(choice):
                yield _event(frame, [{"index": index, "delta": delta, "finish_reason": None, **more}])
            yield _event(frame, [{"index": index, "delta": {}, **end}])
        else:
            text = {"text": choice.get("text", ""), "logprobs": choice.get("logprobs")}
            yield _event(frame, [{"index": index, **text, **end}])
    if usage and answer.get("usage") is not None:
        yield _event(frame | {"usage": answer["usage"]}, [])
    yield b"data: [DONE]\n\n"


def _deltas(choice: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    message = choice["message"]
    yield {"role": message.get("role", "assistant"), "content": ""}, {}
    said = {name: value for name, value in message.items() if name not in _TOLD_APART and value is not None}
    if said:
        logprobs = choice.get("logprobs")
        yield said, {} if logprobs is None else {"logprobs": logprobs}
    calls = message.get("tool_calls")
    if calls:
        yield {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}, {}


def _others(fields: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in known and value is not None}


def _ended(choice: Mapping[str, Any], *, chat: bool) -> bool:
    """Whether a choice came to its own end, and can be told as a stream."""
    message = choice.get("message")
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    tellable = isinstance(message, dict) and (calls is None or _all_objects(calls)) if chat else True
    return tellable and choice.get("finish_reason") in _ENDS


def _all_objects(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _index(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("an index is no number")  # noqa: TRY004 - not the form we know, as all the rest
    return value


def _feed_tool_call(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    call = calls.setdefault(_index(part["index"]), {})
    for name, value in part.items():
        if name == "function":
            function = call.setdefault("function", {"name": "", "arguments": ""})
            for field, text in value.items():
                if text is not None:
                    function[field] = function.get(field, "") + text
        elif name != "index" and value is not None:
            call[name] = value


def _joined_lists(before: dict[str, Any] | None, part: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(before or {})
    for name, value in part.items():
        if value is None:
            joined.setdefault(name, None)
        elif isinstance(value, list):
            joined[name] = (joined.get(name) or []) + value
        else:
            raise ValueError(name)
    return joined


def _event(frame: Mapping[str, Any], choices: list[dict[str, Any]]) -> bytes:
    return b"data: " + orjson.dumps({**frame, "choices": choices}) + b"\n\n"
