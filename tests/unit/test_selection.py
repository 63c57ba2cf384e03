"""Logs as replay reads them: what is selected, and what is refused with its file, row and column."""
# ruff: noqa: S608 - statements of tests are their own

from __future__ import annotations

import time

import duckdb
import numpy as np
import pytest
from logged_traffic import MODELS, QUALITY, write_log

from bandit.errors import InvalidInput
from evaluation.logs import SCHEMA_VERSION, opened
from evaluation.selection import SelectedRounds, Selection


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.duckdb"
    return path, write_log(path)


@pytest.fixture
def damaged(logged, tmp_path):
    """A copy of the log, changed by SQL."""

    def damage(*statements):
        path = tmp_path / "damaged.duckdb"
        path.write_bytes(logged[0].read_bytes())
        with duckdb.connect(str(path)) as connection:
            for statement in statements:
                connection.execute(statement)
        return path

    return damage


def selected(path, **selection):
    with opened([path]) as log:
        rounds = SelectedRounds(log, Selection("auto", **selection))
        chunks = list(rounds.chunks(150))
    return rounds, chunks


def test_a_log_comes_back_as_it_was(logged):
    path, trace = logged
    rounds, chunks = selected(path)
    assert (rounds.count, rounds.selected, rounds.arms) == (400, 400, tuple(sorted(MODELS)))
    assert [len(chunk) for chunk in chunks] == [150, 150, 100]
    order = [MODELS.index(name) for name in rounds.arms]
    behaviour = np.concatenate([chunk.behaviour for chunk in chunks])
    np.testing.assert_allclose(behaviour, trace.probabilities[:, order], atol=1e-12)
    chosen = np.concatenate([chunk.chosen for chunk in chunks])
    assert [rounds.arms[i] for i in chosen] == [MODELS[i] for i in trace.chosen]
    for name in ("quality", "cost_usd", "latency_s"):
        np.testing.assert_allclose(np.concatenate([getattr(c, name) for c in chunks]), getattr(trace, name))
    predicted = np.concatenate([chunk.predicted_quality for chunk in chunks])
    np.testing.assert_allclose(predicted, trace.predicted_quality[:, order], atol=1e-6)
    assert rounds.categories == ("law", "math")
    assert set(QUALITY) == set(rounds.categories)


def test_events_stand_in_the_order_of_the_log(logged):
    _, chunks = selected(logged[0])
    for chunk in chunks:
        assert (np.diff(chunk.seq) > 0).all()
        assert (chunk.outcome_seq > chunk.seq).all()
        assert (chunk.first_seq > chunk.outcome_seq).all()
        assert (chunk.last_seq == chunk.first_seq).all()


def test_a_condition_and_times_select(logged):
    path, trace = logged
    rounds, chunks = selected(path, where="category = 'math' AND chosen <> 'slow'")
    names = np.array(MODELS)[trace.chosen]
    expected = int(((np.arange(400) % 2 == 0) & (names != "slow")).sum())
    assert rounds.selected == expected == sum(map(len, chunks))
    rounds, _ = selected(path, since_ts=1_700_000_100.0, until_ts=1_700_000_200.0)
    assert rounds.selected == 100
    assert (rounds.from_ts, rounds.to_ts) == (1_700_000_100.0, 1_700_000_199.0)
    rounds, _ = selected(path, latest=30)
    assert (rounds.count, rounds.dropped) == (30, 370)


def test_what_is_not_selected_is_there_to_learn_from(logged):
    path, _ = logged
    with opened([path]) as log:
        rounds = SelectedRounds(log, Selection("auto", since_ts=1_700_000_300.0))
        (chunk,) = rounds.chunks(1_000, selected_only=False)
    assert len(chunk) == 400
    assert chunk.selected.sum() == rounds.selected == 100


def test_several_logs_are_one_in_the_order_of_time(logged, tmp_path):
    late = tmp_path / "late.duckdb"
    write_log(late, 50, seed=5)
    with duckdb.connect(str(late)) as connection:
        for table in ("decisions", "outcomes", "rewards"):
            connection.execute(f"UPDATE {table} SET ts = ts + 1000000")
    with opened([late, logged[0]]) as log:
        rounds = SelectedRounds(log, Selection("auto"))
        ts = np.concatenate([chunk.ts for chunk in rounds.chunks(120)])
    assert len(ts) == 450
    assert (np.diff(ts) > 0).all()


@pytest.mark.parametrize("as_folder", [True, False])
def test_tables_as_parquet_files_are_the_same_log(logged, tmp_path, as_folder):
    path, _ = logged
    with duckdb.connect(str(path), read_only=True) as connection:
        for table in ("decisions", "outcomes", "rewards"):
            connection.execute(f"COPY {table} TO '{tmp_path}/some-{table}.parquet' (FORMAT parquet)")
    with opened([tmp_path] if as_folder else sorted(tmp_path.glob("*.parquet"))) as log:
        chunks = list(SelectedRounds(log, Selection("auto")).chunks())
    _, expected = selected(path)
    np.testing.assert_array_equal(chunks[0].quality, np.concatenate([c.quality for c in expected]))
    np.testing.assert_array_equal(chunks[0].behaviour, np.concatenate([c.behaviour for c in expected]))


def test_what_a_failure_means(damaged):
    """A model's failure is quality 0 without a bill; the caller's own mistake and a caller gone say nothing."""
    path = damaged(
        "CREATE TEMP TABLE ids AS SELECT decision_id, row_number() OVER (ORDER BY seq) AS i FROM decisions",
        "UPDATE outcomes SET status = 'timeout', cost_usd = NULL FROM ids"
        " WHERE ids.decision_id = outcomes.decision_id AND i = 1",
        "UPDATE outcomes SET status = 'error', http_status = 400 FROM ids"
        " WHERE ids.decision_id = outcomes.decision_id AND i = 2",
        "UPDATE outcomes SET status = 'cancelled' FROM ids WHERE ids.decision_id = outcomes.decision_id AND i = 3",
        "DELETE FROM rewards USING ids WHERE ids.decision_id = rewards.decision_id AND i <= 3",
    )
    _, (chunk, *_) = selected(path)
    assert chunk.failed[:4].tolist() == [True, False, False, False]
    assert chunk.quality[0] == 0.0
    assert chunk.cost_usd[0] == 0.0
    assert np.isnan(chunk.quality[1:3]).all()
    assert not np.isnan(chunk.quality[3])


def test_feedback_that_was_only_assumed_is_no_feedback(damaged):
    path = damaged("UPDATE rewards SET metrics = MAP {'imputed': 1.0} WHERE seq = (SELECT min(seq) FROM rewards)")
    _, chunks = selected(path)
    assert sum(int(np.isnan(chunk.quality).sum()) for chunk in chunks) == 1


def test_the_last_revision_counts(damaged):
    path = damaged(
        "INSERT INTO rewards BY NAME SELECT * REPLACE (seq + 100000 AS seq, 0.25 AS quality, 1 AS revision)"
        " FROM rewards WHERE seq = (SELECT min(seq) FROM rewards)"
    )
    _, (chunk, *_) = selected(path)
    (revised,) = np.flatnonzero(chunk.last_seq > chunk.first_seq)
    assert chunk.quality[revised] == 0.25
    assert chunk.first_quality[revised] in (0.0, 1.0)


FIRST = "WHERE seq = (SELECT seq FROM decisions ORDER BY seq LIMIT 1 OFFSET 3)"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (f"UPDATE decisions SET probabilities = NULL {FIRST}", "column probabilities: is missing"),
        (f"UPDATE decisions SET probabilities = [0.5, 0.5] {FIRST}", "column probabilities: has another length"),
        (f"UPDATE decisions SET probabilities = [0.5, 0.5, 0.5] {FIRST}", "column probabilities: does not sum to 1"),
        (f"UPDATE decisions SET probabilities = [1.5, -0.5, 0.0] {FIRST}", "column probabilities: holds what is no"),
        (f"UPDATE decisions SET probabilities = ['NaN'::DOUBLE, 0, 1] {FIRST}", "column probabilities: holds what is"),
        (f"UPDATE decisions SET propensity = NULL {FIRST}", "column propensity: is missing"),
        (f"UPDATE decisions SET propensity = 0 {FIRST}", "column propensity: is not above 0"),
        (f"UPDATE decisions SET propensity = propensity / 2 {FIRST}", "column propensity: is not the probability of"),
        (f"UPDATE decisions SET chosen = 'huge' {FIRST}", "column chosen: names no model of arms"),
        (f"UPDATE decisions SET arms = NULL {FIRST}", "column arms: is missing"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(damaged, statement, message):
    path = damaged(statement)
    with pytest.raises(InvalidInput, match=rf"damaged.duckdb: decision sim-\d+ \(seq \d+\), {message}"):
        selected(path)


def test_a_fault_outside_the_selection_does_not_matter(damaged):
    path = damaged(f"UPDATE decisions SET probabilities = [0.5, 0.5, 0.5] {FIRST}")
    rounds, _ = selected(path, since_ts=1_700_000_100.0)
    assert rounds.selected == 300


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            f"UPDATE schema_version SET version = {SCHEMA_VERSION + 1}",
            f"version {SCHEMA_VERSION + 1}, and this program reads up to {SCHEMA_VERSION}",
        ),
        ("DROP TABLE schema_version", "it has no table schema_version"),
        ("ALTER TABLE decisions DROP propensity", "table decisions: column propensity is missing"),
        ("DROP TABLE rewards", "table rewards: column decision_id is missing"),
    ],
)
def test_a_log_of_another_form_is_refused(damaged, statement, message):
    with pytest.raises(InvalidInput, match=message):
        selected(damaged(statement))


def test_the_newest_version_is_that_of_the_service():
    from serving.analytics import SCHEMA_VERSION as WRITTEN

    assert SCHEMA_VERSION == WRITTEN


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "there is no file"),
        (lambda p: p.write_text("no log at all"), "is not a log of this service"),
        (lambda p: p.mkdir(), "holds neither log.duckdb nor Parquet files"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, make, message):
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(InvalidInput, match=message):
        selected(path)


def test_what_is_no_log_is_refused_at_once_also_where_its_path_speaks_of_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits for another process"))
    path = tmp_path / "clock" / "log.duckdb"
    path.parent.mkdir()
    path.write_bytes(b"x" * 8192)
    with pytest.raises(InvalidInput, match="is not a log of this service"):
        selected(path)


def test_a_parquet_file_without_a_needed_column_is_refused(logged, tmp_path):
    with duckdb.connect(str(logged[0]), read_only=True) as connection:
        connection.execute(f"COPY (SELECT * EXCLUDE (propensity) FROM decisions) TO '{tmp_path}/d.parquet'")
        connection.execute(f"COPY (SELECT 1 AS one) TO '{tmp_path}/e.parquet'")
    with pytest.raises(InvalidInput, match=r"d\.parquet, table decisions: column propensity is missing"):
        selected(tmp_path / "d.parquet")
    with pytest.raises(InvalidInput, match=r"e\.parquet is no table of a log"):
        selected(tmp_path / "e.parquet")
    (tmp_path / "f.parquet").write_text("nothing")
    with pytest.raises(InvalidInput, match=r"f\.parquet is not a Parquet file"):
        selected(tmp_path / "f.parquet")


def test_an_empty_selection_says_what_there_is(logged):
    with pytest.raises(InvalidInput, match="none of the 400 decisions of pool 'auto' is left by --where"):
        selected(logged[0], where="category = 'poetry'")
    with opened([logged[0]]) as log, pytest.raises(InvalidInput, match=r"no decision of a pool 'best'.*'auto' \(400\)"):
        SelectedRounds(log, Selection("best"))


@pytest.mark.parametrize("where", ["nothing = 1", "category ==== 'x'", "category = 'x' GROUP BY 1", "1; DROP TABLE x"])
def test_a_condition_that_is_none_is_refused(logged, where):
    with pytest.raises(InvalidInput, match="--where: is no condition on decisions"):
        selected(logged[0], where=where)


def test_features_of_several_versions_must_be_told_apart(damaged):
    path = damaged("UPDATE decisions SET context_version = 'other' WHERE ts < 1700000100")
    with pytest.raises(InvalidInput, match="several versions of the features"):
        selected(path)
    rounds, _ = selected(path, where="context_version <> 'other'")
    assert rounds.selected == 300


def test_a_log_that_is_being_written_is_waited_for(logged, tmp_path):
    """Another process holds the file for a moment, as the service does."""
    import subprocess
    import sys

    path = tmp_path / "held.duckdb"
    path.write_bytes(logged[0].read_bytes())
    code = f"import duckdb, time; c = duckdb.connect({str(path)!r}); print('held', flush=True); time.sleep(0.5)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        rounds, _ = selected(path)
    assert rounds.selected == 400


def test_a_decision_that_two_logs_hold_is_not_counted_twice(logged, tmp_path):
    """As logs of machines that share a store do; ids alone may be the same, as those of simulated runs are."""
    path = tmp_path / "other.duckdb"
    path.write_bytes(logged[0].read_bytes())
    with (
        pytest.raises(InvalidInput, match=r"hold the same decisions, such as .*; name one of them"),
        opened([logged[0], path]),
    ):
        pass
    with pytest.raises(InvalidInput, match="is named twice"), opened([logged[0], logged[0].parent]):
        pass
