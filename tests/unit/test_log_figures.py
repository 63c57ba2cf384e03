"""The figures of the matrix, each from a few rows that can be counted by hand."""

from __future__ import annotations

import orjson
import pytest

from serving.analytics import AnalyticalLog
from serving.imputation import IMPUTED
from serving.log_figures import Cell, read_cells
from serving.store import Event

NOW = 1_000_000.0


@pytest.fixture
def put(held_store):
    """Append an event, at NOW − 10 unless it says otherwise."""

    def put(kind, **row):
        row = {"ts": NOW - 10.0} | row
        held_store.append_nowait([Event(kind, "", row["ts"], orjson.dumps(row))])

    return put


@pytest.fixture
def cells(held_store, tmp_path):
    """By (model, category), with "*" for the overall cell."""

    async def cells(pool=None, days=7.0):
        held_store.commit()
        log = AnalyticalLog(tmp_path / "log.duckdb", held_store)
        try:
            found = await log.read(
                lambda read: read_cells(read, since=NOW - days * 86_400, until=NOW, pool=pool), timeout_s=20.0
            )
        finally:
            await log.close()
        assert log.rejected_events == 0
        return {(cell.model, "*" if cell.overall else cell.category): cell for cell in found}

    return cells


@pytest.fixture
def graded(put):
    def graded(item, quality, *, model="a", run="1", suite="s", category="math", **more):
        error = "timeout" if quality is None else None
        row = {"suite": suite, "run": run, "item_id": item, "model": model, "category": category, "quality": quality}
        put("benchmark_result", **row | {"error": error} | more)

    return graded


@pytest.fixture
def called(put):
    """A decision with its attempts, (model, status, latency, cost) each, and its feedback, (quality, metrics) each."""
    made = iter(range(1000))

    def called(*attempts, feedback=(), mode="bandit", pool="auto", category="math", chosen="a", ts=NOW - 10.0):
        name = f"d{next(made)}"
        put("decision", decision_id=name, ts=ts, mode=mode, pool=pool, category=category, chosen=chosen)
        for i, (model, status, latency_s, cost_usd, *more) in enumerate(attempts):
            row = {"decision_id": name, "attempt": i, "model": model, "status": status, "latency_s": latency_s}
            put("outcome", ts=ts, cost_usd=cost_usd, http_status=more[0] if more else None, **row)
        for quality, metrics in feedback:
            put("feedback", ts=ts, decision_id=name, quality=quality, metrics=metrics)

    return called


async def test_a_new_log_has_no_cells(cells):
    assert await cells() == {}


async def test_accuracy_is_that_of_the_latest_answer_to_each_item(graded, cells):
    """Run 2 on a sample replaces items 1 and 2, run 1's other answers stay; an error replaces nothing."""
    for item in ("1", "2", "3", "4"):
        graded(item, 0.0)
    graded("1", 1.0, run="2")
    graded("2", 0.5, run="2")
    graded("3", None, run="2")
    graded("1", 1.0, suite="t")
    found = await cells()
    assert (found["a", "*"].accuracy_sum, found["a", "*"].accuracy_count) == (2.5, 5)
    assert (found["a", "*"].benchmark_calls, found["a", "*"].benchmark_failed) == (8, 1)


async def test_cells_are_by_category_and_one_is_of_no_category(graded, cells):
    graded("1", 1.0)
    graded("2", 0.0, category="law")
    graded("3", 1.0, category=None)
    graded("4", 1.0, model="b")
    found = await cells()
    assert {key: (cell.accuracy_sum, cell.accuracy_count) for key, cell in found.items()} == {
        ("a", "*"): (2.0, 3),
        ("a", "math"): (1.0, 1),
        ("a", "law"): (0.0, 1),
        ("a", None): (1.0, 1),
        ("b", "*"): (1.0, 1),
        ("b", "math"): (1.0, 1),
    }


async def test_benchmark_calls_have_their_own_latency_and_cost(graded, cells):
    """p50 of 1, 2, 4 s is 2, p95 lies nine tenths of the way from 2 to 4; what failed has a cost but no latency."""
    for item, latency_s, cost_usd in (("1", 1.0, 0.1), ("2", 2.0, 0.3), ("3", 4.0, None)):
        graded(item, 1.0, latency_s=latency_s, cost_usd=cost_usd)
    graded("4", None, latency_s=60.0, cost_usd=0.2)
    cell = (await cells())["a", "*"]
    assert (cell.benchmark_latency_quantiles_s, cell.benchmark_latency_count) == (pytest.approx([2.0, 3.8]), 3)
    assert (cell.benchmark_cost_mean_usd, cell.benchmark_cost_count) == (pytest.approx(0.2), 3)
    assert (cell.calls, cell.latency_quantiles_s, cell.cost_mean_usd) == (0, None, None)


async def test_calls_count_by_attempt_for_the_model_that_was_asked(called, cells):
    """The caller's own 400 is no failure of the model, and what its caller abandoned is neither answered nor failed."""
    called(("a", "ok", 1.0, 0.1))
    called(("a", "error", 0.2, None, 500), ("b", "ok", 3.0, 0.5))
    called(("a", "error", 0.2, None, 400))
    called(("a", "timeout", 60.0, None))
    called(("a", "error", 0.2, None))
    called(("a", "cancelled", 9.0, 0.3))
    found = await cells()
    a, b = found["a", "*"], found["b", "*"]
    assert (a.calls, a.failed, a.latency_quantiles_s, a.latency_count) == (6, 3, [1.0, 1.0], 1)
    assert (a.cost_mean_usd, a.cost_count) == (pytest.approx(0.2), 2)
    assert (b.calls, b.failed, b.latency_quantiles_s, b.cost_count) == (1, 0, [3.0, 3.0], 1)


async def test_pinned_calls_are_left_out_with_their_feedback(called, cells):
    called(("a", "ok", 1.0, 0.1), feedback=[(1.0, {})], mode="pinned")
    assert await cells() == {}
    called(("a", "ok", 1.0, 0.1), feedback=[(1.0, {})], mode="weighted")
    assert (await cells())["a", "*"].calls == 1


async def test_only_calls_that_asked_a_model_of_the_pools_accord_count(called, cells):
    """An answer from the cache is nobody's; a session's and an experiment's calls are, and so is a shadow."""
    for mode in ("weighted", "canary", "sticky", "shadow", "cached"):
        called(("a", "ok", 1.0, 0.1), feedback=[(1.0, {})], mode=mode)
    cell = (await cells())["a", "*"]
    assert (cell.calls, cell.quality_sum, cell.quality_count) == (4, 4.0, 4)


async def test_quality_is_the_feedback_in_force_of_the_model_that_answered(called, cells):
    """Not what was assumed, not what metrics said alone, not of a call that failed; a revision replaces."""
    called(("a", "ok", 1.0, 0.1), feedback=[(0.25, {}), (0.75, {"x": 1.0})])
    called(("a", "error", 1.0, 0.1, 500), ("b", "ok", 1.0, 0.1), feedback=[(0.5, {})])
    called(("a", "ok", 1.0, 0.1), feedback=[(1.0, {IMPUTED: 1.0})])
    called(("a", "ok", 1.0, 0.1), feedback=[(1.0, {IMPUTED: 1.0}), (0.5, {})])
    called(("a", "ok", 1.0, 0.1), feedback=[(None, {"x": 1.0})])
    called(("a", "error", 1.0, 0.1, 500), feedback=[(1.0, {})])
    called(feedback=[(1.0, {})])  # its caller made the call, and has not told what came of it
    found = await cells()
    assert (found["a", "*"].quality_sum, found["a", "*"].quality_count) == (0.75 + 0.5 + 1.0, 3)
    assert (found["b", "math"].quality_sum, found["b", "math"].quality_count) == (0.5, 1)


async def test_the_window_is_that_of_decisions_and_results(called, graded, cells):
    for age_s in (0.5 * 86_400, 1.5 * 86_400):
        called(("a", "ok", 1.0, 0.1), feedback=[(1.0, {})], ts=NOW - age_s)
        graded(f"{age_s}", 1.0, ts=NOW - age_s)
    one, two = (await cells(days=1.0))["a", "*"], (await cells(days=2.0))["a", "*"]
    assert [(c.calls, c.quality_count, c.accuracy_count) for c in (one, two)] == [(1, 1, 1), (2, 2, 2)]


async def test_a_pool_has_its_own_traffic_and_everybodys_benchmarks(called, graded, cells):
    called(("a", "ok", 1.0, 0.1), feedback=[(1.0, {})])
    called(("a", "ok", 1.0, 0.1), feedback=[(0.0, {})], pool="other")
    graded("1", 1.0)
    cell = (await cells("auto"))["a", "*"]
    assert (cell.calls, cell.quality_sum, cell.quality_count, cell.accuracy_count) == (1, 1.0, 1, 1)


def test_a_cell_knows_every_column_the_queries_name():
    """So a column that is renamed in one place only cannot go unnoticed."""
    from serving import log_figures

    summed = " ".join(text for _, text in log_figures._QUERIES)
    named = [name for name in Cell.__slots__ if name not in ("model", "category", "overall")]
    assert [name for name in named if f" AS {name}" not in summed] == []
