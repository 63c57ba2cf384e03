"""A part of this program as a child process that never outlives its parent.

Owns its start, its log file and its end. Never knows what the child does.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["ChildEnded", "ChildProcess"]

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02
_LINES_SHOWN: Final = 12
_URL = re.compile(r" at (http://\S+)")
_PR_SET_PDEATHSIG: Final = 1


class ChildEnded(Exception):
    """A child that did not start or did not last; the text says which, and what it said last."""


class ChildProcess:
    """`python -m serving ARGUMENTS`, from entering to leaving the context; its output goes to `log_path`.

    It is in a process group of its own, so that Ctrl-C in a terminal reaches only the parent, which then ends it in
    order. Should the parent be killed outright, Linux ends it too.
    """

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        self.name, self.log_path = name, log_path
        # -m looks in the working folder first, where something else may be called so, as this process did or did not.
        safe = [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]
        self._command = [sys.executable, *safe, "-m", "serving", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - this very program
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_end_with_parent(),  # noqa: PLW1509 - there is one thread here, and one system call there
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        """All it has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    async def url(self, stop: asyncio.Event) -> str | None:
        """The URL in its output, once it stands there; None when `stop` was set first. Raises ChildEnded."""
        give_up_at_s = time.monotonic() + START_TIMEOUT_S
        while not stop.is_set():
            self.check()
            found = _URL.search(self.log)
            if found:
                return found[1]
            if time.monotonic() > give_up_at_s:
                raise ChildEnded(f"{self.name} did not start within {START_TIMEOUT_S:.0f} s{self._last_lines()}")
            await asyncio.sleep(_POLL_S)
        return None

    def check(self) -> None:
        """Raise ChildEnded if it has ended."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise ChildEnded(f"{self.name} {how}{self._last_lines()}")

    def _last_lines(self) -> str:
        lines = self.log.strip().splitlines()[-_LINES_SHOWN:]
        return "; it said last:\n  " + "\n  ".join(lines) if lines else ", without a word"


def _end_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)  # loaded here: after the fork only the call itself is safe
    return lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
