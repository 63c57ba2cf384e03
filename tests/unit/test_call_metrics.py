"""Counters and histograms of calls: what is counted, in which buckets, under which labels."""

from __future__ import annotations

import pytest
from metered_calls import outcome, record
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from bandit.types import Mode, Status
from serving.metrics import Metrics
from serving.slo_settings import SloSettings
from serving.spread import Spread

# OpenTelemetry, semantic conventions for generative AI metrics (retrieved as of 2025)
OPENTELEMETRY = {
    "call_duration_seconds": [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92],
    "time_to_first_token_seconds": [
        *[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0],
    ],
    "call_tokens": [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864],
}
LABELS = {  # names of the configuration, and words of this program
    *("pool", "model", "endpoint", "budget", "suite"),
    *("mode", "status", "state", "direction", "objective", "result", "code", "priority", "why", "what", "phase", "le"),
}


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.objectives.follow({"auto": SloSettings(success_quality=0.7)})
    return metrics


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"pointsman_{name}", {"pool": "auto", "model": "m"} | labels)


def families(metrics):
    return list(text_string_to_metric_families(metrics.render().decode()))


@pytest.mark.parametrize("name", OPENTELEMETRY)
def test_buckets_are_those_of_the_conventions(metrics, name):
    metrics.calls.attempt(
        "auto", "bandit", outcome(0.1, stream=True, time_to_first_token_s=0.1, input_tokens=9, output_tokens=5)
    )
    (family,) = [family for family in families(metrics) if family.name == f"pointsman_{name}"]
    bounds = sorted({float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")})
    assert bounds[:-1] == OPENTELEMETRY[name]
    assert bounds[-1] == float("inf")


@pytest.mark.parametrize("values", [[], [0.5], [0.0, 1.0, 1.0000001, 2.0, 3.0, 99.0]])
def test_a_spread_shows_what_the_librarys_histogram_does(values):
    from prometheus_client.core import HistogramMetricFamily

    spread, known = Spread((1.0, 2.0, 4.0)), Histogram("h", "h", buckets=(1.0, 2.0, 4.0), registry=None)
    family = HistogramMetricFamily("h", "h", labels=())
    for x in values:
        spread.observe(x)
        known.observe(x)
    spread.show(family)
    shown = {(s.name, s.labels.get("le")): s.value for s in family.samples}
    expected = {(s.name, s.labels.get("le")): s.value for m in known.collect() for s in m.samples}
    assert shown == ({k: v for k, v in expected.items() if not k[0].endswith("_created")} if values else {})


def test_every_attempt_counts_with_what_is_known_of_it(metrics):
    """As the log's sums do: whatever its status; times and sizes are of good calls."""
    for made in (
        outcome(0.001, input_tokens=10, output_tokens=5),
        outcome(0.002, status="error", input_tokens=20, output_tokens=3),  # a stream that broke off
        outcome(None, status="timeout", latency_s=60.0),
    ):
        metrics.calls.attempt("auto", "bandit", made)
    statuses = {s: value(metrics, "calls_total", mode="bandit", status=s) for s in ("ok", "error", "timeout")}
    assert statuses == {"ok": 1, "error": 1, "timeout": 1}
    assert value(metrics, "cost_usd_total") == pytest.approx(0.003, abs=1e-15)
    assert value(metrics, "tokens_total", direction="input") == 30
    assert value(metrics, "tokens_total", direction="output") == 8
    assert value(metrics, "call_duration_seconds_count") == value(metrics, "call_tokens_count", direction="input") == 1
    assert value(metrics, "time_to_first_token_seconds_count") is None  # no stream


def test_an_answer_from_the_cache_is_a_call_but_no_time_of_an_upstream(metrics):
    metrics.calls.attempt("auto", "cached", outcome(0.0, saved_usd=0.5, latency_s=0.0001))
    assert value(metrics, "calls_total", mode="cached", status="ok") == 1
    assert value(metrics, "cache_saved_usd_total") == 0.5
    assert value(metrics, "call_duration_seconds_count") is None


def test_propensities_are_of_what_was_drawn(metrics):
    for mode in ("bandit", "pinned", "sticky", "shadow", "cached"):
        metrics.calls.decided(record(mode=mode).decision)
    assert metrics.registry.get_sample_value("pointsman_propensity_count", {"pool": "auto"}) == 1
    assert value(metrics, "decisions_total", mode="sticky") == 1


@pytest.mark.parametrize(("quality", "successes"), [(0.69, 0), (0.7, 1), (1.0, 1)])
def test_a_success_is_a_quality_that_the_pool_states(metrics, quality, successes):
    graded = record()
    graded.outcome = outcome(0.25)
    metrics.graded(graded, quality)
    assert value(metrics, "successes_total") == successes
    assert value(metrics, "graded_cost_usd_total") == 0.25
    assert (value(metrics, "quality_count"), value(metrics, "quality_sum")) == (1, quality)


def test_labels_are_names_of_the_configuration_and_fixed_words(metrics):
    """Every mode and status of the program, and no more series for a thousand calls than for one of each."""
    for _ in range(10):
        for mode in Mode.__args__:
            for status in Status.__args__:
                metrics.calls.attempt("auto", mode, outcome(0.1, status=status))
    samples = [sample for family in families(metrics) for sample in family.samples]
    assert {label for sample in samples for label in sample.labels} <= LABELS
    assert sum(sample.name == "pointsman_calls_total" for sample in samples) == len(Mode.__args__) * len(
        Status.__args__
    )
