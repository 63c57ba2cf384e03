"""Upstreams as a process: starts, says where it is, writes a configuration, and ends when told to."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import aiohttp
import pytest
import yaml

from bandit.errors import InvalidInput
from evaluation.synthetic import SyntheticModel, SyntheticSource
from evaluation.upstream_process import config_yaml

PROGRAM = """
import pathlib, sys
from evaluation.synthetic import SyntheticSource
from evaluation.upstream_process import run
from evaluation.upstreams import create_app
source = SyntheticSource()
run(source, create_app(source), config_path=pathlib.Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_process_serves_until_a_signal(tmp_path, number):
    """The written configuration points at the printed address, and the signal ends the process cleanly."""
    path = tmp_path / "router.yaml"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            base_url = (await process.stdout.readline()).decode().split()[-1]
            assert b"atlas-large" in await process.stdout.readline()
            async with aiohttp.ClientSession() as session, session.get(f"{base_url}/healthz") as response:
                assert response.status == 200
            config = yaml.safe_load(path.read_text())
            assert {model["endpoint"] for model in config["models"]} == {f"{base_url}/v1"}
            process.send_signal(number)
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, errors) == (0, b"")


def test_the_configuration_has_one_pool_and_known_prices_only():
    source = SyntheticSource([SyntheticModel("a", 0.5, 1.0, 0.1, 10, 1, 2), SyntheticModel("b", 0.5, 1.0, 0.1, 10)])
    options = {"constraints": {"p95_latency_s": 2.0}}
    text = config_yaml(source, "http://127.0.0.1:9", pool_options=options, server={"port": 0}, timeout_s=5)
    assert yaml.safe_load(text) == {
        "server": {"port": 0},
        "models": [
            {
                "name": "a",
                "endpoint": "http://127.0.0.1:9/v1",
                "price": {"input_per_million": 1.0, "output_per_million": 2.0},
                "timeout_s": 5,
            },
            {"name": "b", "endpoint": "http://127.0.0.1:9/v1", "timeout_s": 5},
        ],
        "pools": [{"name": "auto", "models": ["a", "b"], "constraints": {"p95_latency_s": 2.0}}],
    }


def test_a_configuration_can_hold_a_part_of_the_models():
    config = yaml.safe_load(config_yaml(SyntheticSource(), "http://h", models=["oak-medium"], pool="p"))
    assert (config["pools"], len(config["models"])) == ([{"name": "p", "models": ["oak-medium"]}], 1)
    with pytest.raises(InvalidInput, match="nobody"):
        config_yaml(SyntheticSource(), "http://h", models=["nobody"])
