"""The benchmark of many workers: its arithmetic by hand, and one short run of real processes."""

from __future__ import annotations

import json

import pytest

from benchmarks.workers import parsed, run, table
from benchmarks.workers_figures import Round, figures, shares

# A call costs 1,000 µs where it is taken, 200 in each other worker, and 100 more in worker 0, whoever takes it.
ROUNDS = [
    Round(2.0, [300, 100], [0.3 + 0.02 + 0.04, 0.1 + 0.06], parent_s=0.004, valkey_s=0.08),
    Round(2.0, [100, 300], [0.1 + 0.06 + 0.04, 0.3 + 0.02], parent_s=0.004, valkey_s=0.08),
    Round(4.0, [200, 200], [0.2 + 0.04 + 0.04, 0.2 + 0.04], parent_s=0.004, valkey_s=0.08),
]


def test_what_a_call_costs_each_worker_is_found_from_their_unlike_parts():
    assert shares(ROUNDS) == pytest.approx({"own": 1_000, "of_others": 200, "on_top_in_worker_0": 100}, rel=1e-6)


def test_of_one_worker_all_is_its_own():
    alone = [Round(1.0, [100], [0.2]), Round(1.0, [100], [0.2])]
    assert shares(alone) == {"own": 2_000, "of_others": 0, "on_top_in_worker_0": 0}


def test_what_noise_has_below_zero_is_zero():
    """Worker 0 is cheaper than 1: it has nothing on top."""
    found = shares([Round(1.0, [100, 100], [0.1, 0.2]), Round(1.0, [100, 50], [0.1, 0.2])])
    assert found["on_top_in_worker_0"] == 0
    assert min(found.values()) == 0


def test_figures_and_projection_by_hand():
    """Even: (1,000 + 200) / 2 + 100 = 700 µs a call of all in worker 0, which is full at 1,429 calls a second.

    All: (360 + 160 + 4) ms of 400 calls. valkey-server, with 200 µs, is full at 5,000.
    """
    found = figures(ROUNDS, one_process_us=1_050.0)
    assert found["calls_per_s"] == 200.0
    assert found["cpu_us_per_call"] == 1_310.0
    assert found["busiest_us_per_own_call"] == pytest.approx(1_200.0)
    assert found["parent_us_per_call"] == 10.0
    assert found["share_of_others"] == pytest.approx(200 / 1_200, abs=1e-3)
    full = found["projection"]["full_at_calls_per_s"]
    assert (full["even"], full["valkey"]) == (1_428.6, 5_000.0)
    assert full["busiest"] == 1_250.0, "the median worst: 360, 320 and 280 ms of 400"
    assert found["projection"]["over_one_process"] == 1.5
    assert found["cpu_over_one_process"] == 1.25


def test_counts_of_the_command_line():
    assert parsed([]).workers == [1, 2, 4]
    assert parsed(["--workers", "2,2,3"]).workers == [2, 3]
    with pytest.raises(SystemExit):
        parsed(["--workers", "0"])


def test_a_short_run_counts_every_call_in_the_worker_that_took_it():
    """Real services on real stores: no figure is asserted, but that every process is there and every call counted."""
    found = run(parsed(["--workers", "2", "--rounds", "1", "--calls", "40", "--concurrency", "4"]))
    json.dumps(found)
    assert set(found["rss_mb"]["workers: 2"]) == {"worker 0", "worker 1", "parent", "valkey-server"}
    for kind in ("calls", "calls with a reward each"):
        assert [sum(of[0]["calls"]) for of in found[kind]["rounds"].values()] == [40, 40]
        assert len(table(found[kind])) == 4
