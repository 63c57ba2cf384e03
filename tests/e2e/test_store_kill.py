"""What the operational store acknowledged survives SIGKILL at any moment."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from serving.sqlite_store import SqliteStore

ROOT = Path(__file__).parents[2]
# Appends from several tasks at once and prints each id once its future has resolved; never ends by itself.
WRITER = """
import asyncio, random, sys
from pathlib import Path
from serving.sqlite_store import SqliteStore
from serving.store import Event

def group(name, chance):
    count = chance.choice([1, 1, 1, 2, 3, 100])
    ids = [f"{name}-{part}-of-{count}" for part in range(count)]
    return [Event("outcome", i, 1.0, i.encode() * chance.randrange(1, 50)) for i in ids]

async def write(store, name, chance):
    for number in range(10**9):
        first, second = group(f"{name}-{number}a", chance), group(f"{name}-{number}b", chance)
        store.append_nowait(first)
        await store.append(second)
        print("event", *(event.decision_id for event in first + second), flush=True)
        if chance.random() < 0.02:
            position = store.position
            await store.save_snapshot(store.position, b"snapshot" * 1000)
            print("snapshot", position, flush=True)

async def main(path, seed):
    store = SqliteStore(Path(path), commit_interval_s=0.0005)
    await asyncio.gather(*(write(store, f"{seed}-{t}", random.Random(f"{seed}{t}")) for t in range(8)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def run_and_kill(path: Path, seed: int, chance: random.Random) -> list[list[str]]:
    """The lines a writer printed before it was killed, after some of them or after some time."""
    command = [sys.executable, "-c", WRITER, str(path), str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        lines = [child.stdout.readline() for _ in range(chance.choice([0, 1, 50, 400, 1500]))]
        time.sleep(chance.uniform(0.0, 0.3) if not lines else chance.uniform(0.0, 0.003))
        child.kill()
        lines += child.stdout.readlines()
    return [line.split() for line in lines if line.endswith("\n")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
async def test_nothing_acknowledged_is_lost_and_seqs_have_no_gap(tmp_path):
    """Eight writers in a row die in mid-write; after each, every id one of them printed is there, whole, once."""
    path, chance, acknowledged, snapshot = tmp_path / "router.sqlite", random.Random(20240725), set(), 0
    for round_number in range(8):
        for kind, *values in run_and_kill(path, round_number, chance):
            if kind == "event":
                acknowledged.update(values)
            else:
                snapshot = max(snapshot, int(values[0]))
        store = SqliteStore(path)
        try:
            found = store.read(0, 10**6)
            assert [e.seq for e in found] == list(range(1, store.position + 1))
            kept = {e.decision_id: e.payload for e in found}
            assert len(kept) == len(found)
            assert acknowledged <= kept.keys()
            assert all(payload == name.encode() * (len(payload) // len(name)) for name, payload in kept.items())
            groups = Counter((name.rsplit("-", 3)[0], int(name.rsplit("-", 1)[1])) for name in kept)
            assert all(found == count for (_, count), found in groups.items())  # an append is there or not
            assert snapshot <= (store.latest_snapshot() or (0, b""))[0] <= store.position
        finally:
            await store.close()
    assert len(acknowledged) > 1000  # else this has tested little


def test_a_store_nobody_closed_does_not_keep_its_process_alive(tmp_path):
    program = (
        "import asyncio, sys; from pathlib import Path; from serving.sqlite_store import SqliteStore\n"
        "async def main():\n    SqliteStore(Path(sys.argv[1]))\n    raise SystemExit(7)\n"
        "asyncio.run(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "router.sqlite")], cwd=ROOT, timeout=30, check=False
    )
    assert ended.returncode == 7
