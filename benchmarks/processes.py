"""Servers under measurement as child processes: started, found ready, accounted, ended by their own id."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Others", "Server", "free_port", "host_facts", "listening", "started"]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its base URL, its process, and how long it took until it listened."""

    url: str
    process: psutil.Process
    startup_s: float

    def cpu_s(self) -> float:
        """CPU seconds used so far, user and system: the process, its descendants, and those of them that have ended."""
        spent = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                spent += sum(process.cpu_times()[:4])  # its own two, and those of children it has waited for
        return spent

    def rss_mb(self) -> float:
        """Resident memory in MB (10⁶ bytes), summed over the processes: pages that they share count once for each."""
        held = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss / 1e6
        return held

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


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
        stack.callback(_end, process)
        for line in process.stdout or ():
            found = re.search(r"http://[0-9.:]+", line)
            if found:
                yield Server(found[0], psutil.Process(process.pid), time.perf_counter() - begun)
                break
        else:
            raise RuntimeError(f"{' '.join(arguments)} ended before it listened")


@contextlib.contextmanager
def listening(
    command: Sequence[str], url: str, *, ready: str, log: Path, environment: Mapping[str, str], longest_s: float = 180.0
) -> Iterator[Server]:
    """Any command as a process in the log's folder, once GET `ready` of `url` answers 200; ended on leaving.

    `environment` is added to this process's own, less its proxies: everything here is on loopback. Raises
    RuntimeError if it ends or takes longer than that.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("w"))
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=inherited | dict(environment), cwd=log.parent
        )
        stack.callback(_end, process)
        while not _answers(url + ready):
            if process.poll() is not None:
                raise RuntimeError(f"{Path(command[0]).name} ended with {process.returncode} before it listened")
            if time.perf_counter() - begun > longest_s:
                raise RuntimeError(f"{Path(command[0]).name} did not listen within {longest_s:.0f} s")
            time.sleep(0.05)
        yield Server(url, psutil.Process(process.pid), time.perf_counter() - begun)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end(process: subprocess.Popen[Any]) -> None:
    """The process and whatever it has left behind."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()


def free_port() -> int:
    """A port of loopback that nobody listens on just now, for servers that must be told one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Others:
    """What the rest of the machine did meanwhile, in cores: all that was busy but for this process and its children."""

    def __init__(self) -> None:
        self._began, self._busy_s, self._own_s = time.perf_counter(), _busy_s(), _own_s()

    def cores(self) -> float:
        """On average, since this was made."""
        used_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return round(max(0.0, used_s) / (time.perf_counter() - self._began), 2)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _own_s() -> float:
    return Server("", psutil.Process(), 0.0).cpu_s()


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
