"""The process that starts the workers, starts those again that die, and ends with all of them.

It serves nothing, opens no store and learns nothing: what a worker is, its command says. That one is ready is the first
line it prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Supervisor"]

_log = logging.getLogger("pointsman.workers")
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0  # also how long one must have lived for the next pause to be short again
_HANG_UP_S: Final = 1.0  # between the first worker's reload and the others': they may hear of it from that one
_LINE_BYTES: Final = 65_536
_ASKED_TO_END: Final = (0, -signal.SIGTERM, -signal.SIGINT)  # the signals, where it had only begun to start


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    line: str | None = None  # the first that it printed: it is ready


class Supervisor:
    """Of `count` workers, each the process `command(index)` with the environment `env(index)`.

    `all_ready` is given the last one's line when all have said theirs, once; `stopping` is called when the first
    signal came. `patience_s` says, when that is so, how long they may take before they are killed.
    """

    def __init__(
        self,
        count: int,
        command: Callable[[int], Sequence[str]],
        env: Callable[[int], Mapping[str, str]],
        *,
        all_ready: Callable[[str], None],
        stopping: Callable[[], None],
        patience_s: Callable[[], float],
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self._count, self._command, self._env = count, command, env
        self._all_ready, self._told_stopping, self._patience_s = all_ready, stopping, patience_s
        self._first_pause_s = first_pause_s
        self._running: dict[int, _Running] = {}
        self._one_ready, self._asked = asyncio.Event(), asyncio.Event()
        self._announced = False
        self._code = 0
        self._lifeline = -1  # what all workers have as their standard input: it closes with this process
        self._hanging_up: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until a signal ends it, or no worker was ever ready; the exit code."""
        with self._signals():
            keepers = [asyncio.create_task(self._keep(0))]
            try:
                # One alone first: it makes the data folder and what lies there, and says once what is wrong.
                await self._until(self._one_ready, self._asked)
                if not self._asked.is_set():
                    keepers += [asyncio.create_task(self._keep(index)) for index in range(1, self._count)]
                await self._asked.wait()
                _, late = await asyncio.wait(keepers, timeout=self._patience_s())
                if late:
                    _log.error("killing %d workers that do not end", len(self._running))
                    self._code = self._code or 1
            finally:
                for running in self._running.values():
                    running.process.kill()
                await asyncio.wait(keepers)
        return self._code

    async def _keep(self, index: int) -> None:
        """Have that worker run, again and again, until all are asked to end."""
        pause_s = self._first_pause_s
        while not self._asked.is_set():
            began = time.monotonic()
            try:
                code = await self._run_once(index)
            except OSError as error:
                _log.error("worker %d cannot be started: %s", index, error)
                code = 1
            if self._asked.is_set():
                if code not in _ASKED_TO_END:
                    self._code = self._code or abs(code)
                return
            if not self._one_ready.is_set():
                self._code = abs(code) or 1
                self._asked.set()
                return
            if time.monotonic() - began >= _LONGEST_PAUSE_S:
                pause_s = self._first_pause_s
            _log.error("worker %d ended with code %d; it starts again in %g s", index, code, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._asked.wait()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run_once(self, index: int) -> int:
        """Start it and wait for its end; its exit code, or the signal that ended it, negative."""
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - this program itself; who starts it serves nobody
                self._command(index),
                stdin=self._lifeline,
                stdout=writer,
                env=dict(self._env(index)),
                process_group=0,  # Ctrl-C at a terminal comes to this process, and goes on once
            )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        running = self._running[index] = _Running(process)
        loop, said = asyncio.get_running_loop(), bytearray()
        os.set_blocking(reader, False)
        loop.add_reader(reader, self._hear, running, reader, said)
        try:
            self._look()  # it may have ended before anybody waited
            await running.ended.wait()
        finally:
            loop.remove_reader(reader)
            os.close(reader)
            del self._running[index]
        return int(process.returncode)

    def _hear(self, running: _Running, reader: int, said: bytearray) -> None:
        """Take what a worker prints: its first line says that it is ready; the rest is of no interest."""
        try:
            part = os.read(reader, _LINE_BYTES)
        except BlockingIOError:
            return
        if not part:
            asyncio.get_running_loop().remove_reader(reader)
        if running.line is not None or len(said) > _LINE_BYTES:
            return
        said += part
        line, ended, _ = said.partition(b"\n")
        if not ended:
            return
        running.line = line.decode(errors="replace")
        self._one_ready.set()
        ready = sum(other.line is not None for other in self._running.values())
        if ready == self._count and not self._announced:
            self._announced = True
            self._all_ready(running.line)

    def _look(self) -> None:
        """See which workers have ended."""
        for running in self._running.values():
            if running.process.poll() is not None:
                running.ended.set()

    def _ask(self, number: signal.Signals) -> None:
        """End; asked again, wait for nobody."""
        first = not self._asked.is_set()
        self._asked.set()
        for running in self._running.values():
            running.process.send_signal(number)
        if first:  # last: nobody may be reading what is said
            self._told_stopping()

    def _hang_up(self) -> None:
        task = asyncio.create_task(self._hung_up())
        self._hanging_up.add(task)
        task.add_done_callback(self._hanging_up.discard)

    async def _hung_up(self) -> None:
        """Pass SIGHUP on to the first worker, and after a while to the others."""
        first = min(self._running, default=0)
        self._signal([first], signal.SIGHUP)
        await asyncio.sleep(_HANG_UP_S)
        self._signal([index for index in self._running if index != first], signal.SIGHUP)

    def _signal(self, indices: Sequence[int], number: signal.Signals) -> None:
        """To those that are ready: to one that only starts, or ends already, SIGHUP would be the end."""
        for index in () if self._asked.is_set() else indices:
            running = self._running.get(index)
            if running is not None and running.line is not None:
                running.process.send_signal(number)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals are taken here, and the workers' standard input is open."""
        loop = asyncio.get_running_loop()
        self._lifeline, other_end = os.pipe()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ask, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGCHLD, self._look)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                loop.remove_signal_handler(number)
            os.close(self._lifeline)
            os.close(other_end)

    @staticmethod
    async def _until(*events: asyncio.Event) -> None:
        """Return once one of them is set."""
        tasks = [asyncio.create_task(event.wait()) for event in events]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
