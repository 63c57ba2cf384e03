"""Answers of endpoints that speak OpenAI's protocol: what is taken for one."""

from __future__ import annotations

import pytest

from serving.providers.openai import OpenAI
from serving.request_headers import Hints
from serving.wire import parse_call

CHAT = parse_call("chat/completions", {"model": "m", "messages": [{"role": "user", "content": "?"}]}, Hints(), 10)
TEXT = parse_call("completions", {"model": "m", "prompt": "?"}, Hints(), 10)
VECTORS = parse_call("embeddings", {"model": "m", "input": "?"}, Hints(), 10)


@pytest.mark.parametrize(
    ("call", "answer"),
    [(CHAT, {"choices": []}), (TEXT, {"choices": [{}], "error": None}), (VECTORS, {"data": [], "x": 1})],
)
def test_an_answer_passes_as_it_is(call, answer):
    assert OpenAI().answer(call, answer) is answer


@pytest.mark.parametrize("call", [CHAT, TEXT, VECTORS])
@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"error": {"message": "no"}},
        {"error": "Unexpected endpoint or method. (POST /chat/completions)"},
        {"choices": None, "data": None},
        {"choices": {}, "data": {}},
        {"message": "the model is loading"},
    ],
)
def test_what_is_no_answer_is_malformed_whatever_its_status(call, answer):
    """Some servers say with status 200 that they cannot: that must lead elsewhere, and be nobody's success."""
    with pytest.raises(ValueError, match=r"status 200|no list of"):
        OpenAI().answer(call, answer)
