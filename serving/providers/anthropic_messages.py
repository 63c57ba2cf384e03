"""A conversation as Anthropic's Messages API takes it, from one as OpenAI's callers send it.

Owns the shape of messages: turns that alternate, blocks of content, calls of tools and their results. What cannot be
said is refused by its path. It must never know of a request's other fields, nor of answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from serving.errors import InvalidRequest

__all__ = ["Block", "conversation", "required_text"]

Block = dict[str, Any]
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_MEANT = {"image/jpg": "image/jpeg"}  # as many callers spell it
_NOT_IN_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")  # other providers' ids of calls may have more signs than it takes


def conversation(messages: Iterable[Mapping[str, Any]]) -> tuple[str | list[Block], list[Block]]:
    """The system prompt, empty where there is none, and the turns, the user's first. InvalidRequest, with its path.

    System and developer messages all go to the front, a line break between them, wherever they stood. A user's
    messages and tools' results that follow each other are one turn, as are an assistant's.
    """
    system: list[Block] = []
    turns: list[Block] = []
    for i, message in enumerate(messages):
        at, role = f"messages[{i}]", message["role"]
        if role in ("system", "developer"):
            system += _instructions(message, at)
        elif role == "user":
            blocks = _blocks(message.get("content"), f"{at}.content")
            if not blocks:
                raise InvalidRequest("must not be empty for a model that speaks Anthropic's protocol", f"{at}.content")
            _add(turns, "user", blocks)
        elif role == "assistant":
            _add(turns, "assistant", _said(message, at))
        elif role == "tool":
            _add(turns, "user", [_result(message, at)])
        else:
            raise InvalidRequest("must be system, developer, user, assistant or tool", f"{at}.role")
    if not turns or turns[0]["role"] != "user":
        raise InvalidRequest("must begin with the user, for a model that speaks Anthropic's protocol", "messages")
    _without_last_space(turns[-1])
    if any("cache_control" in block for block in system):
        return system, turns
    return "\n".join(block["text"] for block in system), turns


def required_text(value: Mapping[str, Any], name: str, at: str) -> str:
    """A field that must be text with something in it."""
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise InvalidRequest("must be a string that is not empty", f"{at}.{name}")
    return text


def _add(turns: list[Block], role: str, blocks: list[Block]) -> None:
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": role, "content": blocks})


def _instructions(message: Mapping[str, Any], at: str) -> list[Block]:
    blocks = _blocks(message.get("content"), f"{at}.content")
    if any(block["type"] != "text" for block in blocks):
        raise InvalidRequest("must be text alone", f"{at}.content")
    return blocks


def _said(message: Mapping[str, Any], at: str) -> list[Block]:
    """What an assistant thought (as `thinking_blocks` of an answer had it), said, and called."""
    for name in ("function_call", "audio"):
        if message.get(name) is not None:
            hint = "use tool_calls instead" if name == "function_call" else "send its transcript as text"
            raise InvalidRequest(f"cannot be said in Anthropic's protocol: {hint}", f"{at}.{name}")
    thoughts = message.get("thinking_blocks")
    kept = [
        block
        for block in (thoughts if isinstance(thoughts, list) else ())
        if isinstance(block, dict) and block.get("type") in ("thinking", "redacted_thinking")
    ]
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise InvalidRequest("must be a list", f"{at}.tool_calls")
    said = _blocks(message.get("content"), f"{at}.content")
    return kept + said + [_call(call, f"{at}.tool_calls[{j}]") for j, call in enumerate(calls or ())]


def _call(call: Any, at: str) -> Block:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequest("must be a call of a function", at)
    name = required_text(function, "name", f"{at}.function")
    try:
        written = function.get("arguments")
        arguments = orjson.loads("{}" if written in (None, "") else written)  # other providers may write none
    except orjson.JSONDecodeError:  # also of what is no string
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest("must be a JSON object, as a string", f"{at}.function.arguments")
    return {"type": "tool_use", "id": _id(call, "id", at), "name": name, "input": arguments}


def _result(message: Mapping[str, Any], at: str) -> Block:
    result: Block = {"type": "tool_result", "tool_use_id": _id(message, "tool_call_id", at)}
    blocks = _blocks(message.get("content"), f"{at}.content")
    return result | {"content": blocks} if blocks else result


def _id(value: Mapping[str, Any], name: str, at: str) -> str:
    """An id in the signs that ids may have: the same for a call and its result."""
    return _NOT_IN_AN_ID.sub("_", required_text(value, name, at))


def _blocks(content: Any, at: str) -> list[Block]:
    """Blocks of a message's content; the endpoint refuses blank ones, which are left out."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    blocks = [_block(part, f"{at}[{j}]") for j, part in enumerate(content)]
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]


def _block(part: Mapping[str, Any], at: str) -> Block:
    kind = part.get("type")
    block: Block
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str):
            raise InvalidRequest("must be a string", f"{at}.{kind}")
        block = {"type": "text", "text": text}
    elif kind == "image_url":
        block = {"type": "image", "source": _image(part, at)}
    elif kind == "file":
        block = _document(part, at)
    else:
        message = "must be text, image_url or file, for a model that speaks Anthropic's protocol"
        raise InvalidRequest(message, f"{at}.type")
    cache = part.get("cache_control")
    return block if cache is None else block | {"cache_control": cache}


def _image(part: Mapping[str, Any], at: str) -> Block:
    image = part.get("image_url")
    at = f"{at}.image_url.url"
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise InvalidRequest("must be a string", at)
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    return _inline(url, _IMAGES, at)


def _document(part: Mapping[str, Any], at: str) -> Block:
    file = part.get("file")
    at = f"{at}.file.file_data"
    data = file.get("file_data") if isinstance(file, dict) else None
    if not isinstance(data, str) or not isinstance(file, dict):
        raise InvalidRequest("is required: files are known by an id at their own provider only", at)
    block: Block = {"type": "document", "source": _inline(data, ("application/pdf",), at)}
    name = file.get("filename")
    return block | {"title": name} if isinstance(name, str) and name else block


def _inline(url: str, kinds: tuple[str, ...], at: str) -> Block:
    """What a data URL (RFC 2397) holds, as a source."""
    head, _, data = url.partition(",")
    kind = head.removeprefix("data:").removesuffix(";base64").lower()
    kind = _MEANT.get(kind, kind)
    whole = head.startswith("data:") and head.endswith(";base64")
    if not whole or kind not in kinds or not data:
        raise InvalidRequest(f"must be a data URL in base64 of {', '.join(kinds)}", at)
    return {"type": "base64", "media_type": kind, "data": data}


def _without_last_space(turn: Block) -> None:
    """An answer that is to be continued may not end in white space."""
    last = turn["content"][-1]
    if turn["role"] == "assistant" and last["type"] == "text":
        last["text"] = last["text"].rstrip()
