"""What endpoints say when they refuse, in whatever form: passed on as OpenAI's object, and understood."""

from __future__ import annotations

import orjson
import pytest

from serving.providers.openai import reason_of
from serving.refusals import own_error

LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "no", "code": "c"}}, {"message": "no", "code": "c"}),
        ({"error": "no"}, {"message": "no"}),
        ({"detail": [{"loc": ["n"]}]}, {"message": "[{'loc': ['n']}]"}),
        (
            {"object": "error", "message": LONG, "type": "BadRequestError", "param": None, "code": 400},
            {"message": LONG, "type": "BadRequestError", "code": 400},
        ),
        ([{"error": {"message": "no", "code": 400}}], {"message": "no", "code": 400}),
        ([], {"message": "status 400"}),
        ([1, 2], {"message": "status 400"}),
        ({}, {"message": "status 400"}),
        ({"error": None, "message": "no"}, {"message": "no"}),
        ({"errors": ["no"]}, {"message": "status 400"}),
        (7, {"message": "status 400"}),
    ],
)
def test_an_error_is_found_in_whatever_form_it_has(body, expected):
    assert own_error(orjson.dumps(body), 400, ()) == expected


def test_our_key_is_cut_out_of_an_error_that_has_no_object_of_its_own():
    raw = orjson.dumps({"object": "error", "message": "bad key sk-0451-abc", "code": 400})
    assert own_error(raw, 400, [b"sk-0451-abc"])["message"] == "bad key ***"


@pytest.mark.parametrize(
    "message",
    [
        LONG,
        "This model's maximum prompt length is 131072 but the request contains 136973 tokens.",
        "The input token count (134123) exceeds the maximum number of tokens allowed (131072).",
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    ],
)
def test_a_prompt_that_is_too_long_is_known_by_what_is_said_of_it(message):
    """Servers' own words, as their users have reported them."""
    assert reason_of(400, {"message": message, "code": 400}) == "context_window"
    assert reason_of(500, {"message": message}) is None
