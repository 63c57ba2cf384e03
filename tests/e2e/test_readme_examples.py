"""The README's examples of feedback, run as they stand there against the real service: Python, a shell, JavaScript."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("\n## Feedback from an application\n")[2].partition("\n## ")[0]
INTERPRETERS = {
    "python": [sys.executable, "-"],
    "sh": ["bash", "-eu"],
    "js": ["node", "--input-type=module"],
}


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "auth": {"keys": [{"key": "your-key", "user": "ada"}]},
        "models": [trial.model("good")],
        "pools": [{"name": "auto", "models": ["good"], "quality_metrics": {"thumbs_up": 1.0}}],
    }
    with run_service(config, tmp_path_factory.mktemp("readme")) as service:
        yield service


@pytest.mark.parametrize("language", INTERPRETERS)
def test_an_example_posts_feedback_that_is_recorded(service, tmp_path, language):
    if shutil.which(INTERPRETERS[language][0]) is None and not os.environ.get("CI"):
        pytest.skip(f"{INTERPRETERS[language][0]} is not there")
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    address = "http://127.0.0.1:8080"
    assert code.count(address) == 2
    run = subprocess.run(
        INTERPRETERS[language],
        check=False,
        input=code.replace(address, service.url),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "recorded" in run.stdout


def test_all_of_them_are_in_the_log(service):
    """Run last: it ends the service."""
    assert service.stop() == 0
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        rows = log.execute("SELECT quality, metrics FROM rewards ORDER BY ts").fetchall()
    assert len(rows) == 3
    assert all(quality in (0.0, 1.0) for quality, _ in rows)
