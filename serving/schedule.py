"""Runs the configured suites at their times: each run is `pointsman evaluate` in a process of its own.

Owns when a run is due and that its process ends: with its time, or with the service. Whatever goes wrong is logged and
counted, and never the service's problem. Never imports evaluation: what it asks, grades and posts is the process's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from serving.analytics import AnalyticalLog
from serving.benchmark_settings import BenchmarkSettings
from serving.interpreter import this_program
from serving.log_errors import LogUnavailable
from serving.log_figures import last_result_ts
from serving.metrics import Metrics

if TYPE_CHECKING:
    from serving.settings import Settings

__all__ = ["Schedule"]

_log = logging.getLogger("pointsman.schedule")
_HOUR_S = 3600.0
_LOOK_AGAIN_S = 60.0
_READ_TIMEOUT_S = 30.0
_LONGEST_LINE = 2_000
Status = Literal["ok", "failed", "timeout"]


class Schedule:
    """The suites of `entries`, run one at a time against the service at `url`.

    `folder` is where runs keep their state, `command` what `evaluate` is appended to (this program), `clock` tells
    unix time; a process asked to end has `grace_s` to do so. The admin key reaches the process by its environment,
    which other users cannot read, as they can its arguments.
    """

    def __init__(
        self,
        entries: Sequence[BenchmarkSettings],
        log: AnalyticalLog,
        metrics: Metrics,
        *,
        url: str,
        admin_key: str | None,
        folder: Path,
        command: Sequence[str] | None = None,
        clock: Callable[[], float] = time.time,
        grace_s: float = 5.0,
    ) -> None:
        self._entries, self._log, self._metrics = entries, log, metrics
        self._url, self._folder, self._command = url, folder, command or this_program()
        self._clock, self._grace_s = clock, grace_s
        self._env = {name: value for name, value in os.environ.items() if name != "POINTSMAN_ADMIN_KEY"}
        self._env |= {"PYTHONUNBUFFERED": "1"} | ({} if admin_key is None else {"POINTSMAN_ADMIN_KEY": admin_key})

    @classmethod
    def of(cls, settings: Settings, log: AnalyticalLog, metrics: Metrics, address: str) -> Self:
        """Of the settings; its processes reach a service that listens everywhere on this machine's own address."""
        host, _, port = address.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - it is left, not listened on
        key = None if settings.auth is None else settings.auth.admin_key
        secret = None if key is None else key.get_secret_value()
        url, folder = f"http://{host}:{port}", settings.server.data_dir
        return cls(settings.benchmarks, log, metrics, url=url, admin_key=secret, folder=folder)

    async def run(self) -> None:
        """Run what is due, until cancelled; a run under way is ended then."""
        look_at = dict.fromkeys(range(len(self._entries)), 0.0)
        while look_at:
            for i, entry in enumerate(self._entries):
                if self._clock() >= look_at[i]:
                    look_at[i] = await self._attend(entry)
            wait_s = min(look_at.values()) - self._clock()
            await asyncio.sleep(min(_LOOK_AGAIN_S, max(0.05, wait_s)))  # in steps: a clock may be set

    async def _attend(self, entry: BenchmarkSettings) -> float:
        """Run a suite if it is due; returns when to look at it again, in unix time."""
        every_s, status = entry.every_hours * _HOUR_S, "failed"
        try:
            last = await self._log.read(lambda log: last_result_ts(log, entry.name), _READ_TIMEOUT_S)
            if last is not None and last + every_s > self._clock():
                return last + every_s
            status = await self._run(entry)
        except LogUnavailable as error:
            _log.warning("suite %s waits: %s", entry.name, error)
            return self._clock() + min(every_s, _LOOK_AGAIN_S)
        except Exception:  # noqa: BLE001 - the task's boundary
            _log.exception("suite %s cannot be run", entry.name)
        self._metrics.benchmark_runs.labels(entry.name, status).inc()
        # A run that failed is tried again within the hour, unless it brought results.
        return self._clock() + (every_s if status == "ok" else min(every_s, _HOUR_S))

    async def _run(self, entry: BenchmarkSettings) -> Status:
        command = [*self._command, *self._arguments(entry)]
        _log.info("suite %s: run begins", entry.name)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._env,
            start_new_session=True,  # a terminal's Ctrl-C is for the service, which ends it
        )
        try:
            async with asyncio.timeout(entry.timeout_s):
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                async for line in _lines(process.stdout):
                    _log.info("suite %s: %s", entry.name, line)
                code = await process.wait()
        except TimeoutError:
            _log.error("suite %s: run ended after %g s, before it was through", entry.name, entry.timeout_s)
            return "timeout"
        finally:
            await _end(process, self._grace_s)
        if code == 0:
            _log.info("suite %s: run is through", entry.name)
            return "ok"
        _log.error("suite %s: run failed with exit code %d", entry.name, code)
        return "failed"

    def _arguments(self, entry: BenchmarkSettings) -> list[str]:
        now = self._clock()
        given = {
            "--url": self._url,
            "--suite": str(entry.suite),
            "--suite-name": entry.name,
            "--models": None if entry.models is None else ",".join(entry.models),
            "--pool": entry.pool,
            "--sample": entry.sample,
            "--seed": int(now) if entry.sample is not None else None,  # another sample each time
            "--concurrency": entry.concurrency,
            "--budget-usd": None if entry.budget_usd is None else f"{entry.budget_usd:.9g}",
            "--state": self._folder / f"evaluate-{entry.name}.jsonl",
        }
        options = (part for name, value in given.items() if value is not None for part in (name, str(value)))
        return ["evaluate", *options, "--restart"]  # what a run that was ended left over is another sample's


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines of a process's output, as they come; of a longer one its beginning."""
    rest = b""
    while chunk := await stream.read(1 << 14):
        *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            if text := line[:_LONGEST_LINE].decode(errors="replace").strip():
                yield text
        rest = rest[:_LONGEST_LINE]
    if text := rest.decode(errors="replace").strip():
        yield text


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """Ask a process to end, and end it where it does not."""
    for ask in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            ask()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
