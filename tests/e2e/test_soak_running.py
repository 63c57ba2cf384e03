"""The soak with its real service: ended early, it tells what was sampled, and leaves nothing running."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
OPTIONS = ["--calls", "100000", "--concurrency", "4", "--sample-every", "40", "--horizon-s", "2", "--retention-s", "3"]
SAMPLES = 5


def test_a_soak_that_is_ended_early_has_what_was_sampled(tmp_path):
    out, data = tmp_path / "soak.json", tmp_path / "data"
    command = [sys.executable, "-m", "benchmarks.soak", *OPTIONS, "--folder", str(data), "--json", str(out)]
    command += ["--plot", str(tmp_path / "soak.svg")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    timer = threading.Timer(120.0, process.kill)
    timer.start()
    try:
        lines = [process.stdout.readline() for _ in range(SAMPLES)]
        service = int((data / "service.pid").read_text())
        sampled = json.loads(out.read_text())
        assert (len(sampled["samples"]) >= SAMPLES - 1, "judged" in sampled) == (True, False)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate()
    finally:
        timer.cancel()
        process.kill()
    assert process.returncode == 0, "".join(lines) + text
    found = json.loads(out.read_text())
    assert len(found["samples"]) >= SAMPLES
    first, last = found["samples"][0], found["samples"][-1]
    assert 0 < first["calls"] < last["calls"] <= found["calls"] < 100_000
    assert last["rss_mb"] > 20
    assert last["cpu_us_per_call"] > 0
    assert min(last[f"{name}_mb"] for name in ("store", "log")) > 0
    assert found["judged"]["nothing unexpected"] == {"answers": {}, "log_trouble": {}, "holds": True}
    assert found["judged"]["log retention"]["outcomes_without_decision"] == 0
    kinds = {name.partition(":")[0] for name in found["statuses"]}
    assert kinds == {"call", "graded", "graded late", "revised"}
    assert "memory: mb_per_100k_calls" in text
    assert "<svg" in (tmp_path / "soak.svg").read_text()
    assert not psutil.pid_exists(service)
