"""What can be joined into one upstream request, how it is joined, and how the answer is cut apart again.

Three forms: OpenAI embeddings, the Open Inference Protocol's tensors, JSON `instances`. Only requests alike in all but
their inputs fit together. Pure: sends and waits for nothing. What is not plainly one of the forms goes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any, Final, Literal

import orjson

from serving.wire import Call

__all__ = ["Form", "form_of", "shared_out"]

_BYTES_PER_TOKEN: Final = 4  # the common rule of thumb for English: only to share out what the upstream counted
_SIZED = ("name", "shape", "data")


@dataclass(frozen=True, slots=True)
class Form:
    """One request as part of a batch: `size` inputs of `tokens` tokens, by estimate; it fits those with its `key`."""

    kind: Literal["embeddings", "tensors", "instances"]
    key: bytes
    call: Call
    inputs: list[Any]
    size: int
    tokens: int

    def join(self, forms: Sequence[Form]) -> Call:
        """One call that asks for all of `forms`; its caller's own hints are those of the first."""
        if self.kind == "tensors":
            merged = [_joined([form.inputs[i] for form in forms]) for i in range(len(self.inputs))]
            return replace(self.call, body=self.call.body | {"inputs": merged})
        field = "input" if self.kind == "embeddings" else "instances"
        together = [item for form in forms for item in form.inputs]
        worst = sum(form.call.worst_input_tokens for form in forms)
        return replace(self.call, body=self.call.body | {field: together}, worst_input_tokens=worst)

    def split(self, answer: Any, forms: Sequence[Form]) -> list[Any]:
        """The answer of each of `forms` out of the one to all; ValueError where that does not fit what was asked."""
        total = sum(form.size for form in forms)
        if self.kind == "instances" and isinstance(answer, list) and len(answer) == total:
            return _cut(answer, forms)
        if not isinstance(answer, dict):
            message = "the answer is neither an object nor a list with one item for each input"
            raise ValueError(message)  # noqa: TRY004 - one kind for all that does not fit
        if self.kind == "tensors":
            parts = _split_tensors(answer, forms, total)
        else:
            parts = _split_list(answer, forms, total, in_order=self.kind == "instances")
        usage = answer.get("usage")
        if isinstance(usage, dict):
            for part, share in zip(parts, _split_usage(usage, [form.tokens for form in forms]), strict=True):
                part["usage"] = share
        return parts


def form_of(call: Call) -> Form | None:
    """The form of a call; None for one that has to go alone."""
    try:
        return None if call.stream else _form_of(call)
    except orjson.JSONEncodeError:
        return None  # it cannot be sent either, and its sender alone is to hear of it


def _form_of(call: Call) -> Form | None:
    body = call.body
    if call.kind == "embeddings":
        return _embeddings(call, body.get("input"))
    if call.kind == "infer" and "inputs" in body:
        return _tensors(call, body["inputs"])
    if call.kind == "infer" and isinstance(body.get("instances"), list) and body["instances"]:
        instances = body["instances"]
        tokens = max(1, len(orjson.dumps(instances)) // _BYTES_PER_TOKEN)
        return Form("instances", _key(call, "instances"), call, instances, len(instances), tokens)
    return None


def shared_out(total: int, weights: Sequence[int]) -> list[int]:
    """`total` ≥ 0 by weights (> 0) in whole numbers whose sum is `total`: the largest remainders get what is left."""
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _key(call: Call, *without: str) -> bytes:
    rest = [[name, call.body[name]] for name in sorted(call.body) if name not in without]
    return orjson.dumps([call.kind, without, rest])


def _embeddings(call: Call, given: Any) -> Form | None:
    if isinstance(given, str):
        items: list[Any] = [given]
    elif isinstance(given, list) and given and isinstance(given[0], int):
        items = [given]
    elif isinstance(given, list) and given:
        items = given
    else:
        return None
    of = str if isinstance(items[0], str) else list
    if not all(isinstance(item, of) and item for item in items):
        return None  # an endpoint refuses an empty input, or two kinds: its sender alone is to hear of it
    if of is str:
        tokens = sum(max(1, len(item.encode(errors="replace")) // _BYTES_PER_TOKEN) for item in items)
    else:
        tokens = sum(map(len, items))
    return Form("embeddings", _key(call, "input", "model") + of.__name__.encode(), call, items, len(items), tokens)


def _tensors(call: Call, inputs: Any) -> Form | None:
    """Tensors whose first axis counts inputs, all of one length, with their data in them."""
    if not isinstance(inputs, list) or not inputs:
        return None
    sizes, alike = set(), []
    for tensor in inputs:
        if not isinstance(tensor, dict) or not _sound(tensor):
            return None
        sizes.add(tensor["shape"][0])
        flat = _flat(tensor["data"])
        rest = {name: value for name, value in tensor.items() if name not in ("shape", "data")}
        alike.append([tensor["shape"][1:], flat, rest])
    if len(sizes) != 1:
        return None
    size = sizes.pop()
    key = _key(call, "inputs", "id") + orjson.dumps(alike, option=orjson.OPT_SORT_KEYS)
    elements = sum(prod(tensor["shape"]) for tensor in inputs)
    return Form("tensors", key, call, inputs, size, max(1, elements))


def _sound(tensor: Mapping[str, Any]) -> bool:
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(shape, list) or not shape or not isinstance(data, list) or not data:
        return False
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        return False
    return isinstance(tensor.get("name"), str) and len(data) == (prod(shape) if _flat(data) else shape[0])


def _flat(data: list[Any]) -> bool:
    return not isinstance(data[0], list)


def _joined(tensors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = tensors[0]
    shape = [sum(tensor["shape"][0] for tensor in tensors), *first["shape"][1:]]
    return {**first, "shape": shape, "data": [item for tensor in tensors for item in tensor["data"]]}


def _split_tensors(answer: Mapping[str, Any], forms: Sequence[Form], total: int) -> list[dict[str, Any]]:
    outputs = answer.get("outputs")
    if not isinstance(outputs, list) or not outputs:
        raise ValueError("the answer has no outputs")
    parts: list[dict[str, Any]] = []
    for form in forms:
        part = {name: value for name, value in answer.items() if name not in ("outputs", "id")} | {"outputs": []}
        if "id" in form.call.body:
            part["id"] = form.call.body["id"]
        parts.append(part)
    for output in outputs:
        if not isinstance(output, dict) or not _sound(output) or output["shape"][0] != total:
            raise ValueError("an output's first axis is not that of the inputs")
        a_row = prod(output["shape"][1:]) if _flat(output["data"]) else 1
        start = 0
        for form, part in zip(forms, parts, strict=True):
            end = start + form.size * a_row
            shape = [form.size, *output["shape"][1:]]
            part["outputs"].append({**output, "shape": shape, "data": output["data"][start:end]})
            start = end
    return parts


def _split_list(
    answer: Mapping[str, Any], forms: Sequence[Form], total: int, *, in_order: bool
) -> list[dict[str, Any]]:
    """The list that has an item for each input: `data`; of JSON `predictions`, or the only one of that length."""
    lists = [name for name, value in answer.items() if isinstance(value, list) and len(value) == total]
    wanted = "predictions" if in_order else "data"
    name = wanted if wanted in lists else lists[0] if in_order and len(lists) == 1 else None
    if name is None:
        raise ValueError("the answer has not one item for each input")
    items = answer[name]
    if not in_order:
        by_index = {str(item.get("index")): item for item in items if isinstance(item, dict)}
        if set(by_index) != set(map(str, range(total))):
            raise ValueError("the answer's indices are not those of the inputs")
        items = [by_index[str(i)] for i in range(total)]
    return [
        {**answer, name: own if in_order else [{**item, "index": i} for i, item in enumerate(own)]}
        for own in _cut(items, forms)
    ]


def _cut(items: list[Any], forms: Sequence[Form]) -> list[list[Any]]:
    ends = list(accumulate(form.size for form in forms))
    return [items[end - form.size : end] for form, end in zip(forms, ends, strict=True)]


def _split_usage(usage: Mapping[str, Any], weights: Sequence[int]) -> list[dict[str, Any]]:
    """Each count shared out on its own, so that each adds up to what was counted; what is no count goes to all."""
    shares: list[dict[str, Any]] = [{} for _ in weights]
    for name, value in usage.items():
        counted = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        for share, part in zip(shares, shared_out(value, weights) if counted else [value] * len(weights), strict=True):
            share[name] = part
    return shares
