"""Files of both stores that are damaged, empty, or of another version: told, or put right, and never built upon."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys

import duckdb
import pytest
from killed_service import post_all

PATH = "/v1/chat/completions"
CALLS = 60


def config(trial):
    return {
        "models": [trial.model("good")],
        "pools": [{"name": "auto", "models": ["good"]}],
        "store": {"snapshot_every_events": 50},
        "log": {"flush_interval_s": 0.2},
    }


@pytest.fixture(scope="module")
def sound(run_service, trial, tmp_path_factory):
    """A folder as a crash leaves it, with a WAL, and the decisions in it."""
    folder = tmp_path_factory.mktemp("sound")

    async def calls(url):
        import aiohttp

        made = []
        async with aiohttp.ClientSession() as http:
            for _ in range(CALLS):
                body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
                async with http.post(url + PATH, json=body) as response:
                    made.append((await response.json())["id"])
            await post_all(http, url, [{"decision_id": name, "quality": 0.5} for name in made])
            await asyncio.sleep(0.5)  # for the analytical log
        return made

    with run_service(config(trial), folder) as service:
        made = asyncio.run(calls(service.url))
        service.kill()
    return folder, made


@pytest.fixture
def copy(sound, tmp_path):
    shutil.copytree(sound[0], tmp_path / "copy")
    return tmp_path / "copy"


def truncate(path, share=0.5):
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))


def flip(path, share=0.5, count=64):
    """Turn some bytes in the middle."""
    with path.open("r+b") as file:
        at = int(path.stat().st_size * share)
        file.seek(at)
        turned = bytes(byte ^ 0xFF for byte in file.read(count))
        file.seek(at)
        file.write(turned)


def empty(path):
    path.write_bytes(b"")


def settled(folder):
    """The store with all of its WAL in the one file, as an orderly end leaves it."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "router.sqlite")) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.execute("PRAGMA journal_mode = DELETE")


async def start(folder):
    """(exit code, last line of what it complained of) of a service that cannot start."""
    command = [sys.executable, "-m", "serving", "serve", "-c", str(folder / "pointsman.yaml"), "--port", "0"]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--data-dir", str(folder / "data")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr.replace(str(folder), "DIR")


STORE = {
    "cut in half": truncate,
    "cut to a page": lambda path: truncate(path, 8192 / path.stat().st_size),
    "head turned": lambda path: flip(path, 0.0),
    "schema page turned": lambda path: flip(path, 100.5 / path.stat().st_size),
    "not a database": lambda path: path.write_bytes(b"hello" * 5_000),
}


async def test_the_operational_store_is_damaged(copy, case):
    """It starts on nothing it cannot read: exit code 1 and one line that says which file, and what to do."""
    settled(copy)
    path, sound, told = copy / "data" / "router.sqlite", (copy / "data" / "router.sqlite").read_bytes(), {}
    for name, damage in STORE.items():
        path.write_bytes(sound)
        damage(path)
        code, err = await start(copy)
        case.made += 1
        last = err.strip().splitlines()[-1]
        told[name] = (code, last)
        case.lost += code != 1 or "router.sqlite" not in last or "Traceback" in err
    case.answered = case.made - case.lost
    case.happened = f"{case.answered} of {case.made} refused, as {next(iter(told.values()))[1]!r}"
    assert case.lost == 0, told


async def test_bytes_of_the_store_are_turned_anywhere(copy, run_service, trial, case, patient):
    """Wherever 64 bytes are turned: refused in one line, or served with no error but of what is gone, never a 500."""
    settled(copy)
    path, sound = copy / "data" / "router.sqlite", (copy / "data" / "router.sqlite").read_bytes()
    refused = served = 0
    for share in (0.15, 0.35, 0.55, 0.75, 0.95):
        path.write_bytes(sound)
        flip(path, share)
        case.made += 1
        code, err = await _serves_or_says(copy, run_service, trial, patient)
        if code is None:
            served += 1
        else:
            refused += 1
            assert (code, "Traceback" in err) == (1, False), err
    case.answered = case.made
    case.happened = f"{refused} refused, {served} served"


async def _serves_or_says(copy, run_service, trial, patient):
    """(None, "") where it serves, and calls work; else what the start ended with."""
    try:
        with run_service(config(trial), copy) as service:
            body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
            async with patient.post(service.url + PATH, json=body) as response:
                assert response.status in (200, 503)
            service.kill()
            return None, ""
    except AssertionError:
        return await start(copy)


async def test_an_event_of_the_store_is_no_event(copy, run_service, trial, case):
    """An event that cannot be read, behind the last snapshot, stops the start: one line says which, and no more."""
    settled(copy)
    with contextlib.closing(sqlite3.connect(copy / "data" / "router.sqlite")) as store:
        store.execute("UPDATE events SET payload = x'ff' WHERE seq = (SELECT max(seq) FROM events)")
        store.commit()
    code, err = await start(copy)
    last = err.strip().splitlines()[-1]
    assert (code, "Traceback" in err, "router.sqlite" in last) == (1, False, True), err
    case.happened = repr(last)


async def test_the_wal_is_damaged(copy, run_service, trial, case, wait_until):
    """After a torn or turned WAL the store is as it was at some commit: a prefix of the events, without a gap."""
    kept = []
    data, whole = copy / "data", [(path, path.read_bytes()) for path in (copy / "data").iterdir()]
    for damage in (truncate, flip, empty):
        for path, content in whole:
            path.write_bytes(content)
        (data / "router.sqlite-shm").unlink(missing_ok=True)
        damage(data / "router.sqlite-wal")
        with run_service(config(trial), copy) as service:
            events = service.events()
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
            kept.append(len(events))
            await wait_until(lambda: "it was filled from another store" in service.log)
            service.kill()
        case.made += 1
    case.answered = case.made
    case.happened = f"of {3 * CALLS}+ events {kept} were left: what a torn file can give"
    assert "Traceback" not in service.log


async def test_the_operational_store_is_empty(copy, run_service, trial, case, wait_until, patient):  # noqa: PLR0917
    """A file of no bytes is a new store; the log of the old one stays as it is, also once the new one has more."""
    settled(copy)
    empty(copy / "data" / "router.sqlite")
    log = copy / "data" / "log.duckdb"
    before = log.read_bytes()
    with run_service(config(trial), copy) as service:
        assert service.events() == []
        await wait_until(lambda: "it was filled from another store" in service.log)
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        while len(service.events()) < 4 * CALLS:
            async with patient.post(service.url + PATH, json=body) as response:
                assert response.status == 200
                case.made += 1
        await wait_until(lambda: "is not the store's" in service.log)
        service.kill()
    case.answered = case.made
    assert log.read_bytes() == before
    case.happened = "starts as new; the log is kept, and told in the service's log"


async def test_stores_of_other_versions(  # noqa: PLR0917 - fixtures
    copy, run_service, trial, case, patient, wait_until
):
    """An older schema is brought up to date; of a newer one the store refuses to start, and the log is left alone."""
    settled(copy)
    path, log = copy / "data" / "router.sqlite", copy / "data" / "log.duckdb"
    with contextlib.closing(sqlite3.connect(path)) as store:
        store.execute("DROP INDEX IF EXISTS outcomes_by_time")  # as the first program made it
        store.execute("PRAGMA user_version = 0")
    with contextlib.closing(duckdb.connect(str(log))) as opened:
        opened.execute("ALTER TABLE decisions DROP COLUMN key_id; ALTER TABLE decisions DROP COLUMN session")
        opened.execute("ALTER TABLE decisions DROP COLUMN experiment; ALTER TABLE decisions DROP COLUMN origin")
        opened.execute("ALTER TABLE outcomes DROP COLUMN endpoint; ALTER TABLE outcomes DROP COLUMN cached_tokens")
        opened.execute("ALTER TABLE outcomes DROP COLUMN saved_usd; DROP TABLE changes")
        opened.execute("UPDATE schema_version SET version = 3")
    with run_service(config(trial), copy) as service:
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        async with patient.post(service.url + PATH, json=body) as response:
            assert response.status == 200
        assert service.stop() == 0
    with contextlib.closing(duckdb.connect(str(log), read_only=True)) as opened:
        assert opened.execute("SELECT count(endpoint) FROM outcomes").fetchone()[0] >= 1
    with contextlib.closing(duckdb.connect(str(log))) as opened:
        opened.execute("UPDATE schema_version SET version = 99")
    with run_service(config(trial), copy) as service:
        async with patient.post(service.url + PATH, json=body) as response:
            assert response.status == 200
        await wait_until(lambda: "version 99" in service.log)
        assert service.stop() == 0
    with contextlib.closing(sqlite3.connect(path)) as store:
        store.execute("PRAGMA user_version = 99")
    code, err = await start(copy)
    assert (code, "version is 99" in err or "version 99" in err, "Traceback" in err) == (1, True, False), err
    case.happened = "old ones served and brought up to date; new ones refused (store) or left alone (log)"


@pytest.mark.parametrize("damage", [truncate, flip, empty], ids=["truncated", "turned", "empty"])
async def test_the_analytical_log_is_damaged(copy, sound, run_service, trial, case, patient, damage):  # noqa: PLR0917
    """Calls go on; /admin says that the log cannot be read; once the file is moved away it is filled again, whole."""
    log = copy / "data" / "log.duckdb"
    (copy / "data" / "log.duckdb.wal").unlink(missing_ok=True)
    damage(log) if damage is not flip else flip(log, 0.0, 8192)
    with run_service(config(trial), copy) as service:
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        for _ in range(5):
            async with patient.post(service.url + PATH, json=body) as response:
                case.made += 1
                case.answered += response.status == 200
        async with patient.get(f"{service.url}/admin/matrix") as response:
            said = response.status
        log.unlink(missing_ok=True)
        (copy / "data" / "log.duckdb.wal").unlink(missing_ok=True)
        async with patient.get(f"{service.url}/readyz") as response:
            assert response.status == 200
        assert service.stop() == 0
    with run_service(config(trial), copy) as service:
        events = service.events()
        assert service.stop() == 0
        assert "Traceback" not in service.log
    with contextlib.closing(duckdb.connect(str(log), read_only=True)) as opened:
        filled = [seq for (seq,) in opened.execute("SELECT seq FROM decisions ORDER BY seq").fetchall()]
    assert filled == [event["seq"] for event in events if event["kind"] == "decision"]
    assert case.answered == case.made
    case.happened = f"all calls 200, /admin/matrix {said}; filled again with all {len(filled)} decisions"
    assert said in (200, 503)
