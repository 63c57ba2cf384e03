"""The sections `tracing` and `logging`, the spans that wait, and what their absence costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

import serving.config_rules
from serving.settings import ConfigError, Settings
from serving.telemetry.export import Exporter

ONE = {
    "models": [{"name": "one", "endpoint": "http://127.0.0.1:1/v1"}],
    "pools": [{"name": "auto", "models": ["one"]}],
}


def problems(**sections):
    with pytest.raises(ConfigError) as caught:
        Settings.parse(ONE | sections)
    return {problem.path: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("given", "posted_to"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://otel.example.com/", "https://otel.example.com/v1/traces"),
        ("https://example.com/otlp", "https://example.com/otlp/v1/traces"),
        ("https://example.com/otlp/v1/traces", "https://example.com/otlp/v1/traces"),
    ],
)
def test_traces_go_where_the_protocol_says(given, posted_to):
    settings = Settings.parse(ONE | {"tracing": {"endpoint": given, "headers": {"x-key": "hidden-value"}}})
    assert settings.tracing.endpoint == posted_to
    assert "hidden-value" not in repr(settings)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("127.0.0.1:4318", "http or https URL"),
        ("ftp://h", "http or https URL"),
        ("http://u:p@h", "no credentials"),
        ("http://h/?key=1", "no query"),
    ],
)
def test_an_endpoint_that_is_none_is_a_problem(endpoint, message):
    assert message in problems(tracing={"endpoint": endpoint})["tracing.endpoint"]


def test_ranges_and_words_are_checked():
    found = problems(
        tracing={"endpoint": "http://h", "sample_ratio": 1.1, "queue_size": 0, "headers": {"host": "x"}},
        logging={"format": "xml", "level": "loud", "access": 1},
    )
    assert set(found) == {
        "tracing.sample_ratio",
        "tracing.queue_size",
        "tracing.headers.host",
        "logging.format",
        "logging.level",
        "logging.access",
    }
    assert "tracing.endpoint" in problems(tracing={})


def test_traces_without_their_extra_are_a_problem_of_the_configuration(monkeypatch):
    def find_spec(name: str) -> ModuleSpec | None:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return ModuleSpec(name, None)

    monkeypatch.setattr(serving.config_rules, "find_spec", find_spec)
    assert "opentelemetry.proto, not installed" in problems(tracing={"endpoint": "http://h"})["tracing"]


async def test_a_full_queue_drops_a_calls_spans_together_and_counts_them():
    settings = Settings.parse(ONE | {"tracing": {"endpoint": "http://h", "queue_size": 16}}).tracing
    counted = []
    exporter = Exporter(settings, None, lambda result, spans: counted.append((result, spans)))
    for _ in range(4):
        exporter.put([None] * 5)
    assert counted == [("dropped", 5)]


def test_without_tracing_nothing_of_it_is_imported():
    code = "import sys, serving.app; print([m for m in sys.modules if m.startswith(('opentelemetry', 'google.'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
