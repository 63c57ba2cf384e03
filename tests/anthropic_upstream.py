"""An endpoint that speaks Anthropic's Messages API and is stricter than any: a trial for what is sent there.

It checks each request against the protocol's public description, then does what a test planned (`plans[name]`, each
used once), else answers from the fixtures by what it was asked: calls where it has tools, text to their results.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from pathlib import Path

import orjson
from aiohttp import web

DATA = Path(__file__).parent / "unit" / "data" / "anthropic"
ERRORS = orjson.loads((DATA / "errors.json").read_bytes())
KEY = "sk-trial-of-anthropic"
FIELDS = {
    *("model", "max_tokens", "messages", "system", "stream", "stop_sequences", "temperature", "top_p", "top_k"),
    *("tools", "tool_choice", "metadata", "thinking", "output_config", "cache_control"),
}
BLOCKS = {
    "text": {"text"},
    "image": {"source"},
    "document": {"source", "title"},
    "tool_use": {"id", "name", "input"},
    "tool_result": {"tool_use_id", "content"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
}
SOURCES = {"base64": {"media_type", "data"}, "url": {"url"}}
MAY_SAY = {
    "user": {"text", "image", "document", "tool_result"},
    "assistant": {"text", "tool_use", "thinking", "redacted_thinking"},
}
ID = re.compile(r"[a-zA-Z0-9_-]+")


class Trial:
    """`requests[name]` are the bodies that passed the checks; `refused` says what was wrong with the others."""

    def __init__(self) -> None:
        self.plans: dict[str, deque[str]] = defaultdict(deque)
        self.requests: dict[str, list[dict]] = defaultdict(list)
        self.refused: list[str] = []
        self.url = ""
        self.app = web.Application(client_max_size=2**26)
        self.app.router.add_post("/{name}/v1/messages", self.answer)

    def model(self, name, **more):
        """A model's entry in a configuration."""
        price = {"input_per_million": 3.0, "output_per_million": 15.0, "cached_input_per_million": 0.3}
        entry = {"name": name, "kind": "anthropic", "endpoint": f"{self.url}/{name}/v1", "api_key": KEY}
        return entry | {"upstream_model": "claude-trial", "price": price} | more

    async def answer(self, request):
        if request.headers.get("x-api-key") != KEY or "Authorization" in request.headers:
            error = {"type": "authentication_error", "message": "invalid x-api-key"}
            return web.json_response({"type": "error", "error": error}, status=401)
        name, asked = request.match_info["name"], await request.json()
        try:
            _require(request.headers.get("anthropic-version") == "2023-06-01", "anthropic-version: header is required")
            check(asked)
        except ValueError as error:
            self.refused.append(str(error))
            body = {"type": "error", "error": {"type": "invalid_request_error", "message": str(error)}}
            return web.json_response(body, status=400)
        self.requests[name].append(asked)
        what = self.plans[name].popleft() if self.plans[name] else fitting(asked)
        if what in ERRORS:
            headers = {"request-id": "req_trial"} | ({"retry-after": "1"} if what == "limited" else {})
            return web.json_response(ERRORS[what]["body"], status=ERRORS[what]["status"], headers=headers)
        if asked.get("stream"):
            return await self._stream(request, what)
        return web.Response(body=(DATA / f"{what}.json").read_bytes(), content_type="application/json")

    async def _stream(self, request, what):
        """A stream; `error-after-N` is one of text that ends in an error after N events."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        fixture, _, after = what.partition("-after-")
        events = stream("text" if after else fixture)
        for event in events[: int(after)] if after else events:
            await response.write(event)
        if after:
            error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            await response.write(b"event: error\ndata: " + orjson.dumps(error) + b"\n\n")
        return response


def stream(name: str) -> list[bytes]:
    """The events of a fixture."""
    return [event + b"\n\n" for event in (DATA / f"{name}.sse").read_bytes().split(b"\n\n") if event.strip()]


def fitting(asked):
    """Which fixture answers a request."""
    results = any(block["type"] == "tool_result" for block in asked["messages"][-1]["content"])
    if asked.get("thinking"):
        return "thinking"
    return "tools" if asked.get("tools") and not results else "text"


def _require(fact, message):
    if not fact:
        raise ValueError(message)


def check(asked):
    """ValueError: the request is not what the protocol takes."""
    _require(not asked.keys() - FIELDS, f"{sorted(asked.keys() - FIELDS)}: Extra inputs are not permitted")
    _require(isinstance(asked.get("model"), str) and asked["model"], "model: Field required")
    _require(isinstance(asked.get("max_tokens"), int) and asked["max_tokens"] > 0, "max_tokens: Field required")
    _require(0 <= asked.get("temperature", 0) <= 1, "temperature: range: 0..1")
    _require("temperature" not in asked or "top_p" not in asked, "temperature and top_p cannot both be specified")
    _require(all(s.strip() for s in asked.get("stop_sequences", [])), "stop_sequences: must contain non-whitespace")
    system = asked.get("system", "")
    if not isinstance(system, str):
        for block in system:
            check_block(block, {"text"})
    check_tools(asked)
    check_turns(asked["messages"])


def check_tools(asked):
    for tool in asked.get("tools", []):
        _require(not tool.keys() - {"name", "description", "input_schema", "strict", "cache_control"}, "tools: extra")
        _require(tool["input_schema"]["type"] == "object", "tools.input_schema.type: Input should be 'object'")
        _require(ID.fullmatch(tool["name"]), "tools.name: String should match the pattern")
    choice = asked.get("tool_choice")
    if choice is not None:
        _require(asked.get("tools"), "tool_choice may only be specified while providing tools")
        _require(choice["type"] in ("auto", "any", "tool", "none"), "tool_choice.type")
        _require(("name" in choice) == (choice["type"] == "tool"), "tool_choice.name")
        _require(not choice.keys() - {"type", "name", "disable_parallel_tool_use"}, "tool_choice: extra")


def check_turns(turns):
    """Roles alternate from the user on, and every call is answered at the start of the very next turn."""
    _require(turns, "messages: at least one message is required")
    called: list[str] = []
    for i, turn in enumerate(turns):
        role = "assistant" if i % 2 else "user"
        _require(turn.keys() == {"role", "content"}, f"messages.{i}: extra inputs")
        _require(turn["role"] == role, "messages: roles must alternate between 'user' and 'assistant'")
        _require(isinstance(turn["content"], list) and turn["content"], f"messages.{i}: content must be non-empty")
        for block in turn["content"]:
            check_block(block, MAY_SAY[role])
        answered = [block["tool_use_id"] for block in turn["content"][: len(called)] if block["type"] == "tool_result"]
        results = [block for block in turn["content"] if block["type"] == "tool_result"]
        _require(sorted(answered) == sorted(called), f"messages.{i}: tool_use ids without tool_result blocks")
        _require(len(results) == len(called), f"messages.{i}: unexpected tool_use_id in tool_result blocks")
        called = [block["id"] for block in turn["content"] if block["type"] == "tool_use"]
    _require(not called, "messages: tool_use ids without tool_result blocks")


def check_block(block, kinds):
    kind = block["type"]
    _require(kind in kinds, f"a block of type {kind} may not stand here")
    fields = block.keys() - {"type", "cache_control"}
    _require(fields <= BLOCKS[kind], f"{kind}: Extra inputs are not permitted")
    _require(BLOCKS[kind] - fields <= {"title", "content"}, f"{kind}: Field required")
    if kind == "text":
        _require(block["text"].strip(), "text content blocks must contain non-whitespace text")
    elif kind in ("image", "document"):
        source = block["source"]
        _require(source.keys() - {"type"} == SOURCES[source["type"]], f"{kind}.source: extra or missing fields")
    elif kind == "tool_use":
        _require(ID.fullmatch(block["id"]) and isinstance(block["input"], dict), "tool_use: id or input")
    elif kind == "tool_result":
        for inner in block.get("content", []):
            check_block(inner, {"text", "image", "document"})
