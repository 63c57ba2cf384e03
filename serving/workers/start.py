"""How `pointsman serve --workers N` becomes N processes: what is checked first, the port they share, what each is told.

Knows of the service only that it is this program's command `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serving.config_file import ConfigError, Problem
from serving.interpreter import this_program
from serving.workers.supervisor import Supervisor
from serving.workers.told import Told, end_with_parent, told_by

if TYPE_CHECKING:
    from serving.config_source import ConfigSource
    from serving.settings import Settings

__all__ = ["check_shared", "echo_of", "supervise"]

_LAST_WORDS_S: Final = 10.0  # beyond drain and grace: cut calls' outcomes, the last snapshot, the log
_LONGEST_SOCKET: Final = 100  # bytes of a socket's path; the kernel takes 107, others 103
Echo = Callable[[str], None]


def check_shared(settings: Settings, source: ConfigSource) -> None:
    """Raises ConfigError where several processes would have no store in common."""
    if settings.store.url is None:
        hint = "such as valkey://127.0.0.1:6379/0, or serve with one worker"
        problem = Problem("store.url", "several workers share their store: set store.url", hint, source.line("store"))
        raise ConfigError((problem,))


def echo_of(settings: Settings, echo: Echo) -> Echo:
    """What a process that serves says things by; a worker ends with its parent, and minds no longer being heard."""
    if told_by(os.environ) is None:
        return echo
    end_with_parent(_patience_s(settings))

    def say(text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            echo(text)

    return say


def supervise(count: int, arguments: Sequence[str], settings: Settings, source: ConfigSource, echo: Echo) -> int:
    """Have `count` workers run with these arguments of this program until a signal ends them; the exit code."""
    with _port(settings) as port, _folder(settings.server.data_dir, count) as folder:
        given = [*this_program(), *arguments, "--workers", "1"]
        command = given if settings.server.port else [*given, "--port", str(port)]

        def all_ready(line: str) -> None:
            pools, _, address = line.rpartition(" at ")
            echo(f"{pools} by {count} workers at {address}")

        supervisor = Supervisor(
            count,
            lambda _: command,
            lambda index: os.environ | Told(index, count, folder).as_env(),
            all_ready=all_ready,
            stopping=lambda: echo("stopping"),
            patience_s=lambda: _patience_s(_of_now(source, settings)),
        )
        return asyncio.run(supervisor.run())


@contextlib.contextmanager
def _port(settings: Settings) -> Iterator[int]:
    """The port that all of them listen on; held without listening, so that it stays theirs. Raises OSError."""
    server = settings.server
    found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    if server.port:  # with SO_REUSEPORT alone, one more service would share the port of one that runs
        with socket.socket(family, kind, protocol) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
    with socket.socket(family, kind, protocol) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        yield int(held.getsockname()[1])


@contextlib.contextmanager
def _folder(data_dir: Path, count: int) -> Iterator[Path]:
    """Where the workers' sockets are: in the data folder, unless its path is too long for one."""
    told = Told(0, count, data_dir.absolute())
    if len(os.fsencode(told.socket(count - 1))) <= _LONGEST_SOCKET:
        yield told.folder
        return
    folder = Path(tempfile.mkdtemp(prefix="pointsman-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _of_now(source: ConfigSource, settings: Settings) -> Settings:
    """The settings as a reload may have changed them."""
    try:
        return source.read()[0]
    except ConfigError:
        return settings


def _patience_s(settings: Settings) -> float:
    return settings.server.drain_s + settings.server.shutdown_grace_s + _LAST_WORDS_S
