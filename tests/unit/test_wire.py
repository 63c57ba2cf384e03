"""OpenAI's wire format: what is read of a request, and how answers and streams are rewritten."""

from __future__ import annotations

import contextlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.types import Price, Prompt
from serving.errors import InvalidRequest
from serving.request_headers import Hints
from serving.wire import (
    EventReader,
    StreamRewriter,
    Usage,
    answer_body,
    parse_body,
    parse_call,
    upstream_body,
    usage_of,
)

HELLO = {"role": "user", "content": "hello"}
DEEP = orjson.loads(b"[" * 400 + b"]" * 400)


def chat(messages, **more):
    return parse_call("chat/completions", {"model": "auto", "messages": messages} | more, Hints(), 100).prompt


def test_features_see_the_last_user_message_and_the_facts():
    """13 + 4 + 6 + 9 characters, and the 7 of the tools `[{},{}]`, make 39 // 4 = 9 tokens."""
    messages = [
        {"role": "system", "content": "be very brief"},
        {"role": "user", "content": "1st?"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": [{"type": "text", "text": "2nd"}, {"type": "image_url"}, {"text": "part?"}]},
    ]
    prompt = chat(messages, tools=[{}, {}], response_format={"type": "json_schema"})
    assert prompt == Prompt(
        text="2nd\npart?", input_tokens=9, turns=2, has_system=True, tools=2, json_mode=True, category=None
    )


def test_a_message_without_content_or_text_is_no_mistake():
    prompt = chat([HELLO, {"role": "assistant", "content": None}, {"role": "tool", "content": [{"text": 7}]}])
    assert (prompt.text, prompt.turns, prompt.has_system) == ("hello", 1, False)


@pytest.mark.parametrize("value", [None, {}, {"type": "text"}, {"type": None}, {"type": 7}])
def test_only_json_formats_are_json_mode(value):
    assert chat([HELLO], response_format=value).json_mode is False


@pytest.mark.parametrize(
    ("value", "text", "input_tokens", "turns"),
    [
        ("eight ch", "eight ch", 2, 1),
        (["four", "more"], "more", 2, 2),
        ([1, 2, 3], "", 3, 1),
        ([[1, 2], [3]], "", 3, 2),
        ("", "", 0, 1),
    ],
)
@pytest.mark.parametrize(("kind", "field"), [("completions", "prompt"), ("embeddings", "input")])
def test_a_text_prompt_may_be_text_or_tokens_one_or_many(kind, field, value, text, input_tokens, turns):  # noqa: PLR0917 - a row's columns
    prompt = parse_call(kind, {"model": "m", field: value}, Hints("c"), 3).prompt
    assert prompt == Prompt(text=text, input_tokens=input_tokens, turns=turns, category="c")


def test_tokens_are_not_messages_and_are_not_counted_against_their_limit():
    assert parse_call("embeddings", {"model": "m", "input": [7] * 50}, Hints(), 3).prompt.input_tokens == 50
    with pytest.raises(InvalidRequest) as refused:
        parse_call("embeddings", {"model": "m", "input": ["x"] * 4}, Hints(), 3)
    assert refused.value.param == "input"


@pytest.mark.parametrize(
    ("options", "wants", "sent"),
    [
        (None, False, {"include_usage": True}),
        ({}, False, {"include_usage": True}),
        ({"include_usage": False, "x": 1}, False, {"include_usage": True, "x": 1}),
        ({"include_usage": True, "x": 1}, True, {"include_usage": True, "x": 1}),
    ],
)
def test_usage_is_asked_for_in_every_stream(options, wants, sent):
    body = {"model": "auto", "messages": [HELLO], "stream": True, "stream_options": options}
    call = parse_call("chat/completions", dict(body), Hints(), 10)
    assert call.wants_usage is wants
    assert orjson.loads(upstream_body(call, "theirs")) == body | {"model": "theirs", "stream_options": sent}
    assert call.body == body


def test_a_call_that_is_not_streamed_is_sent_as_it_came():
    body = {"model": "auto", "messages": [HELLO], "stream": None, "stream_options": {"x": 1}, "seed": 2**63, "u": "ü"}
    call = parse_call("chat/completions", dict(body), Hints(), 10)
    assert orjson.loads(upstream_body(call, "theirs")) == body | {"model": "theirs"}


def test_what_cannot_be_passed_on_is_refused():
    call = parse_call("chat/completions", {"model": "auto", "messages": [HELLO], "x": DEEP}, Hints(), 10)
    with pytest.raises(InvalidRequest):
        upstream_body(call, "m")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_json_object_or_an_invalid_request(raw):
    with contextlib.suppress(InvalidRequest):
        assert isinstance(parse_body(raw), dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FIELDS = (
    "model",
    "messages",
    "role",
    "content",
    "stream",
    "stream_options",
    "tools",
    "response_format",
    "prompt",
    "input",
)


@settings(max_examples=60)
@given(
    st.sampled_from(["chat/completions", "completions", "embeddings"]),
    st.dictionaries(
        st.sampled_from(FIELDS), json_values | st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values))
    ),
)
def test_any_json_object_is_a_call_or_an_invalid_request(kind, body):
    """Whatever JSON holds where: nothing else is raised, and what is taken can be passed on."""
    with contextlib.suppress(InvalidRequest):
        call = parse_call(kind, body, Hints(), 10)
        assert orjson.loads(upstream_body(call, "m"))["model"] == "m"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 5}, (3, 5)),
        ({"prompt_tokens": 3, "total_tokens": 3}, (3, 0)),
        ({"prompt_tokens": 3, "completion_tokens": None}, (3, None)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": 1.5, "completion_tokens": 10**10}, (None, None)),
        ({}, (None, None)),
        (None, (None, None)),
        ("3", (None, None)),
    ],
)
def test_only_counts_are_usage(usage, expected):
    """An embedding has no completion tokens: none were made."""
    assert usage_of({"usage": usage}) == Usage(*expected)


def test_input_from_the_upstreams_cache_is_counted_and_costs_its_own_price():
    """1,000 tokens at 2 USD a million, 400 of them cached at 0.5, and 100 of output at 10, by hand 0.0024 USD."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 400}}
    assert usage_of({"usage": usage}) == Usage(1000, 100, 400)
    assert Price(2.0, 10.0, cached_input_per_million=0.5).cost_usd(1000, 100, 400) == pytest.approx(0.0024)
    assert Price(2.0, 10.0, per_call=0.5).cost_usd(1000, 100, 400) == pytest.approx(0.503)
    assert usage_of({"usage": usage | {"prompt_tokens_details": "many"}}) == Usage(1000, 100)


def test_an_answer_gets_our_id_and_model():
    answer = {"id": "up", "model": "theirs", "choices": [], "x": 1}
    ours = {"id": "pm-1", "model": "ours"}
    assert orjson.loads(answer_body(answer, ours)) == answer | ours
    with pytest.raises(ValueError, match="ecursion"):
        answer_body({"x": DEEP}, ours)


STREAM = (
    b": hi\r\n\r\nevent: x\ndata: one\n\ndata:two\r\n\r\n"
    b"data: a\ndata: b\nid: 7\n\n\n\ndata\n\nretry: 1\ndata: last\n\n"
)
EVENTS = [b"one", b"two", b"a\nb", b"last"]


@given(st.lists(st.integers(1, len(STREAM)), max_size=10).map(sorted))
def test_events_are_the_same_however_the_stream_is_cut(cuts):
    reader, events = EventReader(1000), []
    for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        events += reader.feed(STREAM[start:end])
    assert events == EVENTS


@pytest.mark.parametrize("chunk", [b"data: " + b"x" * 100, b"data: xxxxxxxx\n" * 10, b"x" * 101])
def test_an_event_that_grows_past_the_limit_is_an_error(chunk):
    reader = EventReader(100)
    assert list(reader.feed(b"data: ok\n\n")) == [b"ok"]
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        list(reader.feed(chunk))


def test_many_small_events_are_no_large_one():
    assert len(list(EventReader(100).feed(b"data: xxxxxxxx\n\n" * 100))) == 100


def rewritten(rewriter, event):
    data = rewriter.rewrite(orjson.dumps(event))
    return orjson.loads(data.removeprefix(b"data: ")) if data else None


def test_a_rewritten_event_has_our_id_and_model_and_shows_no_usage():
    rewriter = StreamRewriter("pm-1", "ours", show_usage=False)
    event = {"id": "up", "model": "theirs", "choices": [{"delta": {}}], "usage": None, "x": 1}
    assert rewritten(rewriter, event) == {"id": "pm-1", "model": "ours", "choices": [{"delta": {}}], "x": 1}
    assert rewritten(rewriter, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}) is None
    assert (rewriter.usage, rewriter.pieces, rewriter.done) == (Usage(3, 5), 1, False)
    assert (rewriter.rewrite(b"[DONE]"), rewriter.done) == (b"data: [DONE]\n\n", True)


def test_usage_beside_content_is_taken_and_the_content_passed_on():
    rewriter = StreamRewriter("pm-1", "ours", show_usage=False)
    shown = rewritten(rewriter, {"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    assert shown == {"id": "pm-1", "model": "ours", "choices": [{}]}
    assert rewriter.usage == Usage(3, 1)


def test_usage_is_shown_to_one_who_asked():
    rewriter = StreamRewriter("pm-1", "ours", show_usage=True)
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    assert rewritten(rewriter, {"choices": [{}], "usage": None})["usage"] is None
    assert rewritten(rewriter, {"choices": [], "usage": usage})["usage"] == usage


@pytest.mark.parametrize("event", [{"error": {"message": "x"}}, {"error": "x"}, [1], 7, None])
def test_an_event_that_is_an_error_or_no_object(event):
    with pytest.raises(ValueError, match="stream"):
        StreamRewriter("pm-1", "ours", show_usage=False).rewrite(orjson.dumps(event))


@pytest.mark.parametrize("data", [b"{", b"", b"\xff", b'{"x":%s}' % orjson.dumps([0]) * 2])
def test_an_event_that_is_no_json(data):
    with pytest.raises(ValueError):  # noqa: PT011 - orjson's own words
        StreamRewriter("pm-1", "ours", show_usage=False).rewrite(data)


def test_an_error_of_null_is_none():
    assert rewritten(StreamRewriter("pm-1", "ours", show_usage=False), {"error": None, "choices": [{}]}) is not None


def choice(index=0, finish_reason=None):
    return {"choices": [{"index": index, "delta": {}, "finish_reason": finish_reason}]}


@pytest.mark.parametrize(
    ("events", "whole"),
    [
        ([], False),
        ([{"choices": []}], False),
        ([choice()], False),
        ([choice(), choice(finish_reason="stop")], True),
        ([choice(finish_reason="stop"), choice(), {"choices": [], "usage": None}], True),
        ([choice(0), choice(1), choice(0, "length")], False),
        ([choice(0), choice(1), choice(1, "stop"), choice(0, "length")], True),
        ([{"choices": [{"finish_reason": "stop"}]}], True),
        ([{"choices": [7, {"index": []}]}, {"choices": {"index": 0}}, {"choices": "x"}], False),
    ],
)
def test_a_stream_is_whole_once_each_choice_has_said_why_it_ended(events, whole):
    rewriter = StreamRewriter("pm-1", "ours", show_usage=True)
    for event in events:
        rewriter.rewrite(orjson.dumps(event))
    assert (rewriter.whole, rewriter.done) == (whole, False)


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("chat/completions", {}, None),
        ("chat/completions", {"max_tokens": 50}, 50),
        ("chat/completions", {"max_tokens": 50, "max_completion_tokens": None}, 50),
        ("chat/completions", {"max_completion_tokens": 60, "max_tokens": None, "n": 2}, 120),
        ("chat/completions", {"max_tokens": -1}, None),
        ("completions", {"max_tokens": 10, "prompt": ["a", "b", "c"]}, 30),
        ("completions", {"max_tokens": 10, "prompt": [[1, 2], [3]], "n": 2, "best_of": 4}, 80),
        ("completions", {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ("completions", {"max_tokens": 10, "n": True, "best_of": "many"}, 10),
    ],
)
def test_the_longest_output_is_that_of_all_answers_that_are_made(kind, more, expected):
    body = {"model": "m", "messages": [HELLO]} if kind == "chat/completions" else {"model": "m", "prompt": "a"}
    assert parse_call(kind, body | more, Hints(), 10).max_output_tokens == expected


@pytest.mark.parametrize("field", ["tools", "functions"])
def test_all_that_a_model_reads_is_in_the_bound_of_its_input(field):
    """Definitions of functions, of before and of now, and the schema that the answer is held to."""
    plain = parse_call("chat/completions", {"model": "m", "messages": [HELLO]}, Hints(), 10).worst_input_tokens
    long = [{"name": "f", "description": "x" * 10_000}]
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"description": "x" * 10_000}}}
    body = {"model": "m", "messages": [HELLO], field: long, "response_format": schema}
    assert parse_call("chat/completions", body, Hints(), 10).worst_input_tokens > plain + 20_000
