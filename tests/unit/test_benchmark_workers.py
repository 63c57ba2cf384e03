"""The benchmark of many workers: its arithmetic by hand, and one short run of real processes."""

from __future__ import annotations

import json

import pytest

from benchmarks.workers import parsed, run, table
from benchmarks.workers_figures import Round, figures

# A call costs 1,000 µs where it is taken, 200 in the other worker, and 100 more in worker 0, whoever takes it.
ROUNDS = [
    Round(2.0, [300, 100], [0.3 + 0.02 + 0.04, 0.1 + 0.06], parent_s=0.004, valkey_s=0.08),
    Round(2.0, [100, 300], [0.1 + 0.06 + 0.04, 0.3 + 0.02], parent_s=0.004, valkey_s=0.08),
    Round(4.0, [200, 200], [0.2 + 0.04 + 0.04, 0.2 + 0.04], parent_s=0.004, valkey_s=0.08),
]


def test_figures_and_projection_by_hand():
    """Even: 520 ms of workers for 400 calls are 650 µs in each, which is full at 1,538 calls a second.

    All: 524 ms of 400 calls. valkey-server, with 200 µs, is full at 5,000. Of 1,300 µs a call 200 are for others'.
    """
    found = figures(ROUNDS, one_process_us=1_300.0, others_us=200.0)
    assert found["calls_per_s"] == 200.0
    assert found["cpu_us_per_call"] == 1_310.0
    assert found["busiest_us_per_own_call"] == 1_200.0
    assert found["even_us_per_call_of_all"] == 650.0
    assert found["parent_us_per_call"] == 10.0
    assert found["share_of_others"] == round(200 / 1_300, 3)
    full = found["projection"]["full_at_calls_per_s"]
    assert full == {"busiest": 1_250.0, "even": 1_538.5, "valkey": 5_000.0}
    assert found["projection"]["over_one_process"] == 2.0


def test_where_the_store_s_server_is_full_first_it_is_what_counts():
    found = figures([Round(1.0, [50, 50], [0.05, 0.05], valkey_s=0.1)], one_process_us=1_000.0)
    assert found["projection"]["over_one_process"] == 1.0


def test_of_one_worker_nothing_is_for_others():
    found = figures([Round(1.0, [100], [0.2])], others_us=200.0)
    assert (found["share_of_others"], found["projection"]) == (
        0.0,
        {"full_at_calls_per_s": {"busiest": 500, "even": 500}},
    )


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
