"""Log lines: one for each event, and valid JSON whatever is logged."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace

import pytest

from serving.telemetry.about import About, under_way
from serving.telemetry.log_lines import ConsoleLines, JsonLines


def record(message, *arguments, exc_info=None, **more):
    made = logging.LogRecord("pointsman.x", logging.WARNING, __file__, 1, message, arguments, exc_info)
    made.__dict__.update(more)
    return made


@pytest.fixture
def request_under_way():
    decision = SimpleNamespace(decision_id="pm-1")
    token = under_way.set(About("req-1", trace=SimpleNamespace(trace_id="ab" * 16), decision=decision))
    yield
    under_way.reset(token)


@pytest.mark.parametrize(
    ("message", "arguments", "said"),
    [
        ("plain", (), "plain"),
        ("%s of %d", ("a", 2), "a of 2"),
        ('quotes " and \\ and\nlines\r\x00\x1b', (), 'quotes " and \\ and\nlines\r\x00\x1b'),
        ("half a character \ud800, a whole one 🚂", (), "half a character \ud800, a whole one 🚂"),
        ("%d", ("no number",), "%d (TypeError in its arguments)"),
        ("%s %s", ("too few",), "%s %s (TypeError in its arguments)"),
        ("100%", ("x",), "100% (ValueError in its arguments)"),
        ({"no": "text"}, (), "{'no': 'text'}"),
    ],
)
def test_a_line_is_json_whatever_was_said(message, arguments, said):
    line = JsonLines().format(record(message, *arguments))
    assert line.isascii()
    assert "\n" not in line
    row = json.loads(line)
    assert row["message"] == said
    assert (row["level"], row["logger"]) == ("warning", "pointsman.x")
    assert row["ts"].endswith("+00:00")


def test_an_exception_is_one_line_too():
    try:
        raise ValueError('a "quoted"\nerror')  # noqa: TRY301
    except ValueError:
        line = JsonLines().format(record("it broke", exc_info=sys.exc_info(), stack_info="Stack:\n  here"))
    row = json.loads(line)
    assert "\n" not in line
    assert row["error"] == "ValueError"
    assert row["traceback"].endswith('ValueError: a "quoted"\nerror')
    assert row["stack"] == "Stack:\n  here"


def test_numbers_that_json_lacks_and_values_of_other_kinds_do_not_spoil_a_line():
    line = JsonLines().format(record("x", fields={"path": ConsoleLines, "set": {1}, "status": 200}))
    row = json.loads(line)
    assert row["status"] == 200
    assert row["set"] == "{1}"
    assert json.loads(JsonLines().format(record("x", fields={"share": float("nan")})))["share"] == "nan"


@pytest.mark.usefixtures("request_under_way")
def test_a_line_says_whose_request_it_is_about():
    row = json.loads(JsonLines().format(record("x")))
    assert (row["request_id"], row["decision_id"], row["trace_id"]) == ("req-1", "pm-1", "ab" * 16)
    line = ConsoleLines().format(record("x\ny"))
    assert line.endswith(f"WARNING pointsman.x: x\\ny request_id=req-1 decision_id=pm-1 trace_id={'ab' * 16}")


def test_a_line_of_no_request_names_none():
    assert "request_id" not in json.loads(JsonLines().format(record("x")))
