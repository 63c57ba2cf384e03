"""A chat request as Anthropic's Messages API takes it, from one as OpenAI's callers send it.

Owns what becomes of each field: translated, refused by its path where leaving it out would change what was asked for,
or left out. It must never know of answers, endpoints or keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.errors import InvalidRequest
from serving.model_settings import ANTHROPIC_OUTPUT_TOKENS
from serving.providers.anthropic_messages import Block, conversation, required_text
from serving.wire import Call

__all__ = ["messages_request"]

# Fields that ask for what the protocol has no word for: the values that ask for nothing, and what to do instead.
_UNSAYABLE: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("n", (1,), "one answer a call"),
    ("logprobs", (False,), "it tells no probabilities"),
    ("top_logprobs", (0,), "it tells no probabilities"),
    ("logit_bias", ({},), "leave it out"),
    ("audio", (), "it answers in text"),
    ("modalities", (["text"],), "it answers in text"),
    ("functions", ([],), "use tools instead"),
    ("function_call", (), "use tool_choice instead"),
    ("web_search_options", (), "leave it out"),
)
_OWN = ("cache_control", "thinking", "top_k")  # Anthropic's, for callers who know whom they call
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


def messages_request(call: Call, upstream_model: str, max_output_tokens: int | None) -> Block:
    """The request; InvalidRequest, with a field's path, where it cannot be said.

    `max_output_tokens`: most of an answer, whatever the caller asks for; None: nobody knows.
    """
    body = call.body
    for name, harmless, hint in _UNSAYABLE:
        if body.get(name) is not None and body[name] not in harmless:
            raise InvalidRequest(f"cannot be said in Anthropic's protocol: {hint}", name)
    system, turns = conversation(body["messages"])
    request: Block = {
        "model": upstream_model,
        "max_tokens": _max_tokens(body, max_output_tokens),
        "messages": turns,
    }
    if system:
        request["system"] = system
    if call.stream:
        request["stream"] = True
    request |= _sampling(body) | _tools(body) | _output(body)
    if isinstance(body.get("user"), str) and body["user"]:
        request["metadata"] = {"user_id": body["user"]}
    return request | {name: body[name] for name in _OWN if body.get(name) is not None}


def _max_tokens(body: Mapping[str, Any], most: int | None) -> int:
    """It is required there."""
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    asked = body.get(name)
    if asked is None:
        return most or ANTHROPIC_OUTPUT_TOKENS
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise InvalidRequest("must be a whole number above 0", name)
    return asked if most is None else min(asked, most)


def _sampling(body: Mapping[str, Any]) -> Block:
    """Temperature, top_p and stop sequences. A temperature ends at 1 there: what is above counts as 1.

    What is the default is not sent: newer models refuse to be told both temperature and top_p.
    """
    sampling: Block = {}
    for name in ("temperature", "top_p"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise InvalidRequest("must be a number, at least 0", name)
        if value < 1:
            sampling[name] = value
    stop = body.get("stop")
    if stop is None or stop == []:
        return sampling
    sequences = [stop] if isinstance(stop, str) else stop
    if not isinstance(sequences, list):
        raise InvalidRequest("must be a string or a list of strings", "stop")
    for i, sequence in enumerate(sequences):
        if not isinstance(sequence, str) or not sequence.strip():
            path = "stop" if isinstance(stop, str) else f"stop[{i}]"
            raise InvalidRequest("must be more than white space, for a model that speaks Anthropic's protocol", path)
    return sampling | {"stop_sequences": sequences}


def _tools(body: Mapping[str, Any]) -> Block:
    """Tools and how they may be chosen; without tools a choice says nothing, and is left out."""
    tools = body.get("tools")
    if not tools:
        return {}
    translated: Block = {"tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]}
    choice = _choice(body.get("tool_choice"))
    if body.get("parallel_tool_calls") is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    return translated | {"tool_choice": choice} if choice else translated


def _tool(tool: Any, at: str) -> Block:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
        raise InvalidRequest("must be a function, for a model that speaks Anthropic's protocol", f"{at}.type")
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequest("must be a JSON schema", f"{at}.function.parameters")
    translated: Block = {
        "name": required_text(function, "name", f"{at}.function"),
        "input_schema": {"type": "object"} | (schema or {"properties": {}}),
    }
    if function.get("description"):
        translated["description"] = function["description"]
    if function.get("strict") is True:
        translated["strict"] = True
    cache = tool.get("cache_control")
    return translated if cache is None else translated | {"cache_control": cache}


def _choice(choice: Any) -> Block | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("function"), dict):
        return {"type": "tool", "name": required_text(choice["function"], "name", "tool_choice.function")}
    raise InvalidRequest("must be auto, none, required or one function", "tool_choice")


def _output(body: Mapping[str, Any]) -> Block:
    """How hard it is to think, and the form of what it says. No effort is what it makes unless told otherwise."""
    config: Block = {}
    effort = body.get("reasoning_effort")
    if effort is not None and effort != "none":
        if not isinstance(effort, str) or effort not in _EFFORTS:
            raise InvalidRequest(f"must be none or one of {', '.join(_EFFORTS)}", "reasoning_effort")
        config["effort"] = _EFFORTS[effort]
    wanted = body.get("response_format") or {"type": "text"}
    if wanted.get("type") == "json_schema":
        schema = wanted["json_schema"].get("schema") if isinstance(wanted.get("json_schema"), dict) else None
        if not isinstance(schema, dict):
            raise InvalidRequest("must be a JSON schema", "response_format.json_schema.schema")
        config["format"] = {"type": "json_schema", "schema": schema}
    elif wanted.get("type") != "text":
        message = "must be text or json_schema: Anthropic's protocol has no JSON of any form"
        raise InvalidRequest(message, "response_format.type")
    return {"output_config": config} if config else {}
