"""A stream becomes a whole answer and a stream again."""

from __future__ import annotations

import orjson
import pytest

from serving.traffic.assembly import Assembly, complete, events_of

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
TOOLS = [
    {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"x"'}},
    {"index": 0, "function": {"arguments": ":1}"}},
]


def assembled(events, kind="chat/completions"):
    assembly = Assembly(kind, 10_000)
    for event in events:
        assembly.feed(event, 100)
    return assembly.answer()


def chunk(delta, finish_reason=None, index=0):
    return {"created": 7, "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def told(answer, *, usage, kind="chat/completions"):
    lines = list(events_of(kind, answer, "pm-2", "a", usage=usage))
    assert lines[-1] == b"data: [DONE]\n\n"
    return [orjson.loads(line[6:]) for line in lines[:-1]]


def test_text_tool_calls_and_usage_come_together():
    events = [chunk({"role": "assistant", "content": "he"}), chunk({"content": "llo"})]
    events += [chunk({"tool_calls": [call]}) for call in TOOLS]
    answer = assembled([*events, chunk({}, "tool_calls"), {"choices": [], "usage": USAGE}])
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello", "tool_calls": [CALL]},
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ]
    assert (answer["object"], answer["created"], answer["usage"]) == ("chat.completion", 7, USAGE)


def test_a_whole_answer_told_as_a_stream_and_put_together_is_the_same():
    message = {"role": "assistant", "content": "hi", "tool_calls": [CALL]}
    choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": "tool_calls"} for i in (0, 1)]
    answer = {"object": "chat.completion", "created": 7, "choices": choices, "usage": USAGE}
    assert assembled(told(answer, usage=True)) == answer
    choices = [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}]
    answer = {"object": "text_completion", "created": 7, "choices": choices, "usage": USAGE}
    assert assembled(told(answer, usage=True, kind="completions"), "completions") == answer


def test_events_carry_the_new_id_and_usage_only_where_it_was_asked_for():
    answer = assembled([chunk({"content": "hi"}, "stop"), {"choices": [], "usage": USAGE}])
    for usage in (False, True):
        events = told(answer, usage=usage)
        assert {(event["id"], event["model"]) for event in events} == {("pm-2", "a")}
        assert ("usage" in events[-1]) is usage


def test_what_it_does_not_know_is_not_put_together():
    assert assembled([chunk({"audio": {"id": "x"}}, "stop")]) is None
    assert assembled([{"choices": [{"delta": {"tool_calls": [{}]}}]}]) is None
    assert assembled([]) is None


def test_only_an_answer_that_came_to_its_own_end_is_complete():
    ends = {"stop": True, "tool_calls": True, "length": False, "content_filter": False, None: False}
    for end, expected in ends.items():
        assert complete({"choices": [{"finish_reason": end, "message": {}}]}, "chat/completions") is expected
    assert not complete({"choices": []}, "chat/completions")
    assert complete({"data": []}, "embeddings")


def test_of_a_field_that_it_does_not_know_the_last_value_counts():
    """Sources of a search engine, a stop string, a provider's own figures: in the answer, and in the stream again."""
    first = chunk({"content": "hi"}) | {"citations": ["a"], "obfuscation": "xyz", "x_own": None}
    last = chunk({}, "stop") | {"citations": ["a", "b"]}
    last["choices"][0]["stop_reason"] = "END"
    answer = assembled([first, last])
    assert answer["citations"] == ["a", "b"]
    assert "obfuscation" not in answer
    assert answer["choices"][0]["stop_reason"] == "END"
    events = told(answer, usage=False)
    assert {tuple(event["citations"]) for event in events} == {("a", "b")}
    assert events[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}]
    assert assembled(events) == answer


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "stop"},
        {"finish_reason": "stop", "message": None, "text": "hi"},
        {"finish_reason": "stop", "message": "hi"},
        {"finish_reason": "tool_calls", "message": {"tool_calls": {"id": "c1"}}},
        {"finish_reason": "tool_calls", "message": {"tool_calls": ["c1"]}},
    ],
)
def test_an_answer_that_could_not_be_told_as_a_stream_is_not_kept(choice):
    """Whatever an endpoint takes for a chat: the next who asks for a stream must not get an error of ours."""
    assert not complete({"choices": [choice]}, "chat/completions")


@pytest.mark.parametrize("index", ["1", [1], None, 1.5])
def test_a_stream_whose_choices_are_not_numbered_is_not_put_together(index):
    assert assembled([chunk({"content": "a"}), chunk({"content": "b"}, "stop", index)]) is None
    calls = [{"index": 0, "id": "a"}, {"index": index, "id": "b"}]
    assert assembled([chunk({"tool_calls": [call]}) for call in calls]) is None
