"""The body of a generic inference call: what the features and the bounds may see of JSON that could mean anything.

Reads a bounded part of it and changes nothing. It must never know which protocol the model's endpoint speaks.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from bandit.types import Prompt
from serving.errors import InvalidRequest
from serving.request_headers import Hints
from serving.wire import Call

__all__ = ["parse_infer"]

_BYTES_PER_TOKEN: Final = 4  # the common rule of thumb for English
_MAX_VALUES: Final = 1_000  # looked at, of the body's
_MAX_ITEMS: Final = 20  # of one list's: tables of numbers must not hide the text behind them
_MAX_TEXT: Final = 4_096  # characters; the features read no more
_LONGEST_WORD: Final = 256  # characters; what is longer is a file in base64 or the like
_NO_TEXT: Final = ("name", "datatype", "id")  # what the Open Inference Protocol calls tensors, not what is in them


def parse_infer(model: str, body: dict[str, Any], size: int, hints: Hints) -> Call:
    """The call that asks `model` for `body`, of `size` bytes as it came, with what its caller said beside it.

    Its text are the body's strings, in order; its length in tokens is that of the whole body, its turns the inputs in
    it: numbers, images in base64 and the like are seen by their length alone.
    """
    if body.get("stream") is True:
        raise InvalidRequest("inference calls are not streamed", "stream")
    return Call(
        "infer",
        model,
        body,
        stream=False,
        wants_usage=False,
        prompt=Prompt(
            text=_text(body),
            input_tokens=size // _BYTES_PER_TOKEN,
            turns=_inputs(body),
            category=hints.category,
            vector=hints.vector,
        ),
        limits=hints.limits,
        session=hints.session,
        worst_input_tokens=size,
        timeout_s=hints.timeout_s,
        cache_control=hints.cache_control,
    )


def _text(body: dict[str, Any]) -> str:
    """The body's strings in order, of each list's first items; a long string without a space is no text."""
    texts, room, left = list[str](), _MAX_TEXT, list[Any]([body])
    for _ in range(_MAX_VALUES):
        if not left or room <= 0:
            break
        value = left.pop()
        if isinstance(value, str):
            start = value[:room]
            if len(start) < _LONGEST_WORD or " " in start:
                texts.append(start)
                room -= len(start) + 1
        elif isinstance(value, list):
            left.extend(reversed(value[:_MAX_ITEMS]))
        elif isinstance(value, dict):
            parts = islice(value.items(), _MAX_VALUES)
            left.extend(reversed([part for name, part in parts if name not in _NO_TEXT]))
    return "\n".join(texts)


def _inputs(body: dict[str, Any]) -> int:
    """How many inputs there are: `instances`, or the first axis of the first tensor; else one."""
    instances, tensors = body.get("instances"), body.get("inputs")
    if isinstance(instances, list):
        return max(1, len(instances))
    first = tensors[0] if isinstance(tensors, list) and tensors else None
    shape = first.get("shape") if isinstance(first, dict) else None
    count = shape[0] if isinstance(shape, list) and shape else 1
    return min(10**6, count) if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 1
