"""The OpenAI protocol without sockets: what is read from a request, and when which bytes are due."""

from __future__ import annotations

import orjson
import pytest

from bandit.errors import InvalidInput
from evaluation.answers import Answer, answer_text
from evaluation.upstream_wire import MAX_EVENTS, Reply, embeddings_body, parse_call, reply_body, reply_events

ANSWER = Answer(answer_text(0.75, 60, "simulated"), 0.75, 1.0, 12, 60)


def call(kind="chat", **changes):
    given = {"chat": {"messages": [{"role": "user", "content": "Hello"}]}, "text": {"prompt": "Hello"}}
    body = {"model": "m", **given.get(kind, {"input": "Hello"}), **changes}
    return parse_call(kind, orjson.dumps(body), None)


def events_of(writes):
    lines = b"".join(data for _, data in writes).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [orjson.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "first"}, {"role": "user", "content": "last"}], "last"),
        ([{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}], "asked"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "system", "content": "only"}], ""),
    ],
)
def test_the_prompt_is_the_last_user_message(messages, text):
    assert call(messages=messages).prompt_text == text


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("chat", b"{", "body"),
        ("chat", b"[]", "body"),
        ("chat", b'{"messages": []}', "model"),
        ("chat", b'{"model": 3, "messages": []}', "model"),
        ("chat", b'{"model": "m"}', "messages"),
        ("chat", b'{"model": "m", "messages": []}', "messages"),
        ("chat", b'{"model": "m", "messages": ["x"]}', "messages"),
        ("chat", b'{"model": "m", "messages": [{"role": "user", "content": 1}]}', "messages"),
        ("chat", b'{"model": "m", "messages": [{"role": "user", "content": "[tool]"}], "tools": [1]}', "tools"),
        ("text", b'{"model": "m"}', "prompt"),
        ("embeddings", b'{"model": "m", "input": []}', "input"),
        ("embeddings", b'{"model": "m", "input": "x", "dimensions": 0}', "dimensions"),
    ],
)
def test_an_unsound_request_is_refused_with_its_parameter(kind, body, field):
    with pytest.raises(InvalidInput) as caught:
        parse_call(kind, body, None)
    assert caught.value.field == field


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("latency_s", [0.0, 0.02, 1.0, 30.0])
def test_a_stream_is_the_answer_paced_from_first_token_to_latency(kind, latency_s):
    """First write at 0.3 of the latency, last at the latency, times rise, and the pieces join to the text."""
    reply = Reply(call(kind, stream=True), ANSWER, "chatcmpl-1", 0)
    writes = reply_events(reply, 0.3 * latency_s, latency_s)
    times = [at_s for at_s, _ in writes]
    assert 2 <= len(writes) <= MAX_EVENTS
    assert (times[0], times[-1]) == (0.3 * latency_s, latency_s)
    assert times == sorted(times)
    choices = [event["choices"][0] for event in events_of(writes)]
    pieces = [c["text"] if kind == "text" else c["delta"].get("content", "") for c in choices]
    assert "".join(pieces) == ANSWER.text
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_usage_comes_in_a_stream_only_when_asked_for():
    """With include_usage the last event has no choice and all tokens, and the others have a null usage."""
    plain = events_of(reply_events(Reply(call(stream=True), ANSWER, "i", 0), 0.3, 1.0))
    assert not any("usage" in event for event in plain)
    asked = call(stream=True, stream_options={"include_usage": True})
    *others, last = events_of(reply_events(Reply(asked, ANSWER, "i", 0), 0.3, 1.0))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 12, "completion_tokens": 60, "total_tokens": 72}
    assert all(event["usage"] is None for event in others)
    assert not call(stream_options={"include_usage": True}).include_usage


def test_a_short_answer_streams_in_few_writes():
    """One token gives no more writes than its two halves."""
    answer = Answer(answer_text(1.0, 1, "simulated"), 1.0, 9.0, 1, 1)
    assert len(reply_events(Reply(call(stream=True), answer, "i", 0), 1.0, 9.0)) == 2


def test_a_tool_is_called_only_when_offered_and_asked_for():
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    asking = [{"role": "user", "content": "please [tool]"}]
    assert call(messages=asking, tools=tools).tool == "look_up"
    assert call(messages=asking).tool is None
    assert call(tools=tools).tool is None
    body = orjson.loads(reply_body(Reply(call(messages=asking, tools=tools), ANSWER, "chatcmpl-1", 0)))
    choice = body["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "look_up"


def test_embeddings_are_unit_vectors_of_the_text():
    parsed = call("embeddings", input=["a", "b", "a"], dimensions=5)
    vectors = [d["embedding"] for d in orjson.loads(embeddings_body(Reply(parsed, ANSWER, "i", 0)))["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(v * v for v in vectors[0]) == pytest.approx(1.0)
    assert call("embeddings", input=[1, 2, 3]).inputs == ("1 2 3",)
    assert call("embeddings", input=[[1, 2], [3]]).inputs == ("1 2", "3")
