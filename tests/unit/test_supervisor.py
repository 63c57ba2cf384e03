"""The process that keeps workers running: starts, restarts, signals, the end. Its workers are a small program."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from serving.workers.supervisor import Supervisor
from serving.workers.told import Told, told_by
from tests.conftest import ROOT, eventually

WORKER = """
import os, pathlib, signal, sys, time
from serving.workers.told import end_with_parent, told_by
end_with_parent(30.0)
folder, behaviour, index = pathlib.Path(sys.argv[1]), sys.argv[2], told_by(os.environ).index
note = lambda what: (folder / f"{what}-{index}-{os.getpid()}").touch()
def end(number, frame):
    note("asked")
    if behaviour != "deaf":
        print("stopping", flush=True)
        os._exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGHUP, lambda number, frame: note("again"))
if behaviour == "broken":
    sys.exit(3)
note("began")
print(f"pointsman serves auto at http://127.0.0.1:{index}", flush=True)
while True:
    time.sleep(60)
"""


class Kept:
    """A supervisor of two such workers, and what it said."""

    def __init__(self, folder: Path, behaviour: str = "good", patience_s: float = 20.0) -> None:
        self.folder, self.said = folder, []
        command = [sys.executable, "-c", WORKER, str(folder), behaviour]
        self.supervisor = Supervisor(
            2,
            lambda _: command,
            lambda index: os.environ | Told(index, 2, folder).as_env() | {"PYTHONPATH": str(ROOT)},
            all_ready=self.said.append,
            stopping=lambda: self.said.append("stopping"),
            patience_s=lambda: patience_s,
            first_pause_s=0.05,
        )
        self.task = asyncio.create_task(self.supervisor.run())

    @staticmethod
    def pids_in(folder: Path, what: str, index: int) -> list[int]:
        return [int(path.name.rpartition("-")[2]) for path in folder.glob(f"{what}-{index}-*")]

    def pids(self, what: str, index: int) -> list[int]:
        return self.pids_in(self.folder, what, index)

    async def ready(self) -> None:
        await eventually(lambda: self.said)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_says_once_that_all_are_ready_and_ends_with_them(tmp_path):
    kept = Kept(tmp_path)
    await kept.ready()
    (line,) = kept.said
    assert line.startswith("pointsman serves auto at http://127.0.0.1:")
    pids = [*kept.pids("began", 0), *kept.pids("began", 1)]
    assert len(pids) == 2
    os.kill(os.getpid(), signal.SIGTERM)
    assert await kept.task == 0
    assert kept.said[1:] == ["stopping"]
    assert [kept.pids("asked", index) for index in (0, 1)] == [[pid] for pid in pids]  # each was asked once
    assert not any(map(alive, pids))


async def test_it_ends_with_them_also_where_nobody_reads_what_it_says(tmp_path):
    kept = Kept(tmp_path)
    await kept.ready()
    kept.supervisor._told_stopping = lambda: os.write(-1, b"")
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await kept.task == 0
    assert [len(kept.pids("asked", index)) for index in (0, 1)] == [1, 1]


async def test_one_that_dies_starts_again(tmp_path):
    kept = Kept(tmp_path)
    await kept.ready()
    (first,) = kept.pids("began", 1)
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: len(kept.pids("began", 1)) == 2)
    assert len(kept.pids("began", 0)) == 1
    os.kill(os.getpid(), signal.SIGINT)
    assert await kept.task == 0
    assert len(kept.said) == 2  # that it is ready was said once


async def test_where_none_was_ever_ready_it_ends_with_the_code_of_the_first(tmp_path):
    kept = Kept(tmp_path, "broken")
    assert await kept.task == 3
    assert kept.said == []


async def test_who_does_not_end_in_time_is_killed(tmp_path):
    kept = Kept(tmp_path, "deaf", patience_s=0.2)
    await kept.ready()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await kept.task == 1
    assert not any(alive(pid) for index in (0, 1) for pid in kept.pids("began", index))


async def test_a_hang_up_comes_to_the_first_and_then_to_the_others(tmp_path):
    kept = Kept(tmp_path)
    await kept.ready()
    os.kill(os.getpid(), signal.SIGHUP)
    await eventually(lambda: kept.pids("again", 1))
    (one,), (other,) = (list(tmp_path.glob(f"again-{index}-*")) for index in (0, 1))
    assert one.stat().st_mtime_ns < other.stat().st_mtime_ns
    os.kill(os.getpid(), signal.SIGTERM)
    assert await kept.task == 0


async def test_no_hang_up_comes_to_those_that_are_asked_to_end(tmp_path):
    """One that ends listens to no signal any more: this one would kill it."""
    kept = Kept(tmp_path, "deaf", patience_s=1.5)
    await kept.ready()
    os.kill(os.getpid(), signal.SIGHUP)
    await eventually(lambda: kept.pids("again", 0))
    os.kill(os.getpid(), signal.SIGTERM)
    assert await kept.task == 1
    assert kept.pids("again", 1) == []


async def test_workers_end_when_the_supervisor_is_killed(tmp_path):
    """Nobody can ask them any more: they see it by themselves."""
    program = (
        "import asyncio, sys; from pathlib import Path; from tests.unit.test_supervisor import Kept\n"
        "async def main(): await Kept(Path(sys.argv[1])).task\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path), cwd=ROOT)
    began = lambda: [pid for index in (0, 1) for pid in Kept.pids_in(tmp_path, "began", index)]  # noqa: E731
    await eventually(lambda: len(began()) == 2)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not any(map(alive, began())))
    assert [len(Kept.pids_in(tmp_path, "asked", index)) for index in (0, 1)] == [1, 1]  # they ended in order


@pytest.mark.parametrize("told", [Told(3, 8, Path("/a b/ü")), None])
def test_what_a_worker_is_told_comes_back_from_its_environment(told):
    assert told_by({} if told is None else told.as_env()) == told
