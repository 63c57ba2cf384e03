"""The e-values against integration, and the states, shares and caps they lead to, step by step."""

from __future__ import annotations

from math import asin, cos, inf, log, pi, sin, sqrt

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom

from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.evidence import RateTest
from bandit.filters import Filters, FilterSettings

R0 = 0.05
HALF_LIFE_CALLS = 150  # of the belief of compliance, as documented
LIMITS = (("p95_latency_s", R0),)


def e_value(side, s, n, r0):
    """The mixture of likelihood ratios over one side of r0, by integration with θ = sin²φ, where it is smooth.

    Beta(½, ½) is uniform in φ; the likelihood is taken relative to its largest value so that nothing underflows.
    """
    edge, mode = asin(sqrt(r0)), asin(sqrt(s / n)) if n else 0.0
    low, high = (edge, pi / 2) if side == "violating" else (0.0, edge)

    def log_likelihood(phi):
        bad = 2 * s * log(sin(phi)) if s > 0 else 0.0
        good = 2 * (n - s) * log(cos(phi)) if n > s else 0.0
        return bad + good

    null = (s * log(r0)) + (n - s) * log(1 - r0)
    top = log_likelihood(min(max(mode, low + 1e-12), high - 1e-12))
    points = [p for p in (mode, mode - 3 / sqrt(n + 1), mode + 3 / sqrt(n + 1)) if low < p < high]
    area = quad(lambda phi: np.exp(log_likelihood(phi) - top), low, high, points=points or None, limit=400)[0]
    return log(area / (high - low)) + top - null


def test_of(r0, s, n):
    test = RateTest(r0)
    test.bad, test.calls = s, n
    return test


test_of.__test__ = False

CASES = [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (5, 100), (20, 100), (2.75, 10), (60, 1000), (30, 1000), (0.4, 3)]


@pytest.mark.parametrize("side", ["violating", "compliant"])
@pytest.mark.parametrize("r0", [0.05, 0.2, 0.5])
@pytest.mark.parametrize(("s", "n"), CASES)
def test_the_closed_form_is_the_integral_over_the_alternatives(side, r0, s, n):
    assert test_of(r0, s, n).log_evidence(side) == pytest.approx(e_value(side, s, n, r0), abs=1e-7)


def test_without_calls_there_is_no_evidence():
    test = RateTest(R0)
    assert test.log_evidence("violating") == pytest.approx(0.0)
    assert test.log_evidence("compliant") == pytest.approx(0.0)
    assert np.isnan(test.rate)
    assert test.change == 0.0


def test_evidence_against_another_boundary():
    assert test_of(R0, 1, 30).log_evidence("compliant", 0.15) == pytest.approx(e_value("compliant", 1, 30, 0.15))


def test_hopeless_evidence_is_minus_infinity_and_no_error():
    assert test_of(0.5, 0, 100_000).log_evidence("violating") == -inf
    assert test_of(0.05, 100_000, 100_000).log_evidence("compliant") == -inf


def test_the_mean_e_value_under_the_boundary_rate_is_one():
    """Summed over every count of bad calls: an e-value that were larger on average would be no proof."""
    s = np.arange(61)
    for side in ("violating", "compliant"):
        values = np.exp([test_of(R0, int(k), 60).log_evidence(side) for k in s])
        assert binom.pmf(s, 60, R0) @ values == pytest.approx(1.0, abs=1e-9)


def test_the_change_detector_by_hand():
    """R ← (1 + R)·LR, averaged over the alternatives r0 + (1 − r0)·g; the mean of g is 4.17/12."""
    test = RateTest(R0)
    test.add(1.0)
    assert test.change == pytest.approx((R0 + (1 - R0) * 4.17 / 12) / R0)
    g = np.array([0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.95])
    test.add(0.0)
    assert test.change == pytest.approx(np.mean((1 + (R0 + (1 - R0) * g) / R0) * (1 - g)))


def belief(s, n, r0):
    """P(rate ≤ r0) after n unfaded calls from the prior Beta(1, b) whose median is r0."""
    b = log(0.5) / log(1 - r0)
    assert beta.cdf(r0, 1, b) == pytest.approx(0.5)

    def density(t):
        return t**s * (1 - t) ** (n - s) * beta.pdf(t, 1, b)

    return quad(density, 0, r0)[0] / (quad(density, 0, r0)[0] + quad(density, r0, 1)[0])


@pytest.mark.parametrize("r0", [0.05, 0.2])
@pytest.mark.parametrize("calls", [[], [0], [1], [0, 0, 1, 0, 0], [1, 1, 1], [0] * 20, [0.3, 0.7, 0.1]])
def test_compliance_is_the_bayesian_belief_from_recent_calls(r0, calls):
    test = RateTest(r0)
    for x in calls:
        test.add(x)
    fade = 0.5 ** (1 / 150)
    weights = fade ** np.arange(len(calls) - 1, -1, -1.0)
    assert test.compliance == pytest.approx(belief(weights @ np.array(calls), weights.sum(), r0), abs=1e-6)


def test_compliance_fades_and_is_never_nothing():
    test = RateTest(R0)
    for _ in range(200):
        test.add(1.0)
    assert test.compliance == 1e-6
    for _ in range(20 * HALF_LIFE_CALLS):
        test.add(0.0)
    assert test.compliance > 0.9


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_limit_rate_lies_between_0_and_1(rate):
    with pytest.raises(InvalidInput, match="limit_rate"):
        RateTest(rate)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", 0.0),
        ("alpha", 0.5),
        ("alpha", float("nan")),
        ("calls_between_false_alarms", 99),
        ("probe_share", 0.0),
        ("probe_share", 0.3),
        ("unknown_share", 0.0),
        ("unknown_share", 1.1),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidInput, match=field):
        FilterSettings(**{field: value})


def first_proof(side, *, bad, threshold, r0=R0):
    """After how many equal calls the integral passes the threshold."""
    return next(n for n in range(1, 1000) if e_value(side, n * bad, n, r0) >= log(threshold))


def feed(filters, arm, bad, times, limit=0):
    return [t for _ in range(times) for t in filters.observe(arm, limit, bad)]


def test_good_calls_admit_exactly_when_the_integral_says_so():
    filters = Filters(1, LIMITS)
    n = first_proof("compliant", bad=0.0, threshold=100)
    assert filters.states == ("unknown",)
    assert feed(filters, 0, 0.0, n - 1) == []
    (transition,) = feed(filters, 0, 0.0, 1)
    assert filters.states == ("admitted",)
    assert (transition.from_state, transition.to_state, transition.limit) == ("unknown", "admitted", "p95_latency_s")
    assert (transition.calls, transition.rate, transition.limit_rate) == (n, 0.0, R0)
    assert log(transition.evidence) == pytest.approx(e_value("compliant", 0, n, R0), abs=1e-6)


def test_bad_calls_filter_exactly_when_the_integral_says_so():
    filters = Filters(2, LIMITS)
    n = first_proof("violating", bad=1.0, threshold=100)
    assert feed(filters, 1, 1.0, n - 1) == []
    (transition,) = feed(filters, 1, 1.0, 1)
    assert filters.states == ("unknown", "filtered")
    assert (transition.arm, transition.calls, transition.rate, transition.reason) == (1, n, 1.0, "proved violating")
    assert list(filters.compliance() > 0) == [True, False]


GOOD_RUN = (
    22  # Σ_{k=1..n} (0.95/0.85)^k passes 100 first at n = 22: (1.1176^23 - 1.1176)/0.1176 = 113, at 21: 100 - 0.4
)


def test_a_filtered_arm_comes_back_by_probes_then_by_proof():
    """The detector of 0.05 against 0.15 must pass 100; the certificate then needs its own evidence, from the start."""
    filters = Filters(1, LIMITS)
    feed(filters, 0, 1.0, first_proof("violating", bad=1.0, threshold=100))
    run = next(n for n in range(1, 100) if sum((0.95 / 0.85) ** k for k in range(1, n + 1)) >= 100)
    assert run == GOOD_RUN
    assert feed(filters, 0, 0.0, run - 1) == []
    assert filters.states == ("filtered",)
    (transition,) = feed(filters, 0, 0.0, 1)
    assert (transition.from_state, transition.to_state) == ("filtered", "probing")
    rest = first_proof("compliant", bad=0.0, threshold=100)
    assert feed(filters, 0, 0.0, rest - 1) == []
    (transition,) = feed(filters, 0, 0.0, 1)
    assert (transition.from_state, transition.to_state) == ("probing", "admitted")


def test_bad_probes_of_a_long_outage_are_not_held_against_a_recovered_arm():
    """However many probes were bad, a run of good ones is about as long as without them."""
    filters = Filters(1, LIMITS)
    feed(filters, 0, 1.0, first_proof("violating", bad=1.0, threshold=100))
    feed(filters, 0, 1.0, 500)
    assert feed(filters, 0, 0.0, GOOD_RUN - 1) == []
    assert [t.to_state for t in feed(filters, 0, 0.0, 1)] == ["probing"]
    assert filters.compliance()[0] == pytest.approx(0.5, abs=1e-6)  # the prior: nothing is known of it now


def test_a_probing_arm_that_violates_is_filtered_again():
    filters = with_states("probing")
    assert [t.to_state for t in feed(filters, 0, 1.0, 10)] == ["filtered"]


def test_an_admitted_arm_that_changes_is_filtered_although_its_average_is_good():
    filters = Filters(1, LIMITS)
    feed(filters, 0, 0.0, 2000)
    (transition,) = feed(filters, 0, 1.0, 15)
    assert (transition.from_state, transition.to_state, transition.reason) == (
        "admitted",
        "filtered",
        "change detected",
    )
    assert transition.rate < R0


def test_an_arm_that_lost_its_certificate_needs_a_new_one():
    filters = Filters(1, LIMITS)
    feed(filters, 0, 0.0, 300)
    while filters.states != ("filtered",):
        feed(filters, 0, 1.0, 1)
    n = first_proof("compliant", bad=0.0, threshold=100)
    assert [t.to_state for t in feed(filters, 0, 0.0, GOOD_RUN + n - 1)] == ["probing"]
    assert [t.to_state for t in feed(filters, 0, 0.0, 1)] == ["admitted"]


def test_an_arm_is_admitted_when_every_limit_is_proved():
    filters = Filters(1, (*LIMITS, ("min_accuracy", 0.2)))
    feed(filters, 0, 0.0, 500, limit=0)
    assert filters.states == ("unknown",)
    assert [t.limit for t in feed(filters, 0, 0.0, 100, limit=1)] == ["min_accuracy"]
    assert filters.states == ("admitted",)


def test_only_probes_of_the_broken_limit_bring_an_arm_back():
    filters = Filters(1, (*LIMITS, ("min_accuracy", 0.2)))
    feed(filters, 0, 1.0, 5, limit=0)
    feed(filters, 0, 0.0, 500, limit=1)
    assert filters.states == ("filtered",)


def test_drift_sends_an_admitted_arm_back_to_prove_itself():
    filters = Filters(1, LIMITS)
    feed(filters, 0, 0.0, 500)
    (transition,) = filters.restart(0, 0, "drift in latency")
    assert (transition.from_state, transition.to_state, transition.reason) == (
        "admitted",
        "unknown",
        "drift in latency",
    )
    assert filters.evidence(0, 0).calls == 0
    assert filters.restart(0, 0, "again") == []
    n = first_proof("compliant", bad=0.0, threshold=100)
    assert [t.to_state for t in feed(filters, 0, 0.0, n)] == ["admitted"]


def probe_share(filters, arm=0):
    p = np.zeros(filters.n_arms)
    p[1 - arm] = 1.0
    return filters.shape(p)[arm]


def test_a_probe_share_follows_the_evidence_of_recovery():
    """R ← (1 + R)·0.95/0.85 for a good probe, ·0.05/0.15 for a bad one; the share is R/4 of 0.02, in a quarter to 4."""
    filters = with_states("filtered", "unknown", settings=FilterSettings(probe_share=0.02))
    evidence, shares, expected = 0.0, [probe_share(filters)], [0.005]
    for bad in (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0):
        feed(filters, 0, float(bad), 1)
        shares.append(probe_share(filters))
        evidence = (1 + evidence) * ((0.05 / 0.15) if bad else (0.95 / 0.85))
        expected.append(0.02 * min(4.0, max(0.25, evidence / 4)))
    assert shares == pytest.approx(expected)
    assert max(shares) == 0.08
    assert shares[-2] == 0.005


def with_states(*states, settings=None):
    """Filters whose arms were led to the given states by calls."""
    filters = Filters(len(states), LIMITS, settings or FilterSettings())
    for arm, state in enumerate(states):
        if state in ("filtered", "probing"):
            feed(filters, arm, 1.0, first_proof("violating", bad=1.0, threshold=100))
        if state == "admitted":
            feed(filters, arm, 0.0, 300)
        if state == "probing":
            feed(filters, arm, 0.0, first_proof("compliant", bad=0.0, threshold=20, r0=0.15))
    assert filters.states == states
    return filters


@pytest.mark.parametrize(
    ("states", "p", "expected"),
    [
        (("unknown", "unknown"), [0.9, 0.1], [0.9, 0.1]),  # nobody is certified: no cap
        (("admitted", "admitted"), [0.9, 0.1], [0.9, 0.1]),
        (("admitted", "unknown"), [0.3, 0.7], [0.9, 0.1]),
        (("admitted", "probing"), [0.0, 1.0], [0.9, 0.1]),
        (("admitted", "unknown"), [0.95, 0.05], [0.95, 0.05]),
        (("admitted", "admitted", "unknown"), [0.1, 0.3, 0.6], [0.225, 0.675, 0.1]),  # the excess in proportion
        (("admitted", "admitted", "unknown"), [0.0, 0.0, 1.0], [0.45, 0.45, 0.1]),
        (("admitted", "filtered"), [1.0, 0.0], [0.995, 0.005]),  # a quarter of 0.02
        (("unknown", "filtered"), [1.0, 0.0], [0.995, 0.005]),  # a quarter of 0.02
        (("admitted", "unknown", "filtered"), [0.5, 0.5, 0.0], [0.9 * 0.995, 0.1 * 0.995, 0.005]),
        (("filtered", "filtered"), [1.0, 0.0], [0.99 + 0.005, 0.005]),  # all filtered: the least violation and probes
    ],
)
def test_shares_by_hand(states, p, expected):
    given = np.array(p)
    shaped = with_states(*states).shape(given)
    np.testing.assert_allclose(shaped, expected, atol=1e-12)
    np.testing.assert_array_equal(given, p)


def test_all_probes_together_take_at_most_a_quarter():
    filters = with_states("admitted", *["filtered"] * 10, settings=FilterSettings(probe_share=0.2))
    np.testing.assert_allclose(filters.shape(np.array([1.0] + [0.0] * 10)), [0.75] + [0.025] * 10)


def test_a_certificate_that_recent_calls_speak_against_is_no_refuge():
    """Its arm keeps the policy's share, but takes over nobody else's, and caps nobody."""
    filters = with_states("admitted", "unknown")
    for _ in range(4):
        feed(filters, 0, 1.0, 1)
    for _ in range(20):
        if filters.compliance()[0] >= 0.5 and filters.states[0] == "admitted":
            feed(filters, 0, 0.0, 5)
            feed(filters, 0, 1.0, 1)
    assert filters.states[0] == "admitted"
    assert filters.compliance()[0] < 0.5
    np.testing.assert_allclose(filters.shape(np.array([0.3, 0.7])), [0.3, 0.7])


def test_without_limits_every_arm_is_admitted_and_nothing_is_shaped():
    filters = Filters(2, ())
    assert filters.states == ("admitted", "admitted")
    np.testing.assert_array_equal(filters.compliance(), [1, 1])
    np.testing.assert_array_equal(filters.shape(np.array([0.2, 0.8])), [0.2, 0.8])


def test_a_restored_state_goes_on_exactly_like_the_original():
    rng = np.random.default_rng(20)
    limits = (*LIMITS, ("min_accuracy", 0.2))
    first, second = Filters(3, limits), Filters(3, limits)

    def calls(n):
        return [(int(rng.integers(3)), int(rng.integers(2)), float(rng.random() < 0.1)) for _ in range(n)]

    for call in calls(2000):
        first.observe(*call)
    second.load(first.state())
    assert second.state() == first.state()
    for call in calls(2000):
        assert second.observe(*call) == first.observe(*call)
    assert second.state() == first.state()


def test_states_that_do_not_fit():
    state = with_states("filtered", "unknown").state()
    with pytest.raises(SnapshotMismatch, match="number of arms"):
        Filters(3, LIMITS).load(state)
    other = Filters(2, (("p95_latency_s", 0.1),))
    other.load(state)  # another limit: evidence starts anew
    assert other.states == ("unknown", "unknown")
    with pytest.raises(SnapshotMismatch, match="length"):
        RateTest(R0).load([1.0, 2.0])
