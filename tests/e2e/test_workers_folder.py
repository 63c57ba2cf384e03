"""A data folder belongs to one service, also where the store is on a server."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
import yaml
from crew import crew_of, polled
from scripted_upstream import Scripted
from steered_service import AUTH

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture
def config(scripted):
    return {"auth": AUTH, "models": [scripted.model("one")], "pools": [{"name": "auto", "models": ["one"]}]}


async def test_a_second_service_over_the_same_data_folder_is_refused(config, valkey_server, tmp_path):
    """Alone or of several workers: it would take the sockets of those that run."""
    with crew_of(config, tmp_path, valkey_server) as crew:
        path = crew.service.data_dir.parent / "pointsman.yaml"
        other = path.with_name("other.yaml")
        other.write_text(yaml.safe_dump(yaml.safe_load(path.read_text())))
        for workers in ("2", "1"):
            command = [sys.executable, "-m", "serving", "serve", "-c", str(other), "--port", "0", "--workers", workers]
            command += ["--data-dir", str(crew.service.data_dir)]
            ended = await asyncio.to_thread(
                subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
            assert ended.returncode == 1, ended
            assert "another process has it open; give each its own data_dir" in ended.stderr
        await crew.all_up()
        async with crew.workers() as both:
            for worker in both:
                await polled(lambda worker=worker: worker.at.ask("auto"))
