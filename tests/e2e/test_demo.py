"""The demo as a program: it shows what it promises, ends by itself or when told to, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import duckdb
import psutil
import pytest

from evaluation.demo_pool import DEMO_MODELS

ROOT = Path(__file__).parents[2]
LIMIT_S = 40.0


@contextlib.contextmanager
def started(folder, *arguments, **options):
    """`python -m serving ARGUMENTS` with its temporary files in `folder`; killed on leaving if it still runs."""
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "serving", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, env=env, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def left_behind(folder):
    """Processes that work on a file in `folder`, and temporary folders in it."""
    commands = [process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"])]
    processes = [command for command in commands if any(str(folder) in word for word in command)]
    return processes, [path.name for path in folder.glob("pointsman-demo-*")]


def read_until(process, mark):
    """The output up to the first line with `mark` in it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if mark in line:
            break
    return "".join(lines)


def played(folder, out):
    """What the call at the end of `out` answers when the commands before it run as printed, but on free ports."""
    upstreams_command, serve_command, call = (shlex.split(line) for line in out.strip().splitlines()[-3:])
    python = [sys.executable, "-m", "serving"]
    assert (upstreams_command[:3], serve_command[:3], call[0]) == (python, python, "curl")
    upstreams_command[upstreams_command.index("8081")] = "0"
    with started(folder, *upstreams_command[3:], stdout=subprocess.PIPE, text=True) as upstreams:
        read_until(upstreams, "models: ")
        arguments = [*serve_command[3:], "--port", "0"]
        with started(folder, *arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
            port = read_until(service, " at http").strip().rpartition(":")[2]
            url = next(word for word in call if word.startswith("http")).replace("8080", port)
            headers = [call[i + 1].split(": ") for i, word in enumerate(call) if word == "-H"]
            request = urllib.request.Request(url, call[call.index("-d") + 1].encode(), dict(headers))  # noqa: S310
            with urllib.request.urlopen(request, timeout=LIMIT_S) as response:  # noqa: S310 - on this machine
                assert response.headers["x-pointsman-mode"] == "bandit"
                return json.load(response)["choices"][0]["message"]["content"]


def test_a_run_shows_traffic_filters_and_a_summary_and_ends_by_itself(tmp_path):
    """The slow model is filtered, the favourite jumps and recovers, and the commands printed at the end work."""
    with started(tmp_path, "demo", "--seconds", 3, stdout=subprocess.PIPE, text=True) as demo:
        out, _ = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 0
    for model in DEMO_MODELS:
        row = rf"^{model.name} +[\d,]+ +\d+% +\d+% .*(unknown|admitted|filtered|probing)"
        assert re.search(row, out, re.MULTILINE), f"no row of {model.name} in:\n{out}"
    assert "summit-max: unknown → filtered, proved violating" in out
    assert re.search(r"oak-medium: has \d+% of the calls: latency × 8 from here on \(simulated\)", out)
    assert "oak-medium: has its old latency again (simulated)" in out
    assert re.search(r"[\d,]+ calls · \d+ a second · 0 errors · cost \$\d", out)
    assert re.search(r"whole run +cost [+-]\d+% .*quality [+-]0\.\d+", out)
    assert "Drift (simulated): latency of " in out
    assert left_behind(tmp_path) == ([], [])
    assert "(simulated quality" in played(tmp_path, out)


@pytest.fixture
def outcomes(tmp_path):
    """A folder of recorded outcomes: three models, two runs; slow-model is three times as slow in the second."""
    folder = tmp_path / "set"
    folder.mkdir()
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            "CREATE TABLE prompts AS SELECT 'p' || i AS prompt_id, 'Question ' || i AS prompt, 'quiz' AS category,"
            " 'test' AS split FROM range(50) t(i);"
            "CREATE TABLE outcomes AS SELECT prompt_id, model, run, q AS quality, 0.001 AS cost_usd,"
            " l * CASE run WHEN 'may' THEN 3.0 ELSE 1.0 END AS latency_s, 10 AS input_tokens, 20 AS output_tokens"
            " FROM prompts, (VALUES ('april'), ('may')) r(run),"
            " (VALUES ('good-model', 0.9, 0.4), ('slow-model', 1.0, 0.5), ('weak-model', 0.1, 0.3)) m(model, q, l)"
        )
        for table in ("prompts", "outcomes"):
            connection.execute(f"COPY {table} TO '{folder / table}.parquet'")
    return folder


def test_recorded_outcomes_are_run_one_run_after_the_other(tmp_path, outcomes):
    arguments = ("demo", "--seconds", 2, "--outcomes", outcomes, "--p95", 0.3)
    with started(tmp_path, *arguments, stdout=subprocess.PIPE, text=True) as demo:
        out, _ = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 0
    assert "from here on the outcomes are those of run may, before: april" in out
    assert "recorded outcomes, run may · ran 2 s" in out
    assert re.search(r"^good-model +\d+", out, re.MULTILINE)
    assert f"--outcomes {outcomes} --p95 0.3 --port 8081" in out
    assert left_behind(tmp_path) == ([], [])


def test_sigterm_ends_it_with_a_summary(tmp_path):
    with started(tmp_path, "demo", stdout=subprocess.PIPE, text=True) as demo:
        before = read_until(demo, "→ filtered")
        demo.terminate()
        after, _ = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 0
    assert "Pointsman demo" not in before
    assert "Pointsman demo · simulated pool · ran" in after
    assert left_behind(tmp_path) == ([], [])


def test_in_a_terminal_it_shows_a_live_table_and_ctrl_c_ends_it(tmp_path):
    """The terminal is a pseudo-terminal, and Ctrl-C the byte 3 typed into it."""
    own, theirs = pty.openpty()
    with started(tmp_path, "demo", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as demo:
        os.close(theirs)
        # What a terminal does on Ctrl-C: SIGINT to the whole group in front, which the parts of the demo are not in.
        shown, interrupted = b"", False
        with contextlib.suppress(OSError):  # the terminal's end
            while chunk := os.read(own, 65536):
                shown += chunk
                if not interrupted and b"of 60 s" in shown and b"filtered" in shown:
                    os.killpg(demo.pid, signal.SIGINT)
                    interrupted = True
        code = demo.wait(LIMIT_S)
    os.close(own)
    assert (code, interrupted) == (0, True)
    assert "simulated pool · ran".encode() in shown
    assert left_behind(tmp_path) == ([], [])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed process")
def test_no_process_outlives_a_demo_that_was_killed(tmp_path):
    with started(tmp_path, "demo", stdout=subprocess.PIPE, text=True) as demo:
        read_until(demo, "→ filtered")
        assert len(left_behind(tmp_path)[0]) == 2
        demo.kill()
    deadline = time.monotonic() + LIMIT_S
    while left_behind(tmp_path)[0]:
        assert time.monotonic() < deadline, left_behind(tmp_path)
        time.sleep(0.05)


def test_it_fails_when_a_part_of_it_dies_and_says_which(tmp_path):
    with started(tmp_path, "demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        read_until(demo, "→ filtered")
        (victim,) = [child for child in psutil.Process(demo.pid).children() if "serve" in child.cmdline()]
        victim.kill()
        _, errors = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 1
    assert "pointsman: the demo ended: the service was ended by SIGKILL" in errors
    assert left_behind(tmp_path) == ([], [])
