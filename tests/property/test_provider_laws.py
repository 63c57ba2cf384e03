"""Laws of translation: whatever comes, from a caller or an endpoint, is translated or refused, and nothing else."""

from __future__ import annotations

import orjson
import pytest
from anthropic_upstream import check
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.providers.anthropic import Anthropic
from serving.request_headers import Hints
from serving.wire import parse_call

PROVIDER = Anthropic(None, clock=lambda: 0.0)
WORDS = st.sampled_from(["", " ", "a", "text", "image_url", "tool_use", "auto", "function", "data:image/png;base64,AA"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats(0, 2) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "name", "id", "function", "url", "file"]), inner, max_size=3)
    ),
    max_leaves=6,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url", "file", "refusal", "input_audio"])},
        optional={"text": JSON, "image_url": JSON, "file": JSON, "refusal": JSON},
    ),
    max_size=2,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={"content": st.none() | WORDS | PARTS, "tool_calls": JSON, "tool_call_id": JSON, "thinking_blocks": JSON},
)
MORE = st.dictionaries(
    st.sampled_from(["n", "stop", "temperature", "top_p", "max_tokens", "tool_choice", "reasoning_effort", "user"]),
    JSON,
    max_size=3,
)
TALK = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.sampled_from(["", " a ", "b"])))
EVENT = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
                "ping",
                "error",
            ]
        )
    },
    optional={
        "index": st.integers(0, 1) | JSON,
        "message": JSON,
        "usage": JSON,
        "content_block": st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "tool_use", "thinking", "redacted_thinking"]) | JSON},
            optional={"text": JSON, "id": JSON, "name": JSON, "input": JSON},
        ),
        "delta": st.fixed_dictionaries(
            {"type": st.sampled_from(["text_delta", "input_json_delta", "thinking_delta", "signature_delta"]) | JSON},
            optional={"text": JSON, "partial_json": JSON, "thinking": JSON, "stop_reason": JSON, "signature": JSON},
        ),
    },
)


@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), more=MORE)
def test_a_request_is_translated_or_refused_and_that_is_known_before(messages, more):
    call = parse_call("chat/completions", {"model": "m", "messages": messages, **more}, Hints(), 10)
    if PROVIDER.can_say(call):
        assert orjson.loads(PROVIDER.body(call, "m"))["max_tokens"] > 0
        return
    with pytest.raises(InvalidRequest) as refusal:
        PROVIDER.body(call, "m")
    assert refusal.value.param


@given(talk=TALK)
def test_whatever_was_said_in_which_order_turns_alternate(talk):
    messages = [{"role": "user", "content": "first"}, *({"role": role, "content": text} for role, text in talk)]
    call = parse_call("chat/completions", {"model": "m", "messages": messages}, Hints(), 1_000)
    if PROVIDER.can_say(call):
        check(orjson.loads(PROVIDER.body(call, "m")))
    else:
        assert any(role == "user" and not text.strip() for role, text in talk)


@given(events=st.lists(EVENT, max_size=6))
def test_a_stream_is_translated_or_malformed(events):
    translator = PROVIDER.events(None)
    try:
        payloads = [payload for event in events for payload in translator.translate(orjson.dumps(event))]
    except ValueError:
        return
    chunks = [orjson.loads(payload) for payload in payloads if payload != b"[DONE]"]
    if chunks and chunks[0]["choices"]:
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert sum("role" in choice["delta"] for chunk in chunks for choice in chunk["choices"]) == 1


@given(answer=st.dictionaries(st.sampled_from(["content", "stop_reason", "usage", "type"]), JSON))
def test_an_answer_is_translated_or_malformed(answer):
    try:
        completion = PROVIDER.answer(None, answer)
    except ValueError:
        return
    assert completion["choices"][0]["message"]["role"] == "assistant"
