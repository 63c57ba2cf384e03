"""The real service in front of real upstreams, and `pointsman evaluate` run against it as a process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson

from evaluation.upstreams import create_app

ROOT = Path(__file__).parents[2]


TIMEOUT_S = 60


ADMIN_KEY = "admins-key-12"


COST_USD = 20 * 1e-6 + 100 * 10e-6  # of one call: 20 input, 100 output tokens at 1 and 10 USD per million


@dataclass
class Stack:
    """A service with its upstreams, and the command run against it."""

    service: object
    upstreams: str
    folder: Path

    def command(self, suite, *arguments):
        return [
            sys.executable,
            "-m",
            "serving",
            "evaluate",
            "--url",
            self.service.url,
            "--suite",
            str(suite),
            *arguments,
        ]

    def run(self, suite, *arguments, expect=0, key=None):
        """(figures, all that was printed); the state is beside the suite."""
        out = self.folder / "out.json"
        out.unlink(missing_ok=True)
        env = {name: value for name, value in os.environ.items() if name != "POINTSMAN_ADMIN_KEY"}
        env |= {"POINTSMAN_ADMIN_KEY": key} if key else {}
        ended = subprocess.run(
            self.command(suite, "--json", str(out), *arguments),
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert ended.returncode == expect, ended.stdout + ended.stderr
        return json.loads(out.read_bytes()) if out.exists() else None, ended.stdout + ended.stderr

    async def calls(self, model, kind="started"):
        """How many calls of a model its upstream has seen."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.upstreams}/control?last=0") as response:
            return (await response.json())["models"][model][kind]

    async def control(self, **changes):
        url = f"{self.upstreams}/control"
        async with aiohttp.ClientSession() as session, session.post(url, json=changes) as response:
            assert response.status == 200

    def results(self):
        return [event["payload"] for event in self.service.events("benchmark_result")]


@contextlib.contextmanager
def running(source, run_service, serve_in_thread, folder, *, constraints=None, priced=True, auth=False, time_scale=0.0):
    price = {"price": {"input_per_million": 1.0, "output_per_million": 10.0}} if priced else {}
    with serve_in_thread(create_app(source, time_scale=time_scale)) as upstreams:
        config = {
            "models": [
                {"name": name, "endpoint": f"{upstreams}/v1", "timeout_s": 5, **price} for name in source.models
            ],
            "pools": [{"name": "auto", "models": list(source.models), "constraints": constraints or {}}],
        }
        if auth:
            config["auth"] = {"admin_key": ADMIN_KEY, "keys": [{"key": "callers-key-1", "user": "ada"}]}
        with run_service(config, folder / "service") as service:
            yield Stack(service, upstreams, folder)


def by_model(figures):
    return {entry["model"]: entry for entry in figures["models"]}


def write_suite(path, rows):
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return path
