"""Servers under measurement as child processes: started, found ready, accounted, ended by their own id."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Server", "host_facts", "started"]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its base URL, its process, and how long it took until it said so."""

    url: str
    process: psutil.Process
    startup_s: float

    def cpu_s(self) -> float:
        """CPU seconds used so far, all threads, user and system."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_mb(self) -> float:
        """Resident memory in MB (10⁶ bytes)."""
        return float(self.process.memory_info().rss) / 1e6


@contextlib.contextmanager
def started(
    arguments: Sequence[str], *, log: Path | None = None, folder: Path | None = None, detached: bool = False
) -> Iterator[Server]:
    """`python ARGUMENTS` as a process (in `folder`), once it has printed a URL; ended on leaving.

    `detached`: a terminal's Ctrl-C is not for it.
    """
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stderr = subprocess.DEVNULL if log is None else stack.enter_context(log.open("w"))
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ,
            cwd=folder,
            start_new_session=detached,
        )
        try:
            for line in process.stdout or ():
                found = re.search(r"http://[0-9.:]+", line)
                if found:
                    yield Server(found[0], psutil.Process(process.pid), time.perf_counter() - begun)
                    break
            else:
                raise RuntimeError(f"{' '.join(arguments)} ended before it listened")
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def host_facts() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, Python, commit."""
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": model or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }
