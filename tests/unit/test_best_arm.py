"""Best-arm probabilities where a closed form, an integral or brute force gives the answer."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from bandit._quadrature import maximum
from bandit.propensity import best_arm_probabilities

TOLERANCE = 1e-3  # the error the function states for its quadrature


def integral(mean, sd):
    """P(arm a is the best) by adaptive integration over arm a's own standard score."""
    mean, sd = np.asarray(mean, float), np.asarray(sd, float)
    p = []
    for a in range(len(mean)):
        others = [b for b in range(len(mean)) if b != a]

        def integrand(z, a=a, others=others):
            return norm.pdf(z) * np.prod(norm.cdf((mean[a] + sd[a] * z - mean[others]) / sd[others]))

        steps = sorted({float(np.clip((mean[b] - mean[a]) / sd[a], -8.9, 8.9)) for b in others})
        p.append(quad(integrand, -9, 9, points=steps, limit=200)[0])
    return np.array(p)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 20, 24, 25, 50, 200, 2000])
@pytest.mark.parametrize("sd", [0.0, 1e-6, 0.3, 50.0])
def test_equal_arms_share_equally(k, sd):
    np.testing.assert_allclose(best_arm_probabilities(np.full(k, 0.4), np.full(k, sd)), 1 / k, atol=1e-12)


@pytest.mark.parametrize(
    ("mean", "sd"),
    [
        ((0.0, 1.0), (1.0, 1.0)),
        ((0.5, 0.5), (0.01, 2.0)),
        ((0.6, 0.5), (1e-5, 0.2)),
        ((0.5, 0.6), (0.03, 0.05)),
        ((-3.0, 4.0), (5.0, 0.1)),
        ((0.5, 0.5 + 1e-7), (1e-6, 1e-7)),
    ],
)
def test_two_arms_have_a_closed_form(mean, sd):
    """u₁ − u₂ is normal: Φ((μ₁ − μ₂)/√(s₁² + s₂²))."""
    expected = norm.cdf((mean[0] - mean[1]) / np.hypot(*sd))
    p = best_arm_probabilities(np.array(mean), np.array(sd))
    np.testing.assert_allclose(p, [expected, 1 - expected], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("mean", "sd"),
    [
        ((0.5, 0.6, 0.4), (0.1, 0.2, 0.3)),
        ((0.9, 0.9, 0.9, 0.2), (1e-4, 0.05, 0.3, 1.0)),
        ((0.7, 0.7 + 2e-6, 0.69), (1e-6, 1e-6, 0.02)),
        ((0.0, 1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, 1.0, 0.5)),
    ],
)
def test_several_arms_agree_with_adaptive_integration(mean, sd):
    p = best_arm_probabilities(np.array(mean), np.array(sd))
    np.testing.assert_allclose(p, integral(mean, sd), atol=TOLERANCE)


def test_arms_without_width_are_compared_by_their_means():
    for mean, expected in (((0.2, 0.9, 0.5), (0, 1, 0)), ((0.9, 0.9, 0.5), (0.5, 0.5, 0))):
        np.testing.assert_allclose(best_arm_probabilities(np.array(mean), np.zeros(3)), expected, atol=1e-8)


@pytest.mark.parametrize("k", [20, 60])
def test_an_arm_far_below_the_others_has_probability_zero_and_no_nan(k):
    p = best_arm_probabilities(np.array([-1e6] + [0.5] * (k - 1)), np.array([1e-3] * k))
    assert p[0] == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(p[1:], 1 / (k - 1), atol=1e-9)


@pytest.mark.parametrize("k", [1, 5, 23, 24, 50, 199, 999])
@pytest.mark.parametrize(
    ("mean", "sd", "others_sd"),
    [(0.6, 0.2, 0.05), (0.6, 0.01, 0.2), (0.55, 0.1, 1e-3), (0.5, 1.0, 0.1), (0.5, 0.1, 1e-5), (0.9, 0.1, 0.1)],
)
@pytest.mark.parametrize("place", [0, -1])
def test_one_arm_against_equal_ones_agrees_with_adaptive_integration(k, mean, sd, others_sd, place):
    """A cold start beside one arm that is known: ∫ φ(z) Φ((μ + s·z − ½)/s')^k dz."""

    def integrand(z):
        return norm.pdf(z) * norm.cdf((mean + sd * z - 0.5) / others_sd) ** k

    steps = [float(np.clip((0.5 + quantiles * others_sd - mean) / sd, -8.9, 8.9)) for quantiles in (0, 2, 4)]
    expected = quad(integrand, -9, 9, points=sorted(steps), limit=500)[0]
    means, sds = np.full(k + 1, 0.5), np.full(k + 1, others_sd)
    means[place], sds[place] = mean, sd
    p = best_arm_probabilities(means, sds)
    assert p[place] == pytest.approx(expected, abs=TOLERANCE)
    np.testing.assert_allclose(np.delete(p, place % (k + 1)), (1 - expected) / k, atol=TOLERANCE)


@pytest.mark.parametrize("k", [10, 25, 50, 200])
@pytest.mark.parametrize("sd", [0.0, 1e-6])
def test_a_ladder_of_narrow_arms_by_hand(k, sd):
    """Arm i of 1 … k, each above the last, takes part with 1/i: it is the best with 1/i · ∏_{j>i} (j−1)/j = 1/k."""
    mean = np.random.default_rng(k).permutation(k)
    p = best_arm_probabilities(mean / k, np.full(k, sd), 1.0 / (mean + 1.0))
    np.testing.assert_allclose(p, 1 / k, atol=TOLERANCE / 5)


def test_the_distribution_function_is_within_its_stated_error_and_never_falls():
    z = np.concatenate([np.linspace(-12, 12, 100_001), [1e3, 1e9]])
    below = maximum(np.zeros(1), np.ones(1), np.ones(1), z)
    np.testing.assert_allclose(below, norm.cdf(z), atol=2e-6)
    assert np.diff(below).min() > -1e-15
    assert below.min() >= 0


def mixture(mean, sd, compliance):
    """Brute force: each subset of complying arms with its probability, given that it is not empty."""
    k = len(mean)
    mean, sd, c = (np.asarray(v, float) for v in (mean, sd, compliance))
    p = np.zeros(k)
    for size in range(1, k + 1):
        for subset in map(list, combinations(range(k), size)):
            rest = [a for a in range(k) if a not in subset]
            share = integral(mean[subset], sd[subset]) if size > 1 else np.ones(1)
            p[subset] += np.prod(c[subset]) * np.prod(1 - c[rest]) * share
    return p / (1 - np.prod(1 - c))


@pytest.mark.parametrize(
    ("mean", "sd", "compliance"),
    [
        ((0.4, 0.6), (0.1, 0.1), (0.9, 0.3)),
        ((0.4, 0.6, 0.5), (0.1, 0.01, 0.3), (1.0, 0.5, 0.2)),
        ((0.4, 0.6, 0.5), (0.1, 0.01, 0.3), (1e-6, 1e-6, 1e-6)),
        ((0.8, 0.6, 0.5, 0.1), (1e-4, 0.05, 0.3, 0.2), (0.05, 0.5, 0.9, 1.0)),
        ((0.5, 0.55, 0.6, 0.65, 0.7), (0.1, 0.2, 0.05, 0.02, 0.1), (0.9, 0.7, 0.5, 0.3, 0.1)),
    ],
)
def test_compliance_is_a_mixture_over_the_subsets_that_comply(mean, sd, compliance):
    p = best_arm_probabilities(np.array(mean), np.array(sd), np.array(compliance))
    np.testing.assert_allclose(p, mixture(mean, sd, compliance), atol=TOLERANCE)


def test_an_arm_that_never_complies_is_as_good_as_absent():
    mean, sd = np.array([0.5, 0.9, 0.6, 0.4]), np.array([0.1, 0.2, 0.2, 0.3])
    for c in (np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.4, 0.0, 0.9, 0.0])):
        rest = c > 0
        p = best_arm_probabilities(mean, sd, c)
        assert (p[c == 0] == 0).all()
        np.testing.assert_allclose(p[rest], best_arm_probabilities(mean[rest], sd[rest], c[rest]), atol=1e-12)


@pytest.mark.parametrize("gap", [4.9, 5.1, 30.0])
def test_an_arm_far_below_has_its_tiny_probability_or_none(gap):
    """P(u₁ > u₂) = Φ(−gap/√2) beside equal widths: at most 3·10⁻⁴ here."""
    p = best_arm_probabilities(np.array([0.5 - gap * 0.1, 0.5, 0.5]), np.full(3, 0.1))
    assert 0 <= p[0] <= norm.cdf(-gap / np.sqrt(2)) + 1e-6
    np.testing.assert_allclose(p[1:], 0.5, atol=TOLERANCE)


def test_certain_compliance_changes_nothing():
    mean, sd = np.array([0.5, 0.6, 0.4]), np.array([0.1, 0.2, 0.3])
    certain = best_arm_probabilities(mean, sd, np.ones(3))
    np.testing.assert_allclose(certain, best_arm_probabilities(mean, sd), atol=1e-12)


def test_arms_that_hardly_comply_share_by_how_hardly():
    """Far below the spacing of floats near 1, too: with c → 0 no two take part, so p is in proportion to c."""
    p = best_arm_probabilities(np.array([0.9, 0.1, 0.5]), np.array([0.1, 1e-9, 0.2]), np.array([1e-17, 3e-17, 0.0]))
    np.testing.assert_allclose(p, [0.25, 0.75, 0.0], atol=1e-5)
