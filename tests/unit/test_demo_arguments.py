"""Arguments of `pointsman demo` and `pointsman upstreams --demo` that do not go together."""

from __future__ import annotations

import shlex

import pytest
from typer.testing import CliRunner

from serving.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("demo --run x", "--run: needs --outcomes"),
        ("demo --outcomes nowhere", "prompts.parquet: not found in nowhere"),
        ("demo --seconds 1", "'--seconds'"),
        ("demo --min-accuracy 1", "'--min-accuracy'"),
        ("upstreams --demo --models a", "--demo: takes no --then-run, --models or --time-scale"),
        ("upstreams --demo --time-scale 1", "--demo: takes no --then-run, --models or --time-scale"),
        ("upstreams --p95 1", "--p95 and --min-accuracy: need --demo"),
    ],
)
def test_they_are_refused_with_what_to_change(arguments, words):
    result = CliRunner().invoke(main, shlex.split(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 2
    assert words in result.stderr
