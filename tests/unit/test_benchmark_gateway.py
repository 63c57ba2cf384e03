"""The gateway benchmark's arithmetic and its plumbing: what it computes, and that it counts what really ran."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
import yaml

from benchmarks.gateway import parsed
from benchmarks.gateway_arms import config
from benchmarks.gateway_figures import added, medians, ratios, readable, table
from benchmarks.gateway_load import Load, Target, load, measure, row
from benchmarks.peers.gateways import GATEWAYS, PeerFailed, set_up
from benchmarks.processes import free_port, listening, started
from serving.settings import load_settings

ROUNDS = [
    {
        "alone": {"calls": 10, "failed": 0, "p50_ms": 50.0, "p99_ms": 60.0, "cpu_us_per_call": 20.0},
        "bare": {"calls": 10, "failed": 0, "p50_ms": 51.0, "p99_ms": 59.0, "cpu_us_per_call": 200.0},
        "ours": {"calls": 10, "failed": 1, "p50_ms": 52.5, "p99_ms": 70.0, "cpu_us_per_call": 300.0},
    },
    {
        "alone": {"calls": 10, "failed": 0, "p50_ms": 10.0, "p99_ms": 11.0, "cpu_us_per_call": 10.0},
        "bare": {"calls": 10, "failed": 0, "p50_ms": 12.0, "p99_ms": 14.0, "cpu_us_per_call": 100.0},
        "ours": {"calls": 10, "failed": 2, "cpu_us_per_call": 250.0},
    },
]


def test_added_latency_is_over_the_upstream_alone_in_the_same_round():
    """By hand: 52.5 − 50 in the first round; 12 − 10 in the second, whose own upstream counts, not the first's."""
    first, second = added(ROUNDS, "alone")
    assert first["ours"]["added_p50_ms"] == 2.5
    assert first["bare"]["added_p99_ms"] == -1.0
    assert second["bare"]["added_p50_ms"] == 2.0
    assert first["alone"]["added_p50_ms"] == 0.0
    assert "added_p50_ms" not in second["ours"]  # none succeeded, so there is no latency
    assert "added_p50_ms" not in ROUNDS[0]["ours"]


def test_medians_are_over_the_rounds_that_have_the_figure_and_failures_add_up():
    found = medians(ROUNDS)
    assert found["bare"]["cpu_us_per_call"] == 150.0
    assert found["ours"]["p50_ms"] == 52.5
    assert found["ours"]["failed"] == 3


def test_ratios_are_of_neighbours():
    """300 / 200 and 250 / 100, not 275 / 150."""
    assert ratios(ROUNDS, "cpu_us_per_call", "bare")["ours"] == {"median": 2.0, "lowest": 1.5, "highest": 2.5}


def test_a_row_of_calls_spreads_cpu_over_all_of_them_and_takes_quantiles_of_those_that_succeeded():
    seen = Load(latencies_s=[i / 1e3 for i in range(1, 101)])
    seen.failures["status 503"] += 25
    found = row(seen, wall_s=10.0, cpu_s=0.05, stream=False)
    assert (found["calls"], found["failed"], found["calls_per_s"], found["cpu_us_per_call"]) == (125, 25, 10.0, 400.0)
    expected = np.quantile(np.arange(1, 101), (0.5, 0.95, 0.99))
    assert [found[name] for name in ("p50_ms", "p95_ms", "p99_ms")] == pytest.approx(expected, abs=1e-3)


def test_a_row_of_streams_is_of_first_bytes_and_chunks():
    seen = Load(latencies_s=[0.5, 0.5], first_bytes_s=[0.010, 0.030], chunks=100)
    found = row(seen, wall_s=2.0, cpu_s=0.01, stream=True)
    assert (found["streams"], found["chunks_per_s"], found["cpu_us_per_chunk"]) == (2, 50.0, 100.0)
    assert found["first_byte_p50_ms"] == 20.0


def test_a_row_without_a_success_has_no_latency():
    seen = Load()
    seen.failures["status 500"] += 3
    assert row(seen, 1.0, 0.003, stream=False) == {
        "calls": 3,
        "failed": 3,
        "calls_per_s": 0.0,
        "cpu_us_per_call": 1000.0,
    }


def test_the_table_has_every_arm_and_says_what_is_missing():
    rounds = added(ROUNDS[1:], "alone")
    part = {"medians": medians(rounds), "cpu_over_pass_through": ratios(rounds, "cpu_us_per_call", "bare")}
    cell = {"upstream_latency_ms": 50.0, "concurrency": 16, "others_cores": 0.25, "calls": part}
    lines = table(cell, "calls")
    assert lines[0].startswith("calls, upstream 50 ms, 16 at a time")
    widths = {line.count("|") for line in lines[2:]}
    assert len(widths) == 1
    ours = next(line for line in lines if line.startswith("| ours"))
    assert "| — |" in ours
    assert "2.50 (2.50 to 2.50)" in ours


def test_readable_json_says_the_same_with_a_row_on_a_line():
    value = {"cells": [{"rounds": [{"a": {"p50_ms": 1.5}, "b": {"p50_ms": 2}}], "none": {}}], "say": "µ"}
    text = readable(value)
    assert json.loads(text) == value
    assert any(line.strip().startswith('"a": {"p50_ms": 1.5}') for line in text.splitlines())


def test_lists_of_the_command_line():
    options = parsed(
        ["--peers", "litellm,vllm-router", "--peers-dir", "x", "--upstream-latency-ms", "0,50", "--concurrency", "1,16"]
    )
    assert options.peers == ["litellm", "vllm-router"]
    assert (options.upstream_latency_ms, options.concurrency) == ([0.0, 50.0], [1, 16])
    assert parsed([]).peers == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peers", "nginx", "--peers-dir", "x"],
        ["--peers", "litellm"],
        ["--concurrency", "0"],
        ["--concurrency", ""],
        ["--upstream-latency-ms", "-1"],
        ["--stream-chunks", "1"],
    ],
)
def test_a_command_line_that_means_nothing_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parsed(arguments)
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("peer", GATEWAYS.values(), ids=lambda peer: peer.name)
def test_a_peers_command_line_names_its_port_and_is_filled_in(peer, tmp_path):
    arguments = peer.arguments(tmp_path, "http://127.0.0.1:9", 4321)
    assert any("4321" in argument for argument in arguments)
    assert not any("{" in argument for argument in arguments)
    assert peer.version[0].isdigit()


def test_what_is_no_peer_is_not_set_up(tmp_path):
    with pytest.raises(PeerFailed, match="none of"):
        set_up("nginx", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_has_everything_on_and_is_valid(tmp_path):
    path = tmp_path / "pointsman.yaml"
    path.write_text(yaml.safe_dump(config("http://127.0.0.1:9", tmp_path / "data")))
    settings = load_settings(path, {})
    assert len(settings.models) == 10
    assert settings.budgets
    assert settings.limits


def test_a_load_counts_its_calls_its_chunks_and_what_failed():
    """Four streams of five chunks and the closing line each, from the real upstream; then a port nobody listens on."""
    with started(["-m", "benchmarks.slow_upstream", "--latency-ms", "0", "--chunks", "5", "--gap-ms", "0"]) as upstream:
        target = Target(upstream.url, "m")
        calls = measure(upstream, target, concurrency=2, calls=7)
        assert (calls["calls"], calls["failed"]) == (7, 0)
        streams = measure(upstream, target, concurrency=2, calls=4, stream=True)
        assert (streams["streams"], streams["failed"]) == (4, 0)
        assert streams["chunks_per_s"] > 0
        nobody = Target(f"http://127.0.0.1:{free_port()}", "m")
        assert measure(upstream, nobody, concurrency=1, calls=3, tolerant=True)["failed"] == 3
        with pytest.raises(RuntimeError):
            measure(upstream, nobody, concurrency=1, calls=1)


async def test_every_chunk_is_counted_through_the_pass_through():
    with (
        started(["-m", "benchmarks.slow_upstream", "--latency-ms", "0", "--chunks", "5", "--gap-ms", "0"]) as upstream,
        started(["-m", "benchmarks.servers", "passthrough", "--target", upstream.url]) as bare,
    ):
        seen = await load(Target(bare.url, "m"), concurrency=2, calls=3, stream=True)
    assert seen.chunks == 3 * 6
    assert len(seen.first_bytes_s) == 3


PARENT = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass\\ntime.sleep(60)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_cpu_and_memory_are_those_of_all_processes_of_a_server_and_none_is_left_behind(tmp_path):
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log.txt"
    with listening([sys.executable, "-c", PARENT, str(port)], url, ready="/", log=log, environment={}) as server:
        children = server.process.children()
        assert len(children) == 1
        assert server.rss_mb() > server.process.memory_info().rss / 1e6
        ends = time.monotonic() + 60
        while server.cpu_s() < 0.3 and time.monotonic() < ends:
            time.sleep(0.02)
        assert server.cpu_s() >= 0.3
    children[0].wait(timeout=10)
    assert not children[0].is_running()


def test_a_server_that_ends_early_is_a_reason(tmp_path):
    url, log = f"http://127.0.0.1:{free_port()}", tmp_path / "log.txt"
    with (
        pytest.raises(RuntimeError, match="ended with 3"),
        listening([sys.executable, "-c", "raise SystemExit(3)"], url, ready="/", log=log, environment={}),
    ):
        pytest.fail("it never listened")
