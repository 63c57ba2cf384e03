"""What a chat request becomes in Anthropic's protocol, each expectation written by hand, and what is refused."""

from __future__ import annotations

import orjson
import pytest
from anthropic_upstream import check
from pydantic import SecretStr

from serving.errors import InvalidRequest
from serving.providers.anthropic import Anthropic
from serving.providers.openai import OpenAI
from serving.request_headers import Hints
from serving.wire import parse_call

USER = {"role": "user", "content": "hello"}
SAID = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
PNG = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}
THEIR_TOOL = {
    "name": "weather",
    "description": "Of a city.",
    "input_schema": {"type": "object", "properties": {}},
}


def sent(messages=(USER,), most=None, **more):
    """The body that is sent; whatever it is, the protocol takes it."""
    call = parse_call("chat/completions", {"model": "auto", "messages": list(messages), **more}, Hints(), 100)
    body = orjson.loads(Anthropic(most).body(call, "claude-trial"))
    check(body)
    return body


def turns(*messages):
    return sent(messages)["messages"]


def parts(*content):
    return turns({"role": "user", "content": list(content)})[0]["content"]


def called(id_="call_1", name="weather", arguments='{"city": "Köln"}'):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(id_, content="sunny"):
    return {"role": "tool", "tool_call_id": id_, "content": content}


def test_a_plain_request_has_what_the_protocol_requires_and_nothing_else():
    assert sent() == {"model": "claude-trial", "max_tokens": 4096, "messages": [SAID]}


@pytest.mark.parametrize(
    ("most", "asked", "tokens"),
    [
        (None, {"max_tokens": 9000}, 9000),
        (None, {"max_completion_tokens": 5, "max_tokens": 7}, 5),
        (None, {"max_completion_tokens": None, "max_tokens": 7}, 7),
        (800, {}, 800),
        (800, {"max_tokens": 9000}, 800),
        (800, {"max_tokens": 20}, 20),
    ],
)
def test_an_answer_has_as_many_tokens_as_the_caller_asks_for_and_the_model_has(most, asked, tokens):
    assert sent(most=most, **asked)["max_tokens"] == tokens


@pytest.mark.parametrize(
    ("more", "theirs"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.7, "top_p": 1}, {"temperature": 0.7}),
        ({"temperature": 1.0, "top_p": 0.9}, {"top_p": 0.9}),
        ({"temperature": 1.8}, {}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stop": None}, {}),
        ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
        ({"reasoning_effort": "none"}, {}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "top_k": 5}, None),
        ({"cache_control": {"type": "ephemeral"}}, None),
        ({"seed": 1, "presence_penalty": 0.5, "store": True, "metadata": {"a": "b"}, "frobnicate": [1]}, {}),
        ({"n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "modalities": ["text"]}, {}),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, {}),
    ],
)
def test_each_field_is_translated_passed_or_left_out(more, theirs):
    """None: it is Anthropic's own field, and passes."""
    assert sent(**more) == sent() | (more if theirs is None else theirs)


@pytest.mark.parametrize(
    ("more", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {"type": "tool", "name": "weather"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
    ],
)
def test_tools_and_the_choice_among_them(more, choice):
    body = sent(tools=[TOOL], **more)
    assert (body["tools"], body.get("tool_choice")) == ([THEIR_TOOL], choice)


def test_a_tools_schema_is_an_objects_and_strictness_and_caching_pass():
    bare = {"type": "function", "function": {"name": "now"}}
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"required": ["x"]}}}
    theirs = sent(tools=[bare, strict | {"cache_control": {"type": "ephemeral"}}])["tools"]
    assert theirs == [
        {"name": "now", "input_schema": {"type": "object", "properties": {}}},
        {
            "name": "f",
            "input_schema": {"type": "object", "required": ["x"]},
            "strict": True,
            "cache_control": {"type": "ephemeral"},
        },
    ]


def test_instructions_go_to_the_front_wherever_they_stood():
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "developer", "content": "In German."}]
    body = sent(messages)
    assert (body["system"], body["messages"]) == ("Be brief.\nIn German.", [SAID])


def test_instructions_that_are_to_be_cached_stay_blocks():
    cached = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "system", "content": [cached]}, {"role": "system", "content": "short"}, USER]
    assert sent(messages)["system"] == [cached, {"type": "text", "text": "short"}]


def test_neighbours_of_one_role_are_one_turn_and_blank_texts_are_left_out():
    one, two = {"role": "user", "content": "one"}, {"role": "user", "content": [{"type": "text", "text": "two"}]}
    silent = {"role": "assistant", "content": ""}
    assert turns(one, silent, two, {"role": "assistant", "content": "So: \n"}) == [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "So:"}]},
    ]


def test_calls_and_their_results_are_blocks_and_the_results_one_turn():
    asked = {"role": "assistant", "content": "I look.", "tool_calls": [called(), called("call:2", "now", "")]}
    image = [{"type": "text", "text": "seen"}, {"type": "image_url", "image_url": {"url": PNG}}]
    thread = turns(USER, asked, result("call_1"), result("call:2", image), {"role": "user", "content": "and?"})
    assert thread[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Köln"}},
                {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
                {
                    "type": "tool_result",
                    "tool_use_id": "call_2",
                    "content": [
                        {"type": "text", "text": "seen"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                        },
                    ],
                },
                {"type": "text", "text": "and?"},
            ],
        },
    ]


def test_a_result_without_content_is_a_result():
    thread = turns(USER, {"role": "assistant", "content": None, "tool_calls": [called()]}, result("call_1", ""))
    assert thread[2]["content"] == [{"type": "tool_result", "tool_use_id": "call_1"}]


def test_thoughts_come_back_before_what_followed_them():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "d"}
    said = {"role": "assistant", "content": "Yes.", "thinking_blocks": [thought, {"type": "other"}, hidden]}
    assert turns(USER, said)[1]["content"] == [thought, hidden, {"type": "text", "text": "Yes."}]


def test_a_jpg_is_a_jpeg():
    """Many callers take the ending of a file's name for its kind, and OpenAI's endpoints do not mind."""
    (image,) = parts({"type": "image_url", "image_url": {"url": "data:image/jpg;base64,/9j/4AA="}})
    assert image["source"] == {"type": "base64", "media_type": "image/jpeg", "data": "/9j/4AA="}


def test_images_and_documents_are_sources():
    url = "https://example.com/a.png"
    pdf = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}
    assert parts(
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}, "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "file", "file": pdf},
        {"type": "text", "text": "what is it?"},
    ) == [
        {"type": "image", "source": {"type": "url", "url": url}, "cache_control": {"type": "ephemeral"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            "title": "a.pdf",
        },
        {"type": "text", "text": "what is it?"},
    ]


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [WEATHER]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"reasoning_effort": "utmost"}, "reasoning_effort"),
        ({"reasoning_effort": ["low"]}, "reasoning_effort"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "all"}, "max_completion_tokens"),
        ({"stop": "\n"}, "stop"),
        ({"stop": ["a", " "]}, "stop[1]"),
        ({"stop": 5}, "stop"),
        ({"tools": [TOOL, {"type": "custom", "custom": {"name": "c"}}]}, "tools[1].type"),
        ({"tools": ["weather"]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": WEATHER | {"parameters": 1}}]}, "tools[0].function.parameters"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_path(more, path):
    with pytest.raises(InvalidRequest) as refusal:
        sent(**more)
    assert refusal.value.param == path


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({"role": "user", "content": " "}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "function", "name": "f", "content": "1"}, "messages[1].role"),
        ({"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content[0].image_url.url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/bmp;base64,AA"}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,AA"}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "image/png;base64,AA"}}]},
            "messages[1].content[0].image_url.url",
        ),
        ({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}, "messages[1].content[0].file."),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [7]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [called(id_="")]}, "messages[1].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [called(name=None)]}, "messages[1].tool_calls[0].function.name"),
        ({"role": "assistant", "tool_calls": [called(arguments="{")]}, "messages[1].tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [called(arguments="[]")]}, "messages[1].tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [called(arguments={})]}, "messages[1].tool_calls[0].function.arguments"),
        ({"role": "tool", "content": "1"}, "messages[1].tool_call_id"),
    ],
)
def test_a_message_that_cannot_be_said_is_refused_by_its_path(message, path):
    with pytest.raises(InvalidRequest) as refusal:
        turns(USER, message)
    assert refusal.value.param.startswith(path)


@pytest.mark.parametrize("messages", [[{"role": "system", "content": "Be."}], [{"role": "assistant", "content": "Hm"}]])
def test_a_conversation_begins_with_the_user(messages):
    with pytest.raises(InvalidRequest, match="begin with the user") as refusal:
        sent(messages)
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(
    ("kind", "body"), [("embeddings", {"input": "a"}), ("completions", {"prompt": "a"}), ("infer", {"input": "a"})]
)
def test_other_calls_are_told_what_to_call(kind, body):
    call = parse_call(kind, {"model": "claude", **body}, Hints(), 10)
    with pytest.raises(InvalidRequest, match="'claude' speaks Anthropic's protocol: call /v1/chat/completions") as told:
        Anthropic(None).body(call, "claude-trial")
    assert (told.value.param, told.value.code) == ("model", "wrong_kind_of_model")


@pytest.mark.parametrize(
    ("kind", "body", "sayable"),
    [
        ("chat/completions", {"messages": [USER]}, True),
        ("chat/completions", {"messages": [USER], "n": 2}, False),
        ("chat/completions", {"messages": [{"role": "user", "content": ""}]}, False),
        ("embeddings", {"input": "a"}, False),
    ],
)
def test_a_call_that_would_be_refused_is_known_before(kind, body, sayable):
    call = parse_call(kind, {"model": "auto", **body}, Hints(), 10)
    assert (Anthropic(None).can_say(call), OpenAI().can_say(call)) == (sayable, True)


def test_what_is_no_json_is_the_callers_mistake():
    with pytest.raises(InvalidRequest) as refusal:
        sent([{"role": "user", "content": "\ud800"}])
    assert refusal.value.code == "invalid_json"


def test_the_key_and_the_version_are_headers_of_their_own():
    assert Anthropic(None).headers(SecretStr("k")) == {"anthropic-version": "2023-06-01", "x-api-key": "k"}
    assert Anthropic(None).headers(None) == {"anthropic-version": "2023-06-01"}
