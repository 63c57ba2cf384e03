"""The demo: upstreams and the real service as child processes, callers in this one, and a screen to watch.

Owns the time line and the ending. What the service does is read from outside only: its answers, its /metrics and its
log.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
import orjson
from rich.console import Console
from rich.live import Live

from evaluation.child_process import ChildProcess
from evaluation.demo_pool import DemoPool
from evaluation.demo_tally import Episode, Event, Tally, event_from_log
from evaluation.demo_view import RECENT_S, Scene, event_line, live_view, progress_line, summary
from evaluation.traffic import Traffic
from evaluation.upstream_process import loop_factory

__all__ = ["LATENCY_FACTOR", "run"]

CALLS_PER_S: Final = 120.0
JUMP_AT: Final = 1 / 3
RECOVER_AT: Final = 0.6
CHANGE_RUN_AT: Final = 0.5
LATENCY_FACTOR: Final = 8.0
FRAME_S: Final = 0.25
METRICS_EVERY_S: Final = 0.5
LINE_EVERY_S: Final = 5.0
CONTROL_TIMEOUT_S: Final = 5.0
_STATE = re.compile(r'^pointsman_filter_state\{model="([^"]+)",pool="auto",state="([a-z]+)"\} 1\.0$', re.MULTILINE)


def run(
    pool: DemoPool, pool_arguments: Sequence[str], *, seconds: float, seed: int, console: Console, program: str
) -> None:
    """Run the demo of `pool` for `seconds`, or until SIGINT, SIGTERM or SIGHUP; prints the summary either way.

    `pool_arguments` are those of `pointsman upstreams` that serve the same pool; `program` is what a shell calls
    pointsman here. Raises ChildEnded when the upstreams or the service did not start or did not last.
    """
    with (
        tempfile.TemporaryDirectory(prefix="pointsman-demo-") as folder,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        began = runner.run(_run(pool, pool_arguments, Path(folder), seconds=seconds, seed=seed, console=console))
    if not began:
        console.print("stopped before there was anything to see")
        return
    console.print()
    for line in _to_go_on(pool, pool_arguments, program):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


async def _run(
    pool: DemoPool, pool_arguments: Sequence[str], folder: Path, *, seconds: float, seed: int, console: Console
) -> bool:
    """Whether it got as far as to have something to show."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    config = str(folder / "pointsman.yaml")
    serve_pool = ["upstreams", *pool_arguments, "--port", "0", "--seed", str(seed), "--write-config", config]
    serve = ["serve", "-c", config, "--port", "0", "--data-dir", str(folder / "data")]
    with contextlib.ExitStack() as children:
        upstreams = children.enter_context(ChildProcess("the upstreams", serve_pool, folder / "upstreams.log"))
        upstreams_url = await upstreams.url(stop)
        if upstreams_url is None:
            return False
        service = children.enter_context(ChildProcess("the service", serve, folder / "service.log"))
        service_url = await service.url(stop)
        if service_url is None:
            return False
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            places = _Places(session, upstreams, upstreams_url, service, service_url)
            demo = _Demo(pool, places, seconds=seconds, seed=seed, console=console)
            await demo.run(stop)
            demo.close()
    return True


@dataclass(frozen=True, slots=True)
class _Places:
    """Where everything is."""

    session: aiohttp.ClientSession
    upstreams: ChildProcess
    upstreams_url: str
    service: ChildProcess
    service_url: str

    async def control(self, **change: Any) -> None:
        """Change what is in force at the upstreams."""
        async with self.session.post(f"{self.upstreams_url}/control", data=orjson.dumps(change)) as response:
            response.raise_for_status()

    async def states(self) -> Mapping[str, str]:
        """Each model's state as the service has it."""
        async with self.session.get(f"{self.service_url}/metrics") as response:
            return dict(_STATE.findall(await response.text()))


class _Demo:
    """The time line of one run, and what has been seen of it."""

    def __init__(self, pool: DemoPool, places: _Places, *, seconds: float, seed: int, console: Console) -> None:
        self._pool, self._places, self._console = pool, places, console
        self._started_s, self._started_ts = time.monotonic(), time.time()
        self._tally = Tally(pool, self._started_s, run=pool.runs[0] if pool.runs else None)
        self._scene = Scene(pool, self._tally, {}, [], None, 0.0, seconds)
        self._events: list[Event] = []
        self._log_read = 0
        self._metrics_at_s = 0.0
        rng = np.random.default_rng(seed)
        self._traffic = Traffic(places.service_url, pool.sample, self._tally.add, rng=rng, rate=CALLS_PER_S)
        self._steps = sorted(self._plan(seconds), key=lambda step: step[0])

    async def run(self, stop: asyncio.Event) -> None:
        """Traffic, steps and frames until the time is up or `stop` is set."""
        traffic = asyncio.create_task(self._traffic.run(stop))
        try:
            with self._screen() as show:
                while not stop.is_set() and self._elapsed_s() < self._scene.seconds:
                    if traffic.done():
                        break  # with an error: it is raised below
                    await self._frame()
                    show()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), FRAME_S)
                self._scene.elapsed_s = min(self._elapsed_s(), self._scene.seconds)
                stop.set()
                await traffic
                await self._look()
                show()
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)

    def close(self) -> None:
        """Print the summary."""
        summary(self._scene, self._console)

    def _plan(self, seconds: float) -> Iterator[tuple[float, Callable[[], Any]]]:
        """What happens to the pool, and when."""
        if len(self._pool.runs) > 1:
            yield CHANGE_RUN_AT * seconds, self._change_run
        elif self._pool.p95_latency_s is not None:
            yield JUMP_AT * seconds, self._jump
            yield RECOVER_AT * seconds, self._recover

    async def _frame(self) -> None:
        self._places.upstreams.check()
        self._places.service.check()
        self._scene.elapsed_s = self._elapsed_s()
        while self._steps and self._steps[0][0] <= self._elapsed_s():
            await self._steps.pop(0)[1]()
        if self._elapsed_s() - self._metrics_at_s >= METRICS_EVERY_S:
            self._metrics_at_s = self._elapsed_s()
            await self._look()

    async def _look(self) -> None:
        """Read the service's metrics and what is new in its log."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # a service that has ended is noticed elsewhere
            self._scene.states = await self._places.states()
        lines = self._places.service.log[self._log_read :]
        complete = lines[: lines.rfind("\n") + 1]
        self._log_read += len(complete)
        for line in complete.splitlines():
            event = event_from_log(line, self._started_ts)
            if event is not None:
                self._note(event)

    async def _jump(self) -> None:
        recent = self._tally.rows(self._elapsed_s() - RECENT_S)
        model = self._pool.favourite or max(recent, key=lambda row: row.calls).name
        share = next(row.share for row in recent if row.name == model)
        await self._places.control(latency_multiplier={model: LATENCY_FACTOR})
        self._tally.factors = {model: LATENCY_FACTOR}
        self._scene.episode = Episode(model, LATENCY_FACTOR, self._elapsed_s())
        text = f"has {share:.0%} of the calls: latency × {LATENCY_FACTOR:g} from here on (simulated)"
        self._note(Event(self._elapsed_s(), model, text))

    async def _recover(self) -> None:
        episode = self._scene.episode
        if episode is None:
            return
        await self._places.control(latency_multiplier={episode.model: 1.0})
        self._tally.factors = {}
        episode.end_s = self._elapsed_s()
        self._note(Event(self._elapsed_s(), episode.model, "has its old latency again (simulated)"))

    async def _change_run(self) -> None:
        before, after = self._pool.runs[0], self._pool.runs[1]
        await self._places.control(run=after)
        self._tally.run = after
        self._note(
            Event(self._elapsed_s(), "", f"from here on the outcomes are those of run {after}, before: {before}")
        )

    def _note(self, event: Event) -> None:
        self._events.append(event)
        self._events.sort(key=lambda e: e.at_s)
        self._scene.events = self._events
        if not self._console.is_terminal:
            self._console.print(event_line(event), soft_wrap=True, highlight=False, markup=False)

    @contextlib.contextmanager
    def _screen(self) -> Iterator[Callable[[], None]]:
        """A function that shows the scene: a live table, or a line now and then where there is no terminal."""
        if self._console.is_terminal:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                yield lambda: live.update(live_view(self._scene, self._console.size), refresh=True)
            return
        last_s = 0.0

        def show() -> None:
            nonlocal last_s
            if self._scene.elapsed_s - last_s >= LINE_EVERY_S:
                last_s = self._scene.elapsed_s
                self._console.print(progress_line(self._scene), soft_wrap=True, highlight=False, markup=False)

        yield show

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s


def _to_go_on(pool: DemoPool, arguments: Sequence[str], program: str) -> Iterator[str]:
    """Commands for the same pool without the demo."""
    text, category = pool.sample(np.random.default_rng(1)) if pool.kind == "simulated" else ("Hello!", "")
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}).decode()
    header = f" -H 'x-pointsman-category: {category}'" if category else ""
    yield "The same pool to play with, in two terminals, and a call:"
    yield f"  {program} upstreams {shlex.join(arguments)} --port 8081 --write-config pointsman-demo.yaml"
    yield f"  {program} serve -c pointsman-demo.yaml"
    yield (
        "  curl -i http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json'"
        f"{header} -d {shlex.quote(body)}"
    )
