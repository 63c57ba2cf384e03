"""A warm start: the same as having seen it all at step 0, as strong as stated, with the budget's price found."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from small_pools import outcome, rng

from bandit import Arm, Features, Feedback, Pool, Price, Prompt, Thompson
from bandit.errors import InvalidInput
from bandit.posterior import LATENCY, QUALITY, TOKENS
from bandit.warmup import Experience, warm_start

NAN = float("nan")


def pool_of(n=2, **kwargs):
    kwargs.setdefault("half_life_requests", None)
    prices = [Price(1.0, 2.0 * 10**i) for i in range(n)]
    return Pool([Arm(f"m{i}", price) for i, price in enumerate(prices)], features=Features(["a", "b"]), **kwargs)


def contexts(pool, n):
    return [pool.features.extract(Prompt(f"question {i % 5}", i % 90, category="ab"[i % 2])) for i in range(n)]


def experience(n, seed=0, quality=(0.7, 0.7), tokens=100.0):
    """By category of alternating rows: chance to be right; lognormal tokens and seconds."""
    r = np.random.default_rng(seed)
    return Experience(
        quality=(r.random(n) < np.resize(quality, n)).astype(float),
        output_tokens=np.round(tokens * r.lognormal(0.0, 0.5, n)),
        cost_usd=np.full(n, NAN),
        latency_s=r.lognormal(0.0, 0.3, n),
    )


def one_by_one(pool, seen_contexts, by_arm):
    for name, seen in by_arm.items():
        for i, context in enumerate(seen_contexts):
            d = pool.decide(context, rng(), decision_id="d", ts=0.0)
            o = outcome(d, model=name, latency_s=float(seen.latency_s[i]), output_tokens=int(seen.output_tokens[i]))
            pool.apply_outcome(d, o)
            pool.apply_feedback(d, Feedback("d", 0.0, float(seen.quality[i])), model=name)
    pool.heads.consider_slopes(0)


def test_it_equals_having_observed_every_row_at_step_0():
    warm, cold = pool_of(), pool_of()
    seen = contexts(warm, 80)
    by_arm = {"m0": experience(80, 1), "m1": experience(80, 2)}
    warm_start(warm, seen, by_arm)
    one_by_one(cold, seen, by_arm)
    one, two = (pool.heads.state() for pool in (warm, cold))
    for name in ("gram", "moment", "square", "weight"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-12)
    np.testing.assert_array_equal(one["uses_slopes"], two["uses_slopes"])
    for context in seen[:4]:
        x = context.x.astype(float)
        for mine, theirs in zip(warm.heads.predict(x, 0), cold.heads.predict(x, 0), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    assert warm.step == 0


def test_what_was_not_measured_is_not_learned():
    """Two of three rows have a quality, one has tokens, none a latency; without cost and tokens it teaches neither."""
    pool = pool_of()
    seen = Experience(*(np.array(v) for v in ([1.0, NAN, 1.0], [NAN, 99.0, NAN], [NAN] * 3, [NAN] * 3)))
    warm_start(pool, contexts(pool, 3), {"m1": seen})
    counts = [pool.heads.counts(head, 0).tolist() for head in (QUALITY, TOKENS, LATENCY)]
    assert counts == [[0, 2], [0, 1], [0, 0]]
    assert pool.heads.averages(QUALITY, 0)[1] == pytest.approx(2.5 / 3)
    assert pool.heads.averages(TOKENS, 0)[1] == pytest.approx((5.0 + log(100)) / 2)


def test_a_cost_stands_in_for_a_missing_count_of_tokens():
    """m1 costs 20 USD a million output tokens: 0.00198 USD are 99 of them, for a prompt of no tokens."""
    pool = pool_of()
    seen = Experience(*(np.array([v]) for v in (NAN, NAN, 0.00198, NAN)))
    warm_start(pool, [pool.features.extract(Prompt(category="a"))], {"m1": seen})
    assert pool.heads.averages(TOKENS, 0)[1] == pytest.approx((5.0 + log(100)) / 2)


def test_effective_samples_weaken_every_head_to_so_many_and_keep_its_averages():
    full, weak = pool_of(), pool_of()
    seen = contexts(full, 200)
    by_arm = {"m0": experience(200, 1), "m1": experience(200, 2)}
    for values in (by_arm["m1"].quality, by_arm["m1"].output_tokens, by_arm["m1"].latency_s):
        values[40:] = NAN
    warm_start(full, seen, by_arm)
    warm_start(weak, seen, by_arm, effective_samples=50)
    np.testing.assert_allclose(full.heads.counts(QUALITY, 0), [200, 40])
    np.testing.assert_allclose(weak.heads.counts(QUALITY, 0), [50, 40])
    total = float(by_arm["m0"].quality.sum())
    assert weak.heads.averages(QUALITY, 0)[0] == pytest.approx((0.5 + total / 4) / 51)  # the prior counts for one
    np.testing.assert_array_equal(weak.heads.uses_slopes, full.heads.uses_slopes)


def test_a_wrong_start_is_outweighed_after_as_many_calls_as_it_counts_for():
    """Prior ½ worth 1, 50 wrong answers' worth of 0, then 50 rights: (0.5 + 50)/101 = ½; drift detection off."""
    pool = pool_of()
    nothing = Experience(*(np.full(500, v) for v in (0.0, NAN, NAN, NAN)))
    warm_start(pool, contexts(pool, 500), {"m0": nothing, "m1": nothing}, effective_samples=50)
    assert pool.heads.averages(QUALITY, 0)[0] == pytest.approx(0.5 / 51)
    d = pool.decide(Prompt(category="a"), rng(), decision_id="d", ts=0.0)
    for _ in range(50):
        pool.apply_feedback(d, Feedback("d", 0.0, 1.0), model="m0", replay=True)
    assert pool.heads.averages(QUALITY, 0)[0] == pytest.approx(0.5)


def test_slopes_are_decided_on_the_full_data_before_it_is_weakened():
    pool = pool_of(slope_precision=20.0)
    seen = contexts(pool, 400)
    by_arm = {"m0": experience(400, 1, (0.95, 0.2)), "m1": experience(400, 2, (0.2, 0.95))}
    warm_start(pool, seen, by_arm, effective_samples=20)
    assert pool.heads.uses_slopes[QUALITY]
    quality = [pool.utilities(context).quality for context in seen[:2]]
    assert quality[0][0] > quality[0][1]
    assert quality[1][0] < quality[1][1]


def spent(pool, seen):
    return float(np.mean([pool.expected_cost(context) for context in seen]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_multiplier_starts_where_the_budget_is_spent(share):
    """A better arm of ten times the cost; budget between the two: spent within 3 % on the warm contexts."""
    free = pool_of(policy=Thompson(exploration_floor=0.01))
    seen = contexts(free, 300)
    by_arm = {"m0": experience(300, 1, (0.5, 0.5)), "m1": experience(300, 2, (0.9, 0.9))}
    warm_start(free, seen, by_arm)
    costs = np.array([free.utilities(context).cost_usd for context in seen]).mean(axis=0)
    budget = float(costs[0] + share * (costs[1] - costs[0]))
    pool = pool_of(usd_per_request=budget)
    warm_start(pool, seen, by_arm)
    assert pool.pacer.multiplier > 0
    assert spent(pool, seen) == pytest.approx(budget, rel=0.03)


def test_a_budget_that_is_never_reached_has_no_price():
    pool = pool_of(usd_per_request=1.0)
    warm_start(pool, contexts(pool, 50), {"m0": experience(50, 1), "m1": experience(50, 2)})
    assert pool.pacer.multiplier == 0.0


def test_a_budget_that_cannot_be_kept_is_priced_so_that_the_least_is_spent():
    pool = pool_of(usd_per_request=1e-6)
    seen = contexts(pool, 100)
    warm_start(pool, seen, {"m0": experience(100, 1), "m1": experience(100, 2)})
    cheapest = float(np.mean([pool.utilities(context).cost_usd.min() for context in seen]))
    assert 0 < pool.pacer.multiplier <= 10
    assert spent(pool, seen) == pytest.approx(cheapest, rel=0.01)


def test_bounds_know_how_far_the_warm_rows_went_beyond_what_is_expected():
    """Of 300 rows all are looked at, the last 256 kept; a mean of realised over expected near 1."""
    pool = pool_of()
    seen = contexts(pool, 300)
    warm_start(pool, seen, {"m0": experience(300, 1)})
    state = pool.bounds.state()
    assert [[len(values) for values in row] for row in state] == [[257, 1], [257, 1]]
    assert [row[0][0] for row in state] == [300.0, 300.0]
    assert np.exp(state[1][0][1:]).mean() == pytest.approx(1.0, abs=0.15)


def test_bounds_learn_of_the_last_512_rows_only_and_of_what_was_measured():
    """Every tenth latency is missing: of rows 88 to 599 those are 90, 100, …, 590. m1 has neither cost nor price."""
    pool = pool_of()
    pool.set_prices({"m1": None})
    seen = experience(600, 1)
    seen.latency_s[::10] = NAN
    warm_start(pool, contexts(pool, 600), {"m0": seen, "m1": seen})
    assert [[values[0] for values in row] for row in pool.bounds.state()] == [[512.0, 0.0], [461.0, 461.0]]


def test_contexts_of_other_features_or_none_are_refused():
    pool = pool_of()
    other = Pool([Arm("m0")], features=Features(["a"]))
    for seen in ([], contexts(other, 3)):
        with pytest.raises(InvalidInput, match="contexts"):
            warm_start(pool, seen, {"m0": experience(3)})
    assert not pool.heads.weight.any()
