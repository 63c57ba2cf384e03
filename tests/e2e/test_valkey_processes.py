"""Two processes append to one log at once: each folds the same order, in which nothing is missing and nothing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Appends from several tasks, follows, and prints the hash of what it was handed over, with how many seqs that were.
MEMBER = """
import asyncio, hashlib, sys
from serving.store import Event
from serving.valkey_store import ValkeyStore

async def main(url, name, own, total):
    store = ValkeyStore(url, name=name)
    seen, done = [], asyncio.Event()

    def fold(payload):
        seen.append(payload)
        if len(seen) == total:
            done.set()

    def foreign(event):
        assert event.seq == len(seen) + 1
        fold(event.payload)

    following = asyncio.create_task(store.follow(0, foreign))

    async def write(task):
        for step in range(own // 20):
            payload = f"{store.writer}-{task}-{step}".encode()
            await store.append([Event("outcome", f"d{step}", 1.0, payload)], lambda: fold(payload))
            assert payload in seen[-200:]

    await asyncio.gather(*(write(task) for task in range(20)))
    async with asyncio.timeout(60):
        await done.wait()
    await store.close()
    await following
    print(hashlib.sha256(b"\\n".join(seen)).hexdigest(), len(set(seen)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def test_two_processes_under_load_fold_one_order(valkey_server, tmp_path):
    own, total = 2_000, 4_000
    command = [sys.executable, "-c", MEMBER, valkey_server.url, tmp_path.name, str(own), str(total)]
    members = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [member.communicate(timeout=120)[0].split() for member in members]
    assert [member.returncode for member in members] == [0, 0]
    assert answers[0] == answers[1]
    assert answers[0][1] == str(total)
