"""`/metrics` of several workers: each one's own, what is shown once, who is missing. Their sockets are real."""

from __future__ import annotations

import contextlib
import stat
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Metrics
from serving.workers.merged_metrics import ONE_FOR_ALL, AllMetrics
from serving.workers.siblings import Siblings
from serving.workers.told import Told
from tests.conftest import ROOT


class Worker:
    """The metrics of one, and its socket."""

    def __init__(self, folder, index, count=2):
        self.metrics = Metrics()
        shown = AllMetrics(self.metrics, index)
        self.siblings = Siblings(Told(index, count, folder), shown.own)
        self.metrics.of_all = lambda: shown.of_all(self.siblings)


@pytest.fixture
async def workers(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        workers = [Worker(tmp_path, index) for index in (0, 1)]
        for worker in workers:
            await stack.enter_async_context(worker.siblings.listening())
        yield workers
    assert not list(tmp_path.iterdir())  # the sockets went with their workers


def samples(text):
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families), "a family stands in two places"
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


async def test_whichever_is_asked_shows_what_each_has_counted(workers):
    for times, worker in zip((3, 4), workers, strict=True):
        for _ in range(times):
            worker.metrics.feedback.labels('rec"or\\ded').inc()
            worker.metrics.overhead.observe(0.001)
    for worker in workers:
        shown = samples(await worker.metrics.exposition())
        status = ("status", 'rec"or\\ded')
        assert shown["pointsman_feedback_total", status, ("worker", "0")] == 3
        assert shown["pointsman_feedback_total", status, ("worker", "1")] == 4
        assert shown["pointsman_overhead_seconds_count", ("worker", "1")] == 4
        assert shown["process_open_fds", ("worker", "0")] > 0
        assert [shown["pointsman_worker_up", ("worker", index)] for index in "01"] == [1, 1]


async def test_what_all_have_in_common_is_shown_once(workers):
    for worker in workers:
        worker.metrics.state.pools = {
            "auto": SimpleNamespace(names=["a"], filters=SimpleNamespace(states=["admitted"]), pacer=None)
        }
    shown = [key for key in samples(await workers[1].metrics.exposition()) if key[0] == "pointsman_filter_state"]
    assert len(shown) == 4
    assert not any("worker" in dict(key[1:]) for key in shown)


async def test_one_that_is_away_is_said_to_be(tmp_path):
    worker = Worker(tmp_path, 1, count=3)
    async with worker.siblings.listening():
        shown = samples(await worker.metrics.exposition())
    assert [shown["pointsman_worker_up", ("worker", index)] for index in "012"] == [0, 1, 0]


async def test_the_socket_is_for_its_user_alone_and_takes_the_place_of_an_old_one(tmp_path):
    path = tmp_path / "worker-0.sock"
    path.write_text("left by a worker that was killed")
    async with Worker(tmp_path, 0).siblings.listening():
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_one_process_shows_its_metrics_without_the_label_of_a_worker():
    shown = samples(await Metrics().exposition())
    assert shown["pointsman_worker_up", ("worker", "0")] == 1
    assert [key for key in shown if "worker" in dict(key[1:])] == [("pointsman_worker_up", ("worker", "0"))]


def test_the_readme_names_what_is_shown_once():
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in ONE_FOR_ALL)
