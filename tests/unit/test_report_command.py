"""`pointsman report` as a command: what it refuses, in one sentence, before it has written anything."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hand_made_log import HandMadeLog


def report(*arguments):
    command = [sys.executable, "-m", "serving", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such.duckdb", "-o", "page.html"], "there is no file"),
        (["LOG"], "-o report.html"),
        (["LOG", "-o", "nowhere/page.html"], "its folder does not exist"),
        (["LOG", "-o", "page.html", "--since", "yesterday"], "--since"),
        (["LOG", "-o", "page.html", "--pool", "atuo"], "no decision of a pool 'atuo'"),
        (["LOG", "-o", "page.html", "--policy", "best"], "'best' is none of"),
        (["LOG", "-o", "page.html", "--where", "price > 1"], "--where"),
        (["LOG", "-o", "page.html", "--until", "2020-01-01"], "is left by --where, --since, --until"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, says):
    log = HandMadeLog(tmp_path / "log.duckdb")
    log.call("a")
    path = log.write()
    monkeypatch.chdir(tmp_path)
    done = report(*(path if argument == "LOG" else argument for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pointsman: ")
    assert says in done.stderr
    assert not (tmp_path / "page.html").exists()
