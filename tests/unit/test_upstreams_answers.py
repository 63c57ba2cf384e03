"""Answers carry their grade, exactly, at about the length they claim."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidInput
from evaluation.answers import MAX_ANSWER_TOKENS, answer_text, estimate_tokens, grade

QUALITIES = st.floats(min_value=0.0, max_value=1.0)


@given(QUALITIES, st.integers(min_value=0, max_value=5_000), st.sampled_from(["recorded", "estimated", "simulated"]))
def test_grade_reads_back_the_exact_quality(quality, output_tokens, origin):
    """Whatever the quality, its length and its origin, the grade of the answer is that very number."""
    assert grade(answer_text(quality, output_tokens, origin)) == quality


@pytest.mark.parametrize("output_tokens", [20, 100, 1_999])
def test_answers_have_about_the_tokens_they_claim(output_tokens):
    """A text of n tokens has close to 4n characters, up to a word."""
    length = len(answer_text(1.0, output_tokens, "recorded"))
    assert 4 * output_tokens - 12 <= length <= 4 * output_tokens


def test_long_answers_are_bounded():
    """Tokens beyond the bound are reported, not written out."""
    assert len(answer_text(1.0, 10**9, "recorded")) <= 4 * MAX_ANSWER_TOKENS


def test_grade_takes_the_last_mark():
    """A mark that the answer merely quotes is not its grade."""
    assert grade("you wrote (recorded quality 0.1)\n(simulated quality 1.0)") == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "no mark", "(recorded quality 1.5)", "(recorded quality -0.1)", "(recorded quality e)", "(recorded qual"],
)
def test_an_answer_without_a_sound_mark_has_no_grade(text):
    with pytest.raises(InvalidInput):
        grade(text)


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("abc", 1), ("a" * 8, 2), ("a" * 400, 100)])
def test_tokens_are_a_quarter_of_the_characters(text, tokens):
    assert estimate_tokens(text) == tokens
