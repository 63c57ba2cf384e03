"""The section `benchmarks`: what is said about bad values, and what is still allowed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_settings import good, problems

from serving.check import render_check
from serving.settings import Settings

SUITE = {"suite": "math.jsonl"}


def scheduled(*entries: dict[str, Any]) -> dict[str, Any]:
    return good() | {"benchmarks": list(entries)}


def test_the_least_that_is_needed_is_a_suite() -> None:
    (entry,) = Settings.parse(scheduled(SUITE)).benchmarks
    assert (entry.suite, entry.name, entry.every_hours, entry.sample) == (Path("math.jsonl"), "math", 24.0, 100)
    assert (entry.pool, entry.models, entry.concurrency, entry.budget_usd) == (None, None, 4, None)


def test_no_suites_may_be_written_as_nothing() -> None:
    for nothing in (None, [], ()):
        assert Settings.parse(good() | {"benchmarks": nothing}).benchmarks == ()


BAD = [
    ({}, "suite", "is required"),
    ({"suite": 7}, "suite", "must be the path of a suite"),
    ({"suite": "/"}, "suite", "must end in the suite's name"),
    (SUITE | {"every_hours": 0}, "every_hours", "must be above 0"),
    (SUITE | {"sample": 0}, "sample", "must be at least 1"),
    (SUITE | {"concurrency": 0}, "concurrency", "must be at least 1"),
    (SUITE | {"budget_usd": 0}, "budget_usd", "must be above 0"),
    (SUITE | {"timeout_s": "1"}, "timeout_s", "must be a number"),
    (SUITE | {"pool": "auto", "models": ["one"]}, "models", "cannot be given beside pool"),
    (SUITE | {"models": ["one", "one"]}, "models[1]", "is listed twice"),
    (SUITE | {"models": []}, "models", "must not be empty"),
    (SUITE | {"pool": "atuo"}, "pool", "no pool is called 'atuo'"),
    (SUITE | {"pool": "one"}, "pool", "no pool is called 'one'"),
    (SUITE | {"models": ["one", "tow"]}, "models[1]", "no model is called 'tow'"),
    (SUITE | {"evry_hours": 1}, "evry_hours", "unknown"),
]


@pytest.mark.parametrize(("entry", "at", "message"), BAD)
def test_what_is_wrong_is_said_with_its_place(entry: dict[str, Any], at: str, message: str) -> None:
    found = problems(scheduled(entry))
    assert list(found) == [f"benchmarks[0].{at}"]
    assert message in found[f"benchmarks[0].{at}"][0]


def test_two_suites_of_one_name_are_refused() -> None:
    """Their results could not be told apart."""
    found = problems(scheduled({"suite": "a/math.jsonl"}, {"suite": "b/math.parquet"}))
    assert list(found) == ["benchmarks[1].suite"]


def test_runs_need_a_key_to_post_with() -> None:
    callers = [{"key": "callers-key-1", "user": "ada"}]
    assert list(problems(scheduled(SUITE) | {"auth": {"keys": callers}})) == ["benchmarks"]
    assert Settings.parse(scheduled(SUITE) | {"auth": {"keys": callers, "admin_key": "admins-key-12"}}).benchmarks


def test_check_shows_the_section() -> None:
    out = io.StringIO()
    entry = {"pool": "auto", "sample": None, "every_hours": 6, "budget_usd": 0.5}
    render_check(Settings.parse(scheduled(SUITE, {"suite": "law.jsonl"} | entry)), Console(file=out, width=100))
    for part in ("Benchmarks", "math.jsonl", "100 items of all models", "all items of pool auto", "6 hours", "0.5 USD"):
        assert part in out.getvalue()
