"""Logs with every kind of decision: what may be judged, what else teaches, and whose a failed call's answer is."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
from hand_made_log import START_TS, HandMadeLog

from bandit import Arm, Constraints, Features, Pool, Price
from evaluation.candidates import named
from evaluation.judgement import Standards
from evaluation.learning import Learning
from evaluation.logs import opened
from evaluation.measures import Measures
from evaluation.replay import replay
from evaluation.replay_view import selection_data
from evaluation.report import report_data
from evaluation.selection import SelectedRounds, Selection
from serving.log_experience import read_log

SURE = {"a": 1.0, "b": 0.0}


@pytest.fixture
def log(tmp_path):
    return HandMadeLog(tmp_path / "log.duckdb")


def put_every_kind(log):
    """Three decisions that may be judged, and one of each kind that may not."""
    log.call("a", p={"a": 0.5, "b": 0.5}, feedback=[(1.0, {})])
    log.call("b", p={"a": 0.25, "b": 0.75}, mode="weighted", feedback=[(0.5, {})])
    log.call("a", p={"a": 0.96, "b": 0.04}, mode="canary", feedback=[(0.0, {})])
    log.call("a", p=SURE, mode="sticky", session="0" * 16, feedback=[(1.0, {})])
    log.call("a", p=SURE, mode="cached", origin="d0", feedback=[(1.0, {})])
    log.call("b", p={"a": 0.9, "b": 0.1}, mode="shadow", origin="d0", feedback=[(1.0, {})])
    log.call("a", p=SURE, mode="pinned", pool="a", feedback=[(1.0, {})])
    log.call("b", p={"a": 0.5, "b": 0.5}, mode="weighted", experiment="tone/b", feedback=[(1.0, {})])
    log.call("b", p={"a": 0.5, "b": 0.5}, mode="weighted", context=[], context_version="none", feedback=[(1.0, {})])


def judged(path, spec="fixed:a", **selection):
    with opened([path]) as log:
        rounds = SelectedRounds(log, Selection("auto", **selection))
        (found,) = replay(rounds, [named(spec, rounds.arms, Measures())], Standards(min_effective_samples=1.0))
        return found, selection_data(rounds, log.names)


def ips(found, metric="quality"):
    return next(e.value for e in found.metrics[metric].estimates if e.estimator == "IPS")


def test_only_what_was_drawn_for_its_call_alone_is_judged(log):
    """IPS of always a: (1 / 0.5 + 0 + 0 / 0.96) / 3."""
    put_every_kind(log)
    found, selection = judged(log.write())
    assert found.rounds == selection["decisions"] == selection["decisions_of_pool"] == 3
    assert ips(found) == pytest.approx(2 / 3)
    assert found.metrics["quality"].logged.value == pytest.approx(0.5)


def test_what_is_left_out_is_counted_and_said_why(log):
    put_every_kind(log)
    _, selection = judged(log.write())
    kinds = ("bypass", "cached", "experiment", "pinned", "shadow", "sticky")
    assert selection["left_out_by_mode"] == dict.fromkeys(kinds, 1)
    assert set(selection["left_out_because"]) == set(kinds)
    assert selection["left_out_because"]["cached"] == "answered from the cache: no model was asked"


def test_the_latest_are_counted_among_those_that_are_judged(log):
    put_every_kind(log)
    _, selection = judged(log.write(), latest=2)
    assert selection["decisions"] == 2


def test_a_session_an_experiment_and_a_shadow_are_there_to_learn_from(log):
    put_every_kind(log)
    with opened([log.write()]) as source:
        (chunk,) = SelectedRounds(source, Selection("auto")).chunks(selected_only=False)
    assert chunk.selected.tolist() == [True, True, True, False, False, False]
    assert chunk.beside.tolist() == [False, False, False, False, True, False]
    assert chunk.drawn.tolist() == chunk.selected.tolist()


def learned(path, arms="ab", **more):
    """A pool that was taken through a log, to its end."""
    pool = Pool([Arm(name) for name in arms], name="auto", features=Features(text=None), **more)
    candidate = Learning("own", lambda: pool, Measures())
    with opened([path]) as log:
        chunks = list(SelectedRounds(log, Selection("auto")).chunks(selected_only=False))
    for chunk in chunks:
        candidate.probabilities(chunk)
    candidate._follower._learn_before(np.inf)
    return pool


def counts(pool):
    """Graded answers that each model's quality head has seen."""
    return np.round(pool.heads.counts(0, pool.step), 2).tolist()


WIDE = {"context": [1.0] + [0.0] * (Features(text=None).dimension - 1), "context_version": Features(text=None).version}


@pytest.mark.parametrize(
    ("more", "expected", "steps"),
    [
        ({}, [1.0, 0.0], 1),
        ({"mode": "sticky", "p": SURE}, [1.0, 0.0], 1),
        ({"mode": "weighted", "experiment": "tone/a"}, [1.0, 0.0], 1),
        ({"mode": "shadow", "origin": "d9", "p": SURE}, [1.0, 0.0], 0),
        ({"mode": "cached", "origin": "d9", "p": SURE}, [0.0, 0.0], 0),
        ({"mode": "pinned", "p": SURE}, [0.0, 0.0], 0),
    ],
)
def test_a_candidate_is_taught_what_taught_the_service(log, more, expected, steps):
    """Each beside one decision on b that was judged and not graded; a shadow does not move the pool's clock."""
    log.call("a", feedback=[(1.0, {})], **WIDE, **more)
    log.call("b", ("b", "cancelled", 0.1, None), **WIDE)
    pool = learned(log.write())
    assert counts(pool) == expected
    assert pool.step == steps + 1


def test_after_a_fallback_each_model_is_taught_its_own(log):
    """The failure of a is quality 0 of a; the grade of 1 is b's, who answered."""
    log.call("a", ("a", "error", 0.2, None, 500), ("b", "ok", 1.0, 0.3), feedback=[(1.0, {})], **WIDE)
    pool = learned(log.write())
    assert counts(pool) == [1.0, 1.0]
    x = np.array(WIDE["context"])
    a, b = (pool.heads.expect(0, arm, x, pool.step) for arm in (0, 1))
    assert a < 0.5 < b


def test_a_call_that_another_model_answered_is_the_chosen_ones_failure(log):
    """Always a: quality (0 + 1) / 2, cost (0.1 + 0.2) / 2, without the 0.4 of b; b's grade is nobody's here."""
    certain = {"p": SURE}
    log.call("a", ("a", "error", 1.0, 0.1, 500), ("b", "ok", 5.0, 0.4), feedback=[(0.75, {})], **certain)
    log.call("a", ("a", "ok", 1.0, 0.2), feedback=[(1.0, {})], **certain)
    found, selection = judged(log.write())
    assert ips(found) == pytest.approx(0.5)
    assert ips(found, "cost_usd") == pytest.approx(0.15)
    assert ips(found, "reward") == pytest.approx(0.5)
    assert (selection["fallbacks"], selection["fallback_usd"]) == (1, pytest.approx(0.4))


def test_a_retry_of_the_same_model_is_part_of_its_answer(log):
    """Two attempts of a: graded 1, cost 0.1 + 0.2, time 1 + 2 s; nothing failed in the end."""
    log.call("a", ("a", "error", 1.0, 0.1, 503), ("a", "ok", 2.0, 0.2), feedback=[(1.0, {})])
    with opened([log.write()]) as source:
        (chunk,) = SelectedRounds(source, Selection("auto")).chunks()
    assert (chunk.quality[0], chunk.cost_usd[0], chunk.latency_s[0]) == pytest.approx((1.0, 0.3, 3.0))
    assert chunk.failed.tolist() == [False]


def test_a_request_that_the_chosen_model_could_not_take_says_nothing_of_it(log):
    """A context too long for a (400) is no failure of a, and b's answer is no answer of a."""
    log.call("a", ("a", "error", 0.1, None, 400), ("b", "ok", 1.0, 0.3), feedback=[(1.0, {})])
    log.call("a", feedback=[(0.5, {})])
    with opened([log.write()]) as source:
        (chunk,) = SelectedRounds(source, Selection("auto")).chunks()
    assert np.isnan(chunk.quality[0])
    assert np.isnan(chunk.logged_reward[0])
    assert chunk.failed.tolist() == [False, False]


def test_a_report_counts_what_models_did_and_draws_that_were_draws(log):
    """Pinned and cached asked no model of the pool's accord; a shadow did, but is no call of anybody."""
    put_every_kind(log)
    with opened([log.write()]) as source:
        data = report_data(
            source,
            Selection("auto"),
            limits={},
            measures_of=lambda _: Measures(),
            others=lambda *_: [],
            standards=Standards(min_effective_samples=2.0, replicates=50),
        )
    assert data["selection"]["left_out_by_mode"] == {"cached": 1, "pinned": 1}
    assert (data["selection"]["decisions"], data["spend"]["usd"]) == (6, pytest.approx(0.07))
    assert {row["model"]: row["overall"]["calls"] for row in data["models"]} == {"a": 3, "b": 4}
    assert {row["model"]: row["calls"] for row in data["traffic"]["by_model"]} == {"a": 3, "b": 3}
    assert data["calibration"]["draws"] == 3


def test_a_warm_start_learns_whoever_chose_the_model(log):
    """Each of a's graded answers but the pinned call's, the cache's, and the one that was made without a context."""
    kinds = ("bandit", "weighted", "canary", "sticky", "shadow", "cached", "pinned")
    for i, mode in enumerate(kinds):
        log.call("a", mode=mode, feedback=[(i / 8, {})], **WIDE)
    log.call("a", mode="weighted", context=[], context_version="none", feedback=[(1.0, {})])
    found = read_log(log.write(), "auto", ["a", "b"], Features(text=None), take_imputed=True)
    quality = found.experience["a"].quality
    assert quality.tolist() == [0.0, 0.125, 0.25, 0.375, 0.5]


@pytest.fixture
def as_of_before(log):
    """A log as version 3 wrote it: none of the columns that came with traffic management."""

    def made():
        log.call("a", feedback=[(1.0, {})])
        log.call("b", mode="pinned", p={"a": 0.0, "b": 1.0}, pool="b", ts=START_TS + 1)
        path = log.write()
        with duckdb.connect(str(path)) as connection:
            for column in ("key_id", "session", "experiment", "origin"):
                connection.execute(f"ALTER TABLE decisions DROP COLUMN {column}")
            for column in ("endpoint", "cached_tokens", "saved_usd"):
                connection.execute(f"ALTER TABLE outcomes DROP COLUMN {column}")
            connection.execute("DROP TABLE changes")
            connection.execute("UPDATE schema_version SET version = 3")
        return path

    return made


@pytest.mark.parametrize("parquet", [False, True])
def test_a_log_of_before_is_read_with_nothing_in_the_new_columns(as_of_before, tmp_path, parquet):
    path = as_of_before()
    if parquet:
        folder = tmp_path / "tables"
        folder.mkdir()
        with duckdb.connect(str(path), read_only=True) as connection:
            for table in ("decisions", "outcomes", "rewards"):
                connection.execute(f"COPY {table} TO '{folder}/{table}.parquet' (FORMAT parquet)")
        path = folder
    found, selection = judged(path)
    assert found.rounds == 1
    assert selection["left_out_by_mode"] == {"pinned": 1}


def test_feedback_on_a_call_that_was_given_up_teaches_a_candidate_as_little_as_the_service(log):
    """Whoever stops an answer and grades it: the service logs that and learns nothing, since there is no answer."""
    log.call("a", ("a", "cancelled", 0.3, 0.01), feedback=[(0.0, {})], **WIDE)
    log.call("a", ("a", "error", 0.3, None, 400), feedback=[(0.0, {})], **WIDE)
    log.call("b", feedback=[(1.0, {})], **WIDE)
    assert counts(learned(log.write())) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("limit", "latency_s", "first_token_s", "seen"),
    [
        ("p95_latency_s", 3.0, None, [1, 1]),
        ("p95_latency_s", 1.0, None, [0, 1]),
        ("p95_time_to_first_token_s", 3.0, 2.5, [1, 1]),
        ("p95_time_to_first_token_s", 3.0, 0.5, [0, 1]),
    ],
)
def test_a_candidates_limits_are_tested_by_the_calls_that_tested_the_services(
    log, limit, latency_s, first_token_s, seen
):
    """A call given up counts once it is past the limit, and streams' first tokens count: limits of 2 s."""
    log.call("a", ("a", "cancelled", latency_s, None), first_token_s=first_token_s, **WIDE)
    log.call("b", ("b", "ok", 3.0, 0.01), first_token_s=1.0, **WIDE)
    pool = learned(log.write(), constraints=Constraints(**{limit: 2.0}))
    assert [pool.filters.evidence(arm, 0).calls for arm in (0, 1)] == seen


def test_own_prices_are_those_of_cached_tokens_and_of_calls_too(log):
    """1,000 tokens in, 400 of them cached, 100 out at 2, 0.5 and 10 USD a million, and 0.003 a call, by hand 0.0054."""
    log.call("a", tokens=(1_000, 400, 100))
    log.call("a", tokens=(1_000, None, 100))
    measures = Measures(prices={"a": Price(2.0, 10.0, 0.5, 0.003), "b": None})
    with opened([log.write()]) as source:
        (chunk,) = SelectedRounds(source, Selection("auto")).chunks()
    assert measures.cost_usd(chunk).tolist() == pytest.approx([0.0054, 0.006])
