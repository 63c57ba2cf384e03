"""How often the limits' tests are wrong, and how soon they are right, over many simulated arms."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest

from bandit import Arm, Constraints, Pool, Prompt
from bandit.evidence import RateTest
from bandit.filters import Filters

ALPHA = 0.01
R0 = 0.05
LIMITS = (("p95_latency_s", R0),)


def boundary(side, n_calls, rate):
    """For each count of calls the least extreme number of bad ones that proves `side` (−1 or n + 1 for none)."""
    test = RateTest(rate)
    edge = np.empty(n_calls, dtype=np.int64)
    bad = 0 if side == "violating" else -1

    def proved(s, n):
        test.bad, test.calls = s, n
        return test.log_evidence(side) >= -log(ALPHA)

    for n in range(1, n_calls + 1):  # the edge never moves down, since one more good call never helps "violating"
        if side == "violating":
            while bad <= n and not proved(bad, n):
                bad += 1
        else:
            while proved(bad + 1, n):
                bad += 1
        edge[n - 1] = bad
    return edge


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("side", ["violating", "compliant"])
def test_at_the_limit_a_proof_is_wrong_with_probability_at_most_alpha(side, rate):
    """Ville: P(ever within 3,000 calls) ≤ 0.01 at exactly r0. n=20,000 arms, seed 1: 0.01 + 3·√(0.0099/n) = 0.0121."""
    n_arms, n_calls = 20_000, 3_000
    edge = boundary(side, n_calls, rate)
    rng = np.random.default_rng(1)
    crossed = 0
    for _ in range(10):
        bad = np.cumsum(rng.random((n_arms // 10, n_calls), dtype=np.float32) < rate, axis=1, dtype=np.int32)
        hit = bad >= edge if side == "violating" else bad <= edge
        crossed += int(hit.any(axis=1).sum())
    assert crossed / n_arms <= ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / n_arms)
    assert crossed > 0  # a test that never decides would pass, too


def test_graded_values_between_0_and_1_are_no_likelier_to_be_proved_bad():
    """Values with mean r0 = 0.2: n=400 arms of 300 calls, seed 2; at most 0.01·400 + 3·√(400·0.0099) = 9."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(400):
        test = RateTest(0.2)
        for n, x in enumerate(rng.beta(0.5, 2.0, 300), 1):  # mean 0.5/2.5
            test.bad, test.calls = test.bad + x, n
            if test.log_evidence("violating") >= -log(ALPHA):
                wrong += 1
                break
    assert wrong <= 9


def test_at_the_limit_the_change_detector_keeps_its_promise():
    """P(R ≥ 2,000 within 200 calls) ≤ 200/2,000 = 0.1. n=1,000 arms, seed 3: at most 0.1 + 3·√(0.09/n) = 0.129."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(1_000):
        test = RateTest(R0)
        for x in (rng.random(200) < R0).astype(float):
            test.add(x)
            if test.change >= 2_000:
                alarms += 1
                break
    assert alarms / 1_000 <= 0.129


def calls_until_filtered(filters, xs):
    for n, x in enumerate(xs, 1):
        if any(t.to_state == "filtered" for t in filters.observe(0, 0, x)):
            return n
    return None


def test_from_4_to_99_percent_bad_is_filtered_within_15_calls_every_time():
    """300 arms, each after 500 to 2,000 calls at 4 %, seed 4; none may have been filtered while it was within."""
    rng = np.random.default_rng(4)
    delays = []
    for _ in range(300):
        filters = Filters(1, LIMITS)
        before = (rng.random(int(rng.integers(500, 2_001))) < 0.04).astype(float)
        assert calls_until_filtered(filters, before) is None
        delays.append(calls_until_filtered(filters, (rng.random(15) < 0.99).astype(float)))
    assert all(delay is not None for delay in delays)
    assert 4 <= np.mean(delays) <= 8  # "about six"


def test_arms_within_their_limit_are_hardly_ever_filtered():
    """400 arms of 1,500 calls at 1 to 4.5 % bad against 5 %, seed 5: at most 1 % of them, 4."""
    rng = np.random.default_rng(5)
    filtered = sum(
        calls_until_filtered(Filters(1, LIMITS), (rng.random(1_500) < rate).astype(float)) is not None
        for rate in np.linspace(0.01, 0.045, 400)
    )
    assert filtered <= 4


def test_arms_well_over_their_limit_are_filtered_and_well_within_are_admitted():
    """50 arms each at 15 % and at 1 % against 5 %, 600 calls, seed 6: no arm ends on the wrong side.

    The evidence grows by n·KL: 600·KL(0.15‖0.05) = 67 nats and 600·KL(0.01‖0.05) = 14 nats against ln 100 = 4.6.
    """
    rng = np.random.default_rng(6)
    for rate, state in ((0.15, "filtered"), (0.01, "admitted")):
        wrong = 0
        for _ in range(50):
            filters = Filters(1, LIMITS)
            for x in (rng.random(600) < rate).astype(float):
                filters.observe(0, 0, x)
                if filters.states[0] == state:
                    break
            wrong += filters.states[0] != state
        assert wrong == 0


def flagged(seed, slow, n, *, later=(), at=0):
    """(infeasible rows, chosen arms) of n requests; arm i is slow at a rate of slow[i], of later[i] from `at` on."""
    rng = np.random.default_rng(seed)
    pool = Pool([Arm(f"m{i}") for i in range(len(slow))], constraints=Constraints(p95_latency_s=1.0))
    rows, chosen = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
    for i in range(n):
        d = pool.choose(Prompt("q"), rng)
        rows[i], chosen[i] = d.infeasible, pool.names.index(d.chosen)
        rate = (later if later and i >= at else slow)[chosen[i]]
        pool.update(d, quality=float(rng.random() < 0.8), latency_s=1.5 if rng.random() < rate else 0.5)
    return rows, chosen


def test_a_pool_with_an_arm_within_its_limits_is_hardly_ever_given_up():
    """2 % slow beside 15 and 15 %, against 5 %: 10 seeds of 500 requests, of which at most 2 % are flagged.

    For a belief under a fifth the good arm needs two bad calls among its first 16, P(Bin(16, 0.02) ≥ 2) = 4 %, and then
    a dozen good ones end it: some 60 of 500 rows in one pool of 25.
    """
    assert np.mean([flagged(seed, (0.02, 0.15, 0.15), 500)[0].mean() for seed in range(10)]) <= 0.02


def test_most_requests_are_flagged_where_no_arm_keeps_its_limits_although_little_is_proved():
    """Twice the rate allowed, 10 seeds of 1,500 requests: more than half of the last 1,000 in each pool of two arms.

    Not all: an arm that its probes brought back is hope again until five calls say otherwise.
    """
    for seed in range(10):
        rows, _ = flagged(seed, (0.1, 0.1), 1_500)
        assert rows[500:].mean() > 0.5


def test_an_arm_that_recovers_ends_it():
    """12 % slow, both; after 1,000 requests one is at 0.5 %: 1,500 later nothing is flagged and it has the traffic.

    From 12 % it takes some 120 good calls for a belief of a fifth, which the share that is still explored has to bring.
    Seeds 0 to 9, the last 300 requests.
    """
    for seed in range(10):
        rows, chosen = flagged(seed, (0.12, 0.12), 2_800, later=(0.12, 0.005), at=1_000)
        assert rows[200:1_000].mean() > 0.5
        assert not rows[-300:].any()
        assert (chosen[-300:] == 1).mean() > 0.8
