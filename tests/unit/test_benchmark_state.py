"""The file of a run: what was written is there again, whatever ended the process, and nobody's work is overwritten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bandit.errors import InvalidInput
from evaluation.benchmark_state import Result, RunHeader, StateFile, state_path

HEADER = RunHeader("run-1", 1.0, "http://h:1", "s", "d1", ("a", "b"), None, 0)
GOOD = Result(
    "a", "q1", "math", "graded", quality=0.5, latency_s=1.0, cost_usd=0.25, judge_cost_usd=0.5, input_tokens=3
)
BAD = Result("b", "q1", None, "failed", error="upstream_timeout", reason="too late")


def opened(path, header=HEADER, *, resume=False, restart=False):
    return StateFile.open(path, header, resume=resume, restart=restart)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.evaluate"


@pytest.fixture
def unfinished(path):
    with opened(path) as state:
        state.add(GOOD)
        state.add(BAD)
        state.add_posted([GOOD.key])
    return path


def test_a_run_is_resumed_with_what_it_has(unfinished):
    with opened(unfinished, replace(HEADER, run="run-2", started_ts=2.0), resume=True) as state:
        assert state.header.run == "run-1"
        assert state.results == {GOOD.key: GOOD, BAD.key: BAD}
        assert state.posted == {("a", "q1")}
        assert not state.finished


def test_a_later_result_takes_the_place_of_an_earlier_one(unfinished):
    better = replace(BAD, status="graded", quality=1.0, error=None)
    with opened(unfinished, resume=True) as state:
        state.add(better)
    with opened(unfinished, resume=True) as state:
        assert state.results[BAD.key] == better


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_last_line_that_was_not_written_whole_is_dropped_and_written_over(unfinished, cut):
    """The last line is that of what was posted; without it the result is to be posted again."""
    data = unfinished.read_bytes()
    unfinished.write_bytes(data[:-cut])
    with opened(unfinished, resume=True) as state:
        assert set(state.results) == {GOOD.key, BAD.key}
        assert state.posted == set()
        state.add_posted([GOOD.key])
    assert unfinished.read_bytes() == data


def test_a_header_that_was_not_written_whole_is_no_run(unfinished):
    unfinished.write_bytes(unfinished.read_bytes()[:10])
    with opened(unfinished) as state:
        assert state.results == {}


def test_an_unfinished_run_is_not_overwritten_unless_told_to(unfinished):
    with pytest.raises(
        InvalidInput, match="unfinished run with 2 results: go on with it by --resume, or drop it by --r"
    ):
        opened(unfinished)
    with opened(unfinished, replace(HEADER, run="run-2"), restart=True) as state:
        assert (state.header.run, state.results) == ("run-2", {})


def test_a_finished_run_may_be_followed_by_another(unfinished):
    with opened(unfinished, resume=True) as state:
        state.finish()
    with opened(unfinished, resume=True) as state:
        assert state.finished
    with opened(unfinished, replace(HEADER, run="run-2")) as state:
        assert (state.results, state.finished) == ({}, False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"suite_digest": "d2"}, r"the suite's content \(was d1, is d2\)"),
        ({"models": ("a", "c")}, r"models \(was a, b, is a, c\)"),
        ({"sample": 5, "seed": 1}, r"sample \(was None, is 5\); seed \(was 0, is 1\)"),
        ({"url": "http://h:2"}, r"url \(was http://h:1, is http://h:2\)"),
        ({"suite": "t"}, r"suite \(was s, is t\)"),
    ],
)
def test_a_run_of_something_else_is_not_resumed(unfinished, change, told):
    with pytest.raises(InvalidInput, match=f"is of another run: {told}. Give the same, or start anew"):
        opened(unfinished, replace(HEADER, **change), resume=True)


@pytest.mark.parametrize(
    "content", [b'{"id": "q1", "prompt": "x"}\n', b"PAR1\x00\x01", b'{"kind":"run","version":99}\n', b"[]\n"]
)
@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_is_something_else_is_left_alone(path, content, restart):
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"is not( of)? a state of evaluate; give another --state"):
        opened(path, restart=restart)
    assert path.read_bytes() == content


def test_a_line_in_the_middle_that_is_broken_is_named(unfinished):
    lines = unfinished.read_bytes().split(b"\n")
    unfinished.write_bytes(b"\n".join([lines[0], b"{broken", *lines[2:]]))
    with pytest.raises(InvalidInput, match="line 2 is not of a state of evaluate"):
        opened(unfinished, resume=True)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"cannot be kept there .*; give another place by --state"):
        opened(tmp_path / "file" / "s.evaluate")


def test_one_process_at_a_time(unfinished):
    with opened(unfinished, resume=True), pytest.raises(InvalidInput, match="is in use by another evaluate"):
        opened(unfinished, resume=True)


def test_what_is_posted_has_a_quality_or_an_error():
    assert GOOD.to_post() == {
        "item_id": "q1", "model": "a", "category": "math", "quality": 0.5, "latency_s": 1.0, "cost_usd": 0.25,
        "input_tokens": 3, "output_tokens": None, "error": None,
    }  # fmt: skip
    assert BAD.to_post()["error"] == "upstream_timeout"
    assert "quality" not in BAD.to_post()
    assert GOOD.known_cost_usd == 0.75


def test_the_default_path_stands_beside_the_suite_and_is_the_services_own(tmp_path):
    one, two = (state_path(tmp_path / "math.v2.jsonl", url) for url in ("http://a", "http://b"))
    assert one.parent == two.parent == tmp_path
    assert one.name.startswith("math.v2.")
    assert one != two
    (tmp_path / "folder").mkdir()
    assert state_path(tmp_path / "folder", "http://a").parent == tmp_path
