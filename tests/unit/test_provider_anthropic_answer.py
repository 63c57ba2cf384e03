"""What an answer of Anthropic's becomes, in one piece and streamed, and what its refusals mean; by hand throughout."""

from __future__ import annotations

import orjson
import pytest
from anthropic_upstream import DATA, ERRORS, stream

from serving.providers.anthropic import Anthropic
from serving.providers.kinds import provider_of
from serving.request_headers import Hints
from serving.settings import Settings
from serving.wire import EventReader, StreamRewriter, Usage, parse_call

CALL = parse_call("chat/completions", {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}, Hints(), 10)
PROVIDER = Anthropic(None, clock=lambda: 1_700_000_000.9)
WEATHER = {"name": "weather", "arguments": '{"city":"Köln","days":2}'}
THOUGHTS = [
    {"type": "thinking", "thinking": "Seventeen by twenty-three.", "signature": "c2lnbmVk"},
    {"type": "redacted_thinking", "data": "aGlkZGVu"},
]


def fixture(name, **more):
    return orjson.loads((DATA / f"{name}.json").read_bytes()) | more


def answered(message):
    return PROVIDER.answer(CALL, message)


def message_of(answer):
    (choice,) = answer["choices"]
    return choice["message"], choice["finish_reason"]


def test_a_message_is_a_completion():
    assert answered(fixture("text")) == {
        "id": "msg_text",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "claude-trial",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Points set, line clear.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 142,
            "completion_tokens": 7,
            "total_tokens": 149,
            "prompt_tokens_details": {"cached_tokens": 100},
        },
    }
    assert PROVIDER.usage(CALL, answered(fixture("text"))) == Usage(142, 7, 100)
    assert PROVIDER.marks(CALL, "d1", "claude") == {"id": "d1", "model": "claude"}


def test_blocks_of_tool_use_are_calls():
    message, reason = message_of(answered(fixture("tools")))
    assert reason == "tool_calls"
    assert message["content"] == "I look both up."
    assert message["tool_calls"] == [
        {"id": "toolu_1", "type": "function", "function": WEATHER},
        {"id": "toolu_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]


def test_calls_alone_have_no_content_and_nothing_at_all_is_empty():
    calls = fixture("tools")["content"][1:]
    assert message_of(answered(fixture("tools", content=calls)))[0]["content"] is None
    assert message_of(answered(fixture("text", content=[])))[0]["content"] == ""


def test_thinking_is_told_beside_the_content():
    message, _ = message_of(answered(fixture("thinking")))
    assert (message["content"], message["reasoning_content"]) == ("391", "Seventeen by twenty-three.")
    assert message["thinking_blocks"] == THOUGHTS


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("yet_to_come", "stop"),
        (None, "stop"),
    ],
)
def test_why_it_ended(theirs, ours):
    assert message_of(answered(fixture("text", stop_reason=theirs)))[1] == ours


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 5}, {"input_tokens": "5", "output_tokens": 1}])
def test_tokens_that_nobody_counted_are_unknown(usage):
    answer = answered(fixture("text", usage=usage))
    assert "usage" not in answer
    assert PROVIDER.usage(CALL, answer) == Usage(None, None)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"content": "text"},
        {"content": ["text"]},
        {"type": "error", "error": {"type": "api_error", "message": "m"}},
        {"content": [{"type": "tool_use", "id": "1", "name": "f"}]},
        {"content": [{"type": "tool_use", "name": "f", "input": {}}]},
    ],
)
def test_what_is_no_message_is_malformed(message):
    with pytest.raises(ValueError, match=r"answer|block"):
        answered(message)


# --- streamed


def translated(events):
    """The payloads of each event, parsed but for the last word."""
    translator, reader = PROVIDER.events(CALL), EventReader(1 << 20)
    return [
        [payload if payload == b"[DONE]" else orjson.loads(payload) for payload in translator.translate(data)]
        for event in events
        for data in reader.feed(event)
    ]


def deltas(events):
    """Of all chunks with a choice: delta and finish_reason; of the last one, the usage."""
    chunks = [chunk for payloads in translated(events) for chunk in payloads]
    assert chunks.pop() == b"[DONE]"
    last = chunks.pop()
    assert last["choices"] == []
    assert {(c["object"], c["created"]) for c in (*chunks, last)} == {("chat.completion.chunk", 1_700_000_000)}
    assert all(len(chunk["choices"]) == 1 and chunk["choices"][0]["index"] == 0 for chunk in chunks)
    return [(c["choices"][0]["delta"], c["choices"][0]["finish_reason"]) for c in chunks], last["usage"]


def test_a_stream_of_text_begins_with_the_role_and_ends_with_reason_usage_and_done():
    said, usage = deltas(stream("text"))
    assert said == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Points set, "}, None),
        ({"content": "line clear."}, None),
        ({}, "stop"),
    ]
    assert usage == answered(fixture("text"))["usage"]


def test_a_stream_of_calls_numbers_them_and_their_arguments_are_whole():
    said, usage = deltas(stream("tools"))
    assert [delta for delta, _ in said][1:] == [
        {"content": "I look both up."},
        {
            "tool_calls": [
                {"index": 0, "id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Kö'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ln", "days": 2}'}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "toolu_2", "type": "function", "function": {"name": "now", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert said[-1][1] == "tool_calls"
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (40, 25)


def test_a_stream_of_thinking_ends_each_thought_with_its_block():
    said, _ = deltas(stream("thinking"))
    assert [delta for delta, _ in said][1:-1] == [
        {"reasoning_content": "Seventeen by "},
        {"reasoning_content": "twenty-three."},
        {"thinking_blocks": THOUGHTS[:1]},
        {"thinking_blocks": THOUGHTS[1:]},
        {"content": "391"},
    ]


def test_nothing_is_passed_on_before_something_was_said():
    """Until then another model can take over."""
    assert [len(payloads) for payloads in translated(stream("text")[:4])] == [0, 0, 0, 2]


def test_the_latest_count_of_each_kind_of_token_holds():
    events = stream("text")
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    usage = {"input_tokens": 20, "cache_read_input_tokens": None, "output_tokens": 9}
    events[-2] = b"data: " + orjson.dumps(delta | {"usage": usage}) + b"\n\n"
    assert deltas(events)[1]["prompt_tokens"] == 150
    assert deltas(events)[1]["completion_tokens"] == 9


def test_events_that_are_yet_to_come_are_passed_over():
    unknown = b'data: {"type": "weather_report"}\n\n'
    odd = b'data: {"type": "content_block_delta", "index": 0, "delta": {"type": "odd_delta"}}\n\n'
    events = stream("text")
    assert deltas([unknown, *events[:3], odd, *events[3:]]) == deltas(events)


def test_the_rewriter_takes_what_the_translator_makes():
    rewriter, translator = StreamRewriter("d1", "claude", show_usage=False), PROVIDER.events(CALL)
    events = [line[6:] for event in stream("text") for line in event.splitlines() if line.startswith(b"data: ")]
    sent = [rewriter.rewrite(payload) for event in events for payload in translator.translate(event)]
    assert rewriter.done
    assert rewriter.usage == Usage(142, 7, 100)
    chunks = [orjson.loads(event[6:]) for event in sent if event and b"[DONE]" not in event]
    assert {(chunk["id"], chunk["model"]) for chunk in chunks} == {("d1", "claude")}


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}',
        b'{"type": "message_start"}',
        b'{"type": "message_stop"}',
        b'{"type": "message_delta"}',
        b'{"type": "content_block_start", "index": 0}',
        b'{"type": "content_block_start", "content_block": {"type": "text"}}',
        b'{"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "1"}}',
        b'{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "t"}}',
        b'{"type": "content_block_stop", "index": 0}',
    ],
)
def test_a_stream_that_is_not_what_the_protocol_says_is_malformed(data):
    with pytest.raises(ValueError, match=r"event|stream|message|JSON|unexpected"):
        PROVIDER.events(CALL).translate(data)


# --- refusals and the kind of a model


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("too-long", "context_window"),
        ("no-room", "context_window"),
        ("too-large", "context_window"),
        ("blocked", "content_policy"),
        ("wrong", None),
        ("unpaid", None),
        ("limited", None),
        ("broken", None),
        ("overloaded", None),
    ],
)
def test_a_refusal_that_another_model_may_not_share_says_why(name, reason):
    entry = ERRORS[name]
    assert PROVIDER.refusal(entry["status"], entry["body"]["error"]) == reason


def settings(**more):
    model = {"name": "claude", "endpoint": "https://api.anthropic.com/v1", "kind": "anthropic"} | more
    return Settings.parse({"models": [model], "pools": [{"name": "auto", "models": ["claude"]}]}).models[0]


def test_a_models_kind_says_what_speaks_for_it():
    assert provider_of(settings()).path(CALL, "x") == "/messages"
    assert provider_of(settings(kind="openai")).path(CALL, "x") == "/chat/completions"
    assert orjson.loads(provider_of(settings(max_output_tokens=9)).body(CALL, "x"))["max_tokens"] == 9


def test_how_long_an_answer_is_assumed_to_be_is_what_is_asked_for():
    """A budget sets aside that much."""
    assert settings().unasked_output_tokens == orjson.loads(provider_of(settings()).body(CALL, "x"))["max_tokens"]
    assert settings(max_output_tokens=9).unasked_output_tokens is None
    assert settings(kind="openai").unasked_output_tokens is None
