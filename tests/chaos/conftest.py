"""What the chaos suite adds: upstreams that can be killed, and a table of what was promised and what happened.

`make chaos` runs all of it; `make chaos ARGS="-m quick"` what takes less than a minute. Not part of `make test`.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import orjson
import psutil
import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import asyncio, sys
from aiohttp import web
from scripted_upstream import Scripted
web.run_app(Scripted().app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
_CASES = pytest.StashKey[list]()


@dataclass(slots=True)
class Case:
    """One fault: what was promised (the test's docstring), what happened, and the calls.

    `lost`: what was promised and did not come; a test fails unless it is 0.
    """

    fault: str
    promise: str
    happened: str = ""
    made: int = 0
    answered: int = 0
    lost: int = 0
    seconds: float = 0.0
    kept: bool = False

    def saw(self, load):
        """Count a steady load's calls (`steady_load.Load`)."""
        self.made += len(load.answered) + len(load.lost)
        self.answered += len(load.answered)


def pytest_addoption(parser):
    parser.addoption("--chaos-json", metavar="OUT", help="write the table of faults there, too")


def pytest_configure(config):
    config.stash[_CASES] = []


@pytest.fixture
def case(request):
    promise = " ".join((request.function.__doc__ or "").split())
    name = request.node.name.removeprefix("test_").replace("_", " ")
    made = Case(name, promise)
    began = time.monotonic()
    yield made
    made.seconds = round(time.monotonic() - began, 1)
    request.config.stash[_CASES].append((request.node, made))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[_KEPT] = (report.outcome, str(call.excinfo.value).splitlines()[:1] if call.excinfo else [])
    return report


_KEPT = pytest.StashKey[tuple]()


def pytest_terminal_summary(terminalreporter, config):
    cases = []
    for node, case in config.stash.get(_CASES, []):
        outcome, said = node.stash.get(_KEPT, ("failed", []))
        case.kept = outcome == "passed"
        if outcome != "passed":
            case.happened = " ".join([outcome.upper(), case.happened, *said])[:300]
        cases.append(case)
    if not cases:
        return
    terminalreporter.section("faults: promised, happened, calls made / answered / lost")
    for case in cases:
        calls = f"{case.made:,} / {case.answered:,} / {case.lost:,}"
        terminalreporter.write_line(f"{'kept  ' if case.kept else 'BROKEN'} {case.fault} ({case.seconds:g} s)")
        terminalreporter.write_line(f"       promised: {case.promise}")
        terminalreporter.write_line(f"       happened: {case.happened or 'as promised'}; calls {calls}")
    if config.getoption("--chaos-json", None):
        host = {"cores": psutil.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        told = {"commit": commit, "host": host, "command": "make chaos", "cases": [asdict(case) for case in cases]}
        Path(config.getoption("--chaos-json")).write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2) + b"\n")


# --- upstreams that can be killed


class Mortal:
    """An upstream that is a process of its own, on a port that it keeps."""

    def __init__(self, name) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port = unused.getsockname()[1]
        self.name, self.process = name, None

    def model(self, **more):
        """Its entry in a configuration."""
        price = {"input_per_million": 1.0, "output_per_million": 10.0}
        return {"name": self.name, "endpoint": f"http://127.0.0.1:{self.port}/{self.name}/v1", "price": price} | more

    async def start(self):
        """Begin, or begin again, and wait until it listens."""
        self.process = subprocess.Popen([sys.executable, "-c", CHILD, str(self.port)], cwd=ROOT / "tests")  # noqa: ASYNC220 - it starts at once
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    def kill(self):
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def mortals():
    """Makes upstreams that can be killed; those that live are ended with the test."""
    made = []

    def mortals(*names):
        made.extend(Mortal(name) for name in names)
        return made

    yield mortals
    for mortal in made:
        mortal.kill()


@pytest.fixture
async def patient():
    """A client that opens as many connections as it is told to."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        yield session


def rss_mb(service):
    """Resident memory of a service in MB."""
    return psutil.Process(service.process.pid).memory_info().rss / 1e6


@pytest.fixture
def memory():
    return rss_mb
