"""How long rows stay in the analytical log: what goes, what stays with it, in how many steps, and who is told."""
# ruff: noqa: F811 - a fixture is imported, and an argument of its name is it
# ruff: noqa: S608 - tables are named by the test

from __future__ import annotations

import asyncio

import duckdb
import pytest
from copied_events import dumps, log, path, query, store  # noqa: F401 - three are fixtures

from serving.dashboard.timeline import TimeLine
from serving.dashboard.timeline import told as in_words
from serving.log_errors import LogUnavailable
from serving.log_retention import LogRetention
from serving.records import DecisionIds, first_id_at
from serving.store import Event

NOW, DAY = 1_800_000_000.0, 86_400.0
IDS = DecisionIds()
TABLES = ("decisions", "outcomes", "rewards", "filter_events", "benchmark_results", "changes")


class Told(list):
    """What is logged of it."""

    def note_change(self, rows):
        self.extend(rows)


class Clocks:
    def __init__(self) -> None:
        self.now, self.monotonic = NOW, 5.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def retention(log, told, clocks):
    made = LogRetention(
        log,
        told,
        unforeseen=pytest.fail,
        decisions_a_step=10,
        clock=lambda: clocks.now,
        monotonic=lambda: clocks.monotonic,
    )
    made.configure(10, 7 * DAY)
    return made


def call(age_days, *, now=NOW, outcome_after_s=1.0, rewards_after_days=(0.5,)):
    """The events of one call, so many days old."""
    ts = now - age_days * DAY
    name = IDS.new(ts)
    rows = [("decision", {"ts": ts, "chosen": "a"}), ("outcome", {"ts": ts + outcome_after_s, "attempt": 0})]
    rows += [("feedback", {"ts": ts + days * DAY, "quality": 1.0}) for days in rewards_after_days]
    return [Event(kind, name, row["ts"], dumps({"decision_id": name} | row)) for kind, row in rows]


def other(kind, age_days, **row):
    return Event(kind, "", NOW, dumps({"ts": NOW - age_days * DAY} | row))


def rows(path, table):
    return [row[0] for row in query(path, f"SELECT seq FROM {table} ORDER BY seq")]


async def filled(store, log, *events):
    await store.append(list(events))
    await log.flush()
    assert (log.rejected_events, log.lag_events) == (0, 0)


async def test_what_is_older_goes_from_every_table_and_is_told(path, store, log, retention, told):
    events = [*call(11), *call(9)]
    for age_days in (11, 9):
        events += [
            other("filter_event", age_days, pool="auto"),
            other("benchmark_result", age_days, suite="s"),
            other("change", age_days, subject="pools", what="disabled"),
        ]
    await filled(store, log, *events)
    assert not await retention.step()
    assert {table: rows(path, table) for table in TABLES} == {
        "decisions": [4], "outcomes": [5], "rewards": [6], "filter_events": [10], "benchmark_results": [11],
        "changes": [12],
    }  # fmt: skip
    (row,) = told
    assert (row["subject"], row["what"], row["ts"], row["by"]) == ("log", "rows_removed", NOW, None)
    assert row["after"] == dict.fromkeys(TABLES, 1) | {"before_ts": NOW - 10 * DAY}
    assert retention.removed_rows == dict.fromkeys(TABLES, 1)
    assert log.last_error is None


async def test_a_decision_goes_with_all_that_is_its_own_and_stays_with_all_of_it(path, store, log, retention):
    """A reward of today goes with a decision that is too old; an outcome that a clock set back made old stays."""
    late, set_back = call(10.5, rewards_after_days=(1.0, 6.9)), call(9.5, outcome_after_s=-5 * DAY)
    await filled(store, log, *late, *set_back)
    await retention.step()
    assert [rows(path, table) for table in TABLES[:3]] == [[5], [6], [7]]


async def test_what_came_after_the_horizon_goes_when_it_is_itself_too_old(path, store, log, retention, clocks):
    await filled(store, log, *call(12, rewards_after_days=(9.5,)))
    await retention.step()
    assert [rows(path, table) for table in TABLES[:3]] == [[], [], [3]]
    clocks.pass_by(8 * DAY)
    await retention.step()
    assert rows(path, "rewards") == []


async def test_a_pass_goes_in_steps_each_of_whole_decisions(path, store, log, retention, told):
    await filled(store, log, *[event for number in range(35) for event in call(20 - number / 100)])
    left = []
    while await retention.step():
        left.append([len(rows(path, table)) for table in TABLES[:3]])
        assert not told
    assert left == [[25] * 3, [15] * 3, [5] * 3]
    assert [len(rows(path, table)) for table in TABLES[:3]] == [0, 0, 0]
    assert told[0]["after"]["decisions"] == 35


async def test_the_next_pass_is_an_hour_later_and_sooner_where_rows_stay_for_less_than_a_day(
    path, store, log, retention, clocks
):
    await filled(store, log, *call(11))
    assert not await retention.step()
    await filled(store, log, *call(11))
    clocks.pass_by(3_599)
    await retention.step()
    assert rows(path, "decisions") == [4]
    clocks.pass_by(1)
    await retention.step()
    assert rows(path, "decisions") == []
    retention.configure(0.1, 7 * DAY)
    await filled(store, log, *call(11))
    await retention.step()
    await filled(store, log, *call(11))
    clocks.pass_by(0.1 * DAY / 24)
    await retention.step()
    assert rows(path, "decisions") == []


async def test_a_clock_that_is_set_has_an_hour_to_be_set_right(path, store, log, retention, clocks):
    """Else a year too many would take the whole log."""
    await filled(store, log, *call(9))
    await retention.step()
    clocks.pass_by(3_600)
    clocks.now += 365 * DAY
    assert not await retention.step()
    assert rows(path, "decisions") == [1]
    clocks.pass_by(10)
    clocks.now -= 365 * DAY
    await retention.step()
    assert rows(path, "decisions") == [1]
    clocks.pass_by(2 * DAY)
    await retention.step()
    assert rows(path, "decisions") == []


async def test_without_a_retention_everything_stays(path, store, log, retention, told):
    retention.configure(None, 7 * DAY)
    await filled(store, log, *call(10_000))
    assert not await retention.step()
    assert (rows(path, "decisions"), told) == ([1], [])


async def test_rows_that_say_what_went_are_not_told_of(path, store, log, retention, told):
    """Else an idle service would tell for ever that it removed what told so."""
    await filled(store, log, other("change", 11, subject="log", what="rows_removed"))
    await retention.step()
    assert (rows(path, "changes"), told) == ([], [])


async def test_a_file_that_is_read_is_left_and_cleaned_later(path, store, log, retention):
    await filled(store, log, *call(11))
    with duckdb.connect(str(path), read_only=True), pytest.raises(LogUnavailable):
        await retention.step()
    assert rows(path, "decisions") == [1]
    await retention.step()
    assert rows(path, "decisions") == []
    await filled(store, log, *call(1))
    assert rows(path, "decisions") == [4]


async def test_a_step_that_fails_changes_nothing(path, store, log, retention):
    await filled(store, log, *call(11))

    def half(attached):
        attached.execute("DELETE FROM log.decisions")
        attached.execute("DELETE FROM log.no_such_table")

    with pytest.raises(LogUnavailable):
        await log.change(half)
    assert rows(path, "decisions") == [1]
    await retention.step()
    assert rows(path, "decisions") == []


async def test_rejected_events_go_with_those_logged_before_them(path, store, log, retention):
    await store.append([Event("outcome", "", NOW, b'{"ts": "no number"}'), *call(11)])
    await store.append([*call(1), Event("outcome", "", NOW, b'{"ts": "no number"}')])
    await log.flush()
    assert rows(path, "rejected") == [1, 8]
    await retention.step()
    assert rows(path, "rejected") == [8]


async def test_the_file_does_not_grow_with_what_has_gone(path, store, log, clocks, told):
    """Row groups of 122,880 rows are given back as a whole: so many rows a table are the least that a file holds."""
    retention = LogRetention(
        log, told, unforeseen=pytest.fail, clock=lambda: clocks.now, monotonic=lambda: clocks.monotonic
    )
    retention.configure(0.01, 7 * DAY)
    sizes = []
    for _ in range(12):
        made = [event for _ in range(8_000) for event in call(0, now=clocks.now, rewards_after_days=())]
        await filled(store, log, *made)
        clocks.pass_by(DAY)
        await retention.step()
        sizes.append(path.stat().st_size)
    assert [rows(path, table) for table in TABLES[:2]] == [[], []]
    assert max(sizes[6:]) <= 1.25 * max(sizes[:6])


def test_the_time_line_leaves_it_to_the_history():
    """An entry every hour would drive out what operators look for there; elsewhere it is told in words."""
    row = {"ts": NOW, "subject": "log", "what": "rows_removed", "after": {"decisions": 3}, "reason": "r"}
    line = TimeLine()
    line.witness(Event("change", "", NOW, dumps(row)))
    assert line.last(10) == []
    entry = in_words(row)
    assert (entry["kind"], entry["title"], entry["detail"]) == ("change", "log rows removed", "decisions: 3")


def test_ids_sort_by_their_time_around_the_bound():
    for ts in (0.0, NOW, NOW + 0.001, 1e11):
        assert IDS.new(ts - 0.001 if ts else 0.0) < first_id_at(ts + 0.001)
        assert first_id_at(ts) <= IDS.new(ts)


async def test_an_error_nobody_foresaw_is_counted_and_ends_nothing(log, told, monkeypatch):
    """The next look comes all the same; that pass waits for an hour."""
    monkeypatch.setattr("serving.log_retention._LOOK_S", 0.01)
    seen = []
    retention = LogRetention(log, told, unforeseen=lambda: seen.append(1))
    retention.configure(1.0, 7 * DAY)
    monkeypatch.setattr("serving.log_retention.remove_older", lambda *_: 1 / 0)
    running = asyncio.create_task(retention.run())
    try:
        async with asyncio.timeout(20):
            while not seen:  # noqa: ASYNC110 - a callback, and no event to wait for
                await asyncio.sleep(0.01)
        assert not await retention.step()
        assert not running.done()
    finally:
        running.cancel()
    assert seen == [1]
