"""What workers tell each other: breakers, draining, a configuration that was applied; and that their draws differ."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
import yaml

from serving.config_source import ConfigSource
from serving.failure_settings import BreakerSettings
from serving.generation import generators
from serving.metrics import Metrics
from serving.model_settings import ModelSettings
from serving.reload import Reloader
from serving.settings import Settings
from serving.traffic.drain import Drain, Draining
from serving.upstream import Upstreams
from serving.workers.news import BREAKER, BreakerNews
from tests.conftest import eventually
from tests.unit.small_settings import changed, good


class Log:
    """What logs change rows; all of them are durable at once."""

    def __init__(self) -> None:
        self.rows = []

    def change(self, rows):
        self.rows += rows
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


class Worker:
    """The endpoints of one; `others` hear what it tells, as through a store."""

    def __init__(self) -> None:
        self.others, self.now, self.said = [], 0.0, []
        self.news = BreakerNews(self._publish, clock=lambda: self.now)
        settings = BreakerSettings(min_calls=2, open_s=10.0, max_open_s=15.0)
        model = ModelSettings(name="a", endpoint="https://a.test/v1", breaker=settings)
        self.upstreams = self.news.upstreams = Upstreams([model], 1 << 20, moved=self.news.moved)
        self.breaker = self.upstreams["a"].endpoints[0].breaker

    def _publish(self, topic, message):
        assert topic == BREAKER
        self.said.append(message)
        for other in self.others:
            other.news.heard(message)

    def call(self, *, failed):
        self.breaker.end(self.now, failed, probe=self.breaker.begin())


@pytest.fixture
async def workers():
    one, other = Worker(), Worker()
    one.others, other.others = [other], [one]
    other.now = 1_000.0  # monotonic clocks have nothing in common
    yield one, other
    for worker in (one, other):
        await worker.upstreams.close()


def test_a_breaker_that_opens_does_so_everywhere_and_so_does_one_that_closes(workers):
    one, other = workers
    for _ in range(2):
        one.call(failed=True)
    assert (one.breaker.wait_s(0.0), other.breaker.wait_s(1_000.0)) == (10.0, 10.0)
    assert (len(one.said), len(other.said)) == (1, 0)  # no echo
    one.now, other.now = 10.0, 1_010.0
    assert (one.breaker.state(10.0), other.breaker.state(1_010.0)) == ("half_open", "half_open")
    other.call(failed=True)  # its probe: 20 s would be next, 15 is the most
    assert (one.breaker.wait_s(10.0), other.breaker.wait_s(1_010.0)) == (15.0, 15.0)
    one.now, other.now = 25.0, 1_025.0
    one.call(failed=False)
    assert (one.breaker.state(25.0), other.breaker.state(1_025.0)) == ("closed", "closed")
    assert (len(one.said), len(other.said)) == (2, 1)
    one.call(failed=False)
    assert len(one.said) == 2  # it was closed before


def test_a_probe_that_succeeds_after_another_workers_tells_nothing(workers):
    one, other = workers
    for _ in range(2):
        one.call(failed=True)
    one.now, other.now = 10.0, 1_010.0
    probe = one.breaker.begin()
    other.call(failed=False)
    one.breaker.end(one.now, failed=False, probe=probe)
    assert (one.breaker.state(10.0), len(one.said)) == ("closed", 1)


@pytest.mark.parametrize(
    "message",
    [
        b"nothing",
        b'{"model": "a", "endpoint": "1", "open_s": -1, "opened": 1}',
        b'{"model": "b", "endpoint": "1", "open_s": 1, "opened": 1}',
        b'{"model": "a", "endpoint": "2", "open_s": 1, "opened": 1}',
    ],
)
def test_what_is_no_news_of_an_endpoint_here_changes_nothing(workers, message):
    workers[0].news.heard(message)
    assert workers[0].breaker.state(0.0) == "closed"


async def test_draining_is_done_as_another_process_says():
    log = Log()
    one, other = Drain(log, lambda: 0), Drain(Log(), lambda: 2)
    await one.begin("ada", 5.0)
    other.heard(log.rows[-1])
    assert other.status() == {"draining": True, "since": 5.0, "under_way": 2}
    with pytest.raises(Draining):
        other.check()
    await one.end("ada", 6.0)
    other.heard(log.rows[-1])
    other.check()


def test_the_first_worker_draws_as_a_process_alone_and_others_differ():
    settings = Settings.parse(changed("pools[0].policy", {"seed": 7}))
    drawn = [generators(settings, None, worker)["auto"].random(3).tolist() for worker in (0, 1, 2)]
    assert drawn[0] == np.random.default_rng(7).random(3).tolist()
    assert drawn[1] == generators(settings, None, 1)["auto"].random(3).tolist()
    assert len({tuple(draws) for draws in drawn}) == 3


class Reloading:
    """A worker's reloader, running over a file."""

    def __init__(self, path):
        source = ConfigSource(path, {}, {})
        settings, digest = source.read()
        self.log, self.applied, self.told, self.metrics = Log(), [], [], Metrics()
        self.asked = asyncio.Event()
        self.reloader = Reloader(source, settings, digest, self._apply, self.log, self.metrics, self.asked)
        self.reloader.tell = self.told.append

    async def _apply(self, settings):
        self.applied.append(settings)

    @contextlib.asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.reloader.run())
        yield self
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_configuration_that_one_accepted_is_applied_by_the_others(tmp_path):
    """It is logged once, and told once; who has it already does nothing."""
    path = tmp_path / "pointsman.yaml"
    path.write_text(yaml.safe_dump(good()))
    async with Reloading(path).running() as one, Reloading(path).running() as other:
        path.write_text(yaml.safe_dump(changed("pools[0].policy", {"half_life_requests": 77})))
        answer = await one.reloader.reload("request", "ada")
        assert one.told == [answer["after"]]
        other.reloader.heard(answer["after"])
        one.reloader.heard(answer["after"])
        await eventually(lambda: other.applied)
        assert other.applied[0].pools[0].policy.half_life_requests == 77
        await other.reloader.reload("request", "ada")  # after the one under way: it is unchanged by now
        assert (len(one.applied), len(other.applied), other.told) == (1, 1, [])
        assert ([row["what"] for row in one.log.rows], other.log.rows) == (["reloaded"], [])


async def test_a_configuration_that_one_goes_back_to_is_applied_by_the_others_again(tmp_path):
    """Whoever was asked for what came in between."""
    path = tmp_path / "pointsman.yaml"
    path.write_text(yaml.safe_dump(good()))
    async with Reloading(path).running() as one, Reloading(path).running() as other:
        one.reloader.tell, other.reloader.tell = other.reloader.heard, one.reloader.heard
        for asked, half_life, applied in ((one, 77, 1), (other, 88, 2), (one, 77, 3)):
            path.write_text(yaml.safe_dump(changed("pools[0].policy", {"half_life_requests": half_life})))
            await asked.reloader.reload("request", "ada")
            await eventually(lambda applied=applied: len(one.applied) == len(other.applied) == applied)
        assert one.reloader.digest == other.reloader.digest


async def test_a_worker_that_was_starting_when_the_others_reloaded_does_so_too(tmp_path):
    path = tmp_path / "pointsman.yaml"
    path.write_text(yaml.safe_dump(good()))
    starting = Reloading(path)
    path.write_text(yaml.safe_dump(changed("pools[0].policy", {"half_life_requests": 77})))
    same = Reloading(path)
    async with same.running(), starting.running():
        same.reloader.catch_up()
        starting.reloader.catch_up()
        await eventually(lambda: starting.applied)
        assert (starting.told, starting.log.rows, same.applied, same.log.rows) == ([], [], [], [])


async def test_a_configuration_that_is_refused_here_is_said_to_be(tmp_path):
    path = tmp_path / "pointsman.yaml"
    path.write_text(yaml.safe_dump(good()))
    async with Reloading(path).running() as worker:
        path.write_text("models: []")
        worker.reloader.heard("another digest")
        await eventually(lambda: worker.log.rows)
        assert [(row["what"], row["reason"]) for row in worker.log.rows] == [("reload_refused", "another worker")]
        assert (worker.applied, worker.told) == ([], [])
