"""What a graded benchmark answer teaches a pool: evidence on accuracy, a bounded warm start, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from small_pools import make, rng

from bandit import Constraints, Features, LogisticThompson, Prompt
from bandit.posterior import LATENCY, QUALITY, TOKENS

ACCURATE = Constraints(min_accuracy=0.8)


def states(pool, model, quality, times):
    """The states that a model's transitions lead to, over so many equal answers."""
    return [change.to_state for _ in range(times) for change in pool.apply_benchmark(model, quality)]


def test_a_model_leaves_the_feasible_set_on_bad_answers_and_comes_back_on_good_ones():
    """Back after 20: with r0 = 0.2 against 0.3 a good answer has ratio 8/7, and Σ (8/7)^k passes 100 at k = 20."""
    pool = make(2, constraints=ACCURATE)
    assert states(pool, "m0", 0.0, 10) == ["filtered"]
    assert pool.filters.compliance()[0] == 0.0
    pool = make(2, constraints=ACCURATE)
    while pool.filters.states[0] != "filtered":
        pool.apply_benchmark("m0", 0.0)
    assert states(pool, "m0", 1.0, 19) == []
    assert states(pool, "m0", 1.0, 1) == ["probing"]
    assert pool.filters.compliance()[0] > 0.0
    assert states(pool, "m0", 1.0, 40) == ["admitted"]
    assert pool.filters.states == ("admitted", "unknown")


def test_an_answer_teaches_quality_in_the_context_of_its_category_alone():
    """Not tokens, not latency, not another arm; and the pool's clock stands still."""
    features = Features(["law", "math"], text=None)
    pool = make(2, features=features, half_life_requests=None)
    pool.apply_benchmark("m1", 1.0, "math")
    x = features.extract(Prompt(category="math")).x.astype(float)
    np.testing.assert_array_equal(pool.heads.gram[QUALITY, 1], np.outer(x, x))
    assert pool.heads.counts(QUALITY, 0).tolist() == [0.0, 1.0]
    assert pool.heads.counts(TOKENS, 0).tolist() == pool.heads.counts(LATENCY, 0).tolist() == [0.0, 0.0]
    assert pool.step == 0


def test_benchmarks_stop_teaching_at_500_graded_answers_and_go_on_once_enough_is_forgotten():
    """Evidence on the limit goes on. With a half-life of 100 requests, 500 answers count for 250 after 100."""
    pool = make(1, constraints=ACCURATE, half_life_requests=100.0)
    for _ in range(600):
        pool.apply_benchmark("m0", 1.0)
    assert pool.heads.counts(QUALITY, pool.step)[0] == pytest.approx(500.0)
    assert pool.filters.evidence(0, 0).calls == 600
    for _ in range(100):
        pool.advance(pool.decide(Prompt(), rng(), decision_id="d", ts=0.0))
    assert pool.heads.counts(QUALITY, pool.step)[0] == pytest.approx(250.0)
    pool.apply_benchmark("m0", 0.0)
    assert pool.heads.counts(QUALITY, pool.step)[0] == pytest.approx(251.0)


def test_feedback_goes_on_teaching_where_benchmarks_have_stopped():
    pool = make(1, half_life_requests=None)
    for _ in range(501):
        pool.apply_benchmark("m0", 1.0)
    for _ in range(3):
        pool.update(pool.choose(Prompt(), rng()), quality=0.0)
    assert pool.heads.counts(QUALITY, pool.step)[0] == pytest.approx(503.0)


def test_a_pool_that_trusts_feedback_alone_gets_the_warm_start_and_no_evidence():
    pool = make(1, constraints=Constraints(min_accuracy=0.8, accuracy_evidence="feedback"))
    assert states(pool, "m0", 0.0, 50) == []
    assert pool.filters.evidence(0, 0).calls == 0
    assert pool.heads.counts(QUALITY, 0)[0] == pytest.approx(50.0)


def test_benchmarks_are_not_watched_for_drift():
    """A run of bad answers after good feedback resets nothing, and leaves the detector as it was."""
    pool = make(1)
    for _ in range(300):
        pool.update(pool.choose(Prompt(), rng()), quality=1.0)
    before = pool.drift.state()
    assert [change for _ in range(300) for change in pool.apply_benchmark("m0", 0.0)] == []
    assert pool.drift.state() == before
    assert pool.heads.resets == {}


def test_benchmarks_alone_do_not_end_a_newcomers_capped_share():
    """They say nothing about its cost or latency under traffic."""
    from bandit import Arm

    pool = make(2)
    pool.add_arm(Arm("new"))
    states(pool, "new", 1.0, 100)
    assert pool.newcomers.names == {"new"}


def test_a_logistic_head_is_warmed_too():
    pool = make(1, policy=LogisticThompson())
    before = pool.utilities(pool.features.extract(Prompt())).quality[0]
    states(pool, "m0", 1.0, 100)
    pool.heads.settle(pool.step)
    assert pool.utilities(pool.features.extract(Prompt())).quality[0] > max(before, 0.9)
