"""What a model's kind changes in its settings, and that none of its secrets is ever shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from serving.check import render_check
from serving.settings import ConfigError, Settings

CLAUDE = {"name": "claude", "kind": "anthropic", "endpoint": "https://api.anthropic.com/v1", "api_key": "s3cr3t-key"}


def parsed(**more):
    return Settings.parse({"models": [CLAUDE | more], "pools": [{"name": "auto", "models": ["claude"]}]})


@pytest.mark.parametrize(
    ("more", "path", "message"),
    [
        ({"kind": "antropic"}, "models[0].kind", "must be one of"),
        ({"headers": {"X-API-Key": "k"}}, "models[0].headers.X-API-Key", "also made from api_key"),
        ({"kind": "openai", "headers": {"authorization": "k"}}, "models[0].headers.authorization", "also made from"),
        ({"endpoint": "https://h/v1/messages"}, "models[0].endpoint", "the base that paths are appended to"),
    ],
)
def test_what_is_wrong_with_it_is_told_by_its_path(more, path, message):
    with pytest.raises(ConfigError) as told:
        parsed(**more)
    (problem,) = told.value.problems
    assert problem.path == path
    assert message in problem.message


def test_headers_of_the_other_kind_are_the_operators_own():
    assert parsed(headers={"authorization": "Bearer x"}).models[0].kind == "anthropic"
    assert parsed(kind="openai", headers={"x-api-key": "x"}).models[0].kind == "openai"


def test_check_shows_the_kind_and_no_secret():
    out = io.StringIO()
    render_check(parsed(headers={"anthropic-beta": "s3cr3t-beta"}), Console(file=out, width=80))
    text = out.getvalue()
    assert "kind anthropic" in text
    assert "anthropic-beta: set" in text
    assert "s3cr3t" not in text
