"""The program starts itself again, for workers and suites, from wherever it is called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT, first_line


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of somebody who has a package `serving` of their own."""
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "__init__.py").write_text("raise SystemExit('this is another program')\n")
    return tmp_path


def test_workers_are_this_program_in_a_folder_with_another_of_its_name(elsewhere, valkey_server):
    config = {
        "models": [{"name": "one", "endpoint": "http://127.0.0.1:9/v1"}],
        "pools": [{"name": "auto", "models": ["one"]}],
        "store": {"url": valkey_server.url, "name": elsewhere.name},
    }
    (elsewhere / "pointsman.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-P", "-m", "serving", "serve", "-c", "pointsman.yaml", "--port", "0", "--workers", "2"]
    env = os.environ | {
        "PYTHONPATH": str(ROOT)
    }  # and -P, as in a console script: the working folder is not on its path
    process = subprocess.Popen(command, cwd=elsewhere, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = first_line(process)
        assert "by 2 workers at http://127.0.0.1:" in line, process.stderr.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
