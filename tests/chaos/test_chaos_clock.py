"""The wall clock jumps both ways while the service runs (by libfaketime; the monotonic clock stays right).

That is what happens when a machine's time is set. What a jump of the monotonic clock would do is not tried: Linux never
lets it.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import duckdb
import pytest
from killed_service import assert_recorded_once, assert_same_learning, folded, post_all, snapshot_of
from steady_load import steady_load

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
BODIES = [{"model": "auto", "messages": [{"role": "user", "content": "hello"}]}]
JUMPS = ("+0", "+3600", "-3600", "+2592000", "-86400", "+0")  # seconds off the right time, one after the other


def config(trial):
    return {
        "server": {"feedback_horizon_s": 90 * 86_400},
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
        "budgets": [{"name": "day", "scope": "all", "usd": 1e6, "per": "day"}],
        "limits": [{"scope": "all", "requests_per_minute": 1_000_000}],
        "log": {"flush_interval_s": 0.3},
    }


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Sets how far the wall clock of what is started from now on is off, also while it runs."""
    if LIBRARY is None:
        pytest.skip("libfaketime is in Debian's package libfaketime")
    path = tmp_path / "clock"
    for name, value in {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }.items():
        monkeypatch.setitem(os.environ, name, value)

    def clock(offset):
        path.with_suffix(".new").write_text(offset)
        path.with_suffix(".new").replace(path)

    clock("+0")
    return clock


async def test_the_clock_jumps_both_ways(run_service, trial, clock, case, patient, tmp_path):  # noqa: PLR0917 - fixtures
    """An hour, a month, and back: every call is answered, all feedback taken, all of it once in both stores."""
    decisions = []
    with run_service(config(trial), tmp_path / "service") as service:
        for jump in JUMPS:
            clock(jump)
            load = await steady_load(service.url, 1.5, {}, per_second=30, bodies=BODIES)
            case.saw(load)
            assert (load.lost, set(load.statuses)) == ({}, {200}), (jump, load.said)
            decisions = [event["decision_id"] for event in service.events("decision")]
            items = [{"decision_id": name, "quality": 0.5} for name in decisions]
            assert set(await post_all(patient, service.url, items)) <= {"recorded", "duplicate"}
            async with patient.get(f"{service.url}/readyz") as response:
                assert response.status == 200
        service.kill()
    with run_service(config(trial), tmp_path / "service") as service:
        async with patient.get(f"{service.url}/admin/budgets") as response:
            assert response.status == 200
        assert service.stop() == 0
    events = service.events()
    assert_recorded_once(events, decisions)
    _, learned = snapshot_of(service.data_dir)
    assert_same_learning(learned["auto"], folded(config(trial), events)["auto"])
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        copied = [seq for (seq,) in log.execute("SELECT seq FROM decisions ORDER BY seq").fetchall()]
    assert copied == [event["seq"] for event in events if event["kind"] == "decision"]
    times = [event["ts"] for event in events]
    spread_days, back = (max(times) - min(times)) / 86_400, sum(b < a for a, b in pairwise(times))
    assert spread_days > 29
    case.happened = f"all calls 200; times in the log spread over {spread_days:.0f} days and go back {back} times"
