"""Whose file a log is, and of which version: older ones are brought up to date, all others left alone."""
# ruff: noqa: F811 - a fixture is imported, and an argument of its name is it

from __future__ import annotations

import duckdb
import numpy as np
from copied_events import counts, decision, dumps, log, outcomes, path, query, store  # noqa: F401 - three are fixtures

from serving import analytics
from serving.analytics import AnalyticalLog
from serving.sqlite_store import SqliteStore
from serving.store import Event


async def test_a_newer_schema_is_left_alone(path, store, log):
    await log.flush()
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE schema_version SET version = version + 1")
    await store.append(outcomes(1))
    assert await log.flush() == 0
    assert "schema is version 5 and this program knows up to 4; upgrade" in log.last_error
    assert counts(path) == (0, 0, 0)


async def test_another_programs_file_is_left_alone(path, store, log):
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE theirs (a INTEGER)")
    await store.append(outcomes(1))
    assert await log.flush() == 0
    assert "belongs to another program" in log.last_error
    assert query(path, "SELECT table_name FROM duckdb_tables()") == [("theirs",)]


async def test_a_log_of_another_store_is_left_alone(path, store, log, tmp_path):
    """Its position says events were copied that this store never had: going on would skip this store's."""
    await store.append(outcomes(5))
    await log.flush()
    other_store = SqliteStore(tmp_path / "other.sqlite")
    await other_store.append(outcomes(2))
    other = AnalyticalLog(path, other_store)
    assert await other.flush() == 0
    assert "it holds events up to 5 and the store ends at 2" in other.last_error
    assert counts(path) == (5, 5, 5)
    await other.close()
    await other_store.close()


async def test_a_log_of_another_store_is_left_alone_once_that_has_grown_past_it(path, store, log, tmp_path):
    """What stands at the log's position there is another event: of another time, or of another kind."""
    await store.append(outcomes(5))
    await log.flush()
    for number, event in enumerate((Event("outcome", "x", 9.0, b'{"ts":9.0}'), Event("feedback", "x", 1.0, b"{}"))):
        other_store = SqliteStore(tmp_path / f"{number}.sqlite")
        await other_store.append([*outcomes(4), event, *outcomes(3)])
        other = AnalyticalLog(path, other_store)
        assert await other.flush() == 0
        assert "its event 5 is not the store's" in other.last_error
        await other.close()
        await other_store.close()
    assert counts(path) == (5, 5, 5)
    again = AnalyticalLog(path, store)  # the right one goes on
    await store.append(outcomes(1))
    assert await again.flush() == 1
    await again.close()


async def test_the_file_says_its_schema_version(path, log):
    await log.flush()
    assert query(path, "FROM schema_version") == [(analytics.SCHEMA_VERSION,)]


async def test_a_file_of_the_first_version_is_brought_up_to_date(path, store, log):
    """It had no column for what a budget withheld, since nothing was; its rows stay, and say so."""
    made = [decision(number, np.random.default_rng(1)) for number in range(3)]
    events = [Event("decision", d.decision_id, d.ts, dumps(d.to_row() | {"withheld_usd": 0.25})) for d in made]
    await store.append(events[:1])
    await log.flush()
    with duckdb.connect(str(path)) as connection:
        connection.execute("ALTER TABLE decisions DROP COLUMN withheld_usd")
        _without_what_version_3_brought(connection)
        connection.execute("UPDATE schema_version SET version = 1")
    await store.append(events[1:])
    reopened = AnalyticalLog(path, store)
    assert await reopened.flush() == 2
    await reopened.close()
    assert query(path, "FROM schema_version") == [(analytics.SCHEMA_VERSION,)]
    rows = query(path, "SELECT decision_id, pacer_multiplier, infeasible, withheld_usd FROM decisions ORDER BY seq")
    assert rows == [
        (d.decision_id, d.pacer_multiplier, d.infeasible, withheld)
        for d, withheld in zip(made, (0.0, 0.25, 0.25), strict=True)
    ]


def _without_what_version_4_brought(connection):
    connection.execute("DROP TABLE changes")
    for column in ("key_id", "session", "experiment", "origin"):
        connection.execute(f"ALTER TABLE decisions DROP COLUMN {column}")
    for column in ("endpoint", "cached_tokens", "saved_usd"):
        connection.execute(f"ALTER TABLE outcomes DROP COLUMN {column}")


def _without_what_version_3_brought(connection):
    _without_what_version_4_brought(connection)
    for column in ("run", "input_tokens", "output_tokens"):
        connection.execute(f"ALTER TABLE benchmark_results DROP COLUMN {column}")


async def test_a_file_of_the_second_version_gets_the_run_and_tokens_of_benchmark_results(path, store, log):
    """Its rows stay, and nothing is known of their run."""
    row = {"ts": 1.0, "suite": "s", "run": "r", "item_id": "1", "quality": 1.0, "input_tokens": 3, "output_tokens": 5}
    await store.append([Event("benchmark_result", "", 1.0, dumps(row))])
    await log.flush()
    with duckdb.connect(str(path)) as connection:
        _without_what_version_3_brought(connection)
        connection.execute("UPDATE schema_version SET version = 2")
    await store.append([Event("benchmark_result", "", 1.0, dumps(row | {"item_id": "2"}))])
    reopened = AnalyticalLog(path, store)
    assert await reopened.flush() == 1
    await reopened.close()
    assert query(path, "FROM schema_version") == [(4,)]
    rows = query(path, "SELECT item_id, quality, run, input_tokens, output_tokens FROM benchmark_results ORDER BY seq")
    assert rows == [("1", 1.0, None, None, None), ("2", 1.0, "r", 3, 5)]


async def test_a_file_of_the_third_version_gets_changes_and_who_called(path, store, log):
    """A change's own values are kept as JSON text; what is no column, such as a key's digest, is left out."""
    d = decision(0, np.random.default_rng(1))
    await store.append([Event("decision", d.decision_id, d.ts, dumps(d.to_row()))])
    await log.flush()
    with duckdb.connect(str(path)) as connection:
        _without_what_version_4_brought(connection)
        connection.execute("UPDATE schema_version SET version = 3")
    row = {"ts": 1.0, "subject": "keys", "what": "created", "after": {"id": "k"}, "by": "admin", "digest": "ab"}
    await store.append([Event("change", "", 1.0, dumps(row))])
    reopened = AnalyticalLog(path, store)
    flushed = await reopened.flush()
    assert (flushed, reopened.rejected_events) == (1, 0)
    await reopened.close()
    assert query(path, "SELECT key_id, session, experiment, origin FROM decisions") == [(None, None, None, None)]
    assert query(path, 'SELECT subject, what, "after", "before", "by" FROM changes') == [
        ("keys", "created", '{"id":"k"}', None, "admin")
    ]
