"""Estimators: by hand on rounds small enough to check, against Open Bandit Pipeline's figures, and part by part."""

from __future__ import annotations

import hashlib
import json
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bandit.errors import InvalidInput
from evaluation.estimators import ESTIMATORS, TUNED
from evaluation.estimators.regression import ArmRegression, Design, mrdr_weight
from evaluation.estimators.rejection import is_uniform, rejection_replay
from evaluation.estimators.slope import slope
from evaluation.rounds import Rounds
from evaluation.tally import THRESHOLDS, Tally

ORACLE = json.loads((Path(__file__).parent / "data" / "obp_estimates.json").read_text())
NAMES = {"dm": "DM", "ips": "IPS", "snips": "SNIPS", "dr": "DR", "sndr": "SNDR"}
TUNED_NAMES = {"clipped_ips": "clipped IPS", "switch_dr": "Switch-DR", "dr_shrinkage": "DRos"}


def random_log(*, seed: int, n: int, n_arms: int, target: str, reward: str) -> dict[str, np.ndarray]:
    """The same lines as in benchmarks/oracles: the oracle's logs, bit for bit."""
    rng = np.random.default_rng(seed)
    contexts, slopes = rng.standard_normal((n, 5)), rng.standard_normal((5, n_arms))
    score = sum(contexts[:, [j]] * slopes[j] for j in range(5))
    mean = 0.5 + 0.5 * score / (1.0 + abs(score))
    u, v = rng.random((n, n_arms)), rng.random((n, n_arms))
    u, v = u * u * u, v * v
    if target == "sparse":
        v = v * (v >= 0.5 * v.max(axis=1, keepdims=True))
    elif target == "deterministic":
        v = 1.0 * (v == v.max(axis=1, keepdims=True))
    elif target == "ties":
        u, v = np.ones((n, 4)), np.array([0.0, 0.0, 1.0, 3.0])[v.argsort(axis=1).argsort(axis=1)]
    logging = 0.02 / n_arms + 0.98 * (u / u.cumsum(axis=1)[:, -1:])
    logging = logging if target != "ties" else u / 4.0
    chosen = np.minimum((logging.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), n_arms - 1)
    noise, chosen_mean = rng.random(n), mean[np.arange(n), chosen]
    values = 1.0 * (noise < chosen_mean) if reward == "binary" else 0.5 * chosen_mean + 0.5 * noise
    predicted = 0.7 * mean + 0.3 * rng.random((n, n_arms))
    arrays = {"contexts": contexts, "logging": logging, "chosen": chosen, "reward": values}
    return {**arrays, "target": v / v.cumsum(axis=1)[:, -1:], "predicted": predicted}


def digest(log) -> str:
    kinds = {name: "<i8" if name == "chosen" else "<f8" for name in log}
    return hashlib.sha256(b"".join(log[name].astype(kinds[name]).tobytes() for name in log)).hexdigest()[:16]


def rounds_of(log) -> Rounds:
    return Rounds.of(log["chosen"], log["logging"], log["reward"], log["target"], predicted=log["predicted"])


def add(model, log, fold, at=slice(None), *, weight=None):
    value, shape = log["reward"][at], (3, log["logging"].shape[1])
    given = (log["contexts"][at], log["chosen"][at], fold[at], shape)
    model.add(Design(*given, known=~np.isnan(value), weight=weight), value)


@pytest.fixture(scope="module", params=range(len(ORACLE["logs"])))
def case(request):
    described = dict(ORACLE["logs"][request.param])
    expected = described.pop("sha256")
    log = random_log(**described)
    assert digest(log) == expected, "this is not the log that the oracle saw"
    return request.param, log, {name: values[request.param] for name, values in ORACLE["estimates"].items()}


def test_they_agree_with_an_independent_implementation(case):
    """Open Bandit Pipeline 0.5.7, on the same rounds and predictions, to 1e-9."""
    _, log, expected = case
    rounds = rounds_of(log)
    found = {name: ESTIMATORS[ours](rounds).estimate for name, ours in NAMES.items()}
    for theirs, ours in TUNED_NAMES.items():
        for name in expected:
            setting = name.removeprefix(f"{theirs}_")
            if name.startswith(theirs) and setting.replace(".", "").isdigit():
                threshold = sqrt(float(setting)) if ours == "DRos" else float(setting)
                found[name] = TUNED[ours](rounds, threshold).estimate
    compared = {name: value for name, value in found.items() if expected[name] is not None}
    assert len(compared) >= 14
    assert {name: expected[name] for name in compared} == pytest.approx(compared, abs=1e-9, rel=0)


def test_cross_fitted_predictions_agree_with_an_independent_ridge(case):
    """scikit-learn's Ridge by arm and fold, unweighted and with the weights of the more robust DR, to 1e-9."""
    _, log, expected = case
    fold = np.arange(len(log["chosen"])) % 3
    rounds = rounds_of(log)
    for kind, weight in (("cross_fitted", None), ("mrdr", mrdr_weight(rounds))):
        model = ArmRegression(log["logging"].shape[1], 5, folds=3, alpha=1.0)
        add(model, log, fold, weight=weight)
        fitted = rounds.with_predicted(model.predict(log["contexts"], fold))
        assert ESTIMATORS["DM"](fitted).estimate == pytest.approx(expected[f"{kind}_dm"], abs=1e-9, rel=0)
        assert ESTIMATORS["DR"](fitted).estimate == pytest.approx(expected[f"{kind}_dr"], abs=1e-9, rel=0)


def test_slope_chooses_as_the_independent_implementation(case):
    _, log, expected = case
    rounds, n = rounds_of(log), len(log["chosen"])
    for theirs, ours in TUNED_NAMES.items():
        estimates, widths = [], []
        for threshold in ORACLE["slope"]["grid"]:
            terms = TUNED[ours](rounds, sqrt(threshold) if ours == "DRos" else threshold)
            values = terms.direct + terms.residual
            estimates.append(values.mean())
            widths.append(stats.t.ppf(1 - ORACLE["slope"]["delta"], n - 1) * sqrt(values.var() / (n - 1)))
        chosen = slope(estimates, widths)
        assert estimates[chosen] == pytest.approx(expected[f"slope_{theirs}"], abs=1e-9, rel=0)


def test_rejection_replay_agrees_with_the_independent_implementation(case):
    _, log, expected = case
    if expected["replay"] is None:
        return  # theirs is for deterministic policies
    mean, count = rejection_replay(log["target"].argmax(axis=1), log["chosen"], log["reward"])
    assert count > 0
    assert mean == pytest.approx(expected["replay"], abs=1e-9, rel=0)


def test_by_hand():
    """Two arms; weights 1.5, 0.5, 2.5; predictions 0.5 and 0.25 everywhere."""
    rounds = Rounds.of(
        np.array([0, 1, 1]),
        np.array([[0.5, 0.5], [0.5, 0.5], [0.8, 0.2]]),
        np.array([1.0, 0.0, 1.0]),
        np.array([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]),
        predicted=np.tile([0.5, 0.25], (3, 1)),
    )
    assert rounds.weight.tolist() == [1.5, 0.5, 2.5]
    found = {name: estimator(rounds).estimate for name, estimator in ESTIMATORS.items()}
    direct = (0.4375 + 0.4375 + 0.375) / 3
    residuals = 1.5 * 0.5 + 0.5 * -0.25 + 2.5 * 0.75
    assert found == pytest.approx(
        {
            "DM": direct,
            "IPS": 4.0 / 3,
            "SNIPS": 4.0 / 4.5,
            "DR": direct + residuals / 3,
            "SNDR": direct + residuals / 4.5,
        }
    )
    assert TUNED["clipped IPS"](rounds, 2.0).estimate == pytest.approx(3.5 / 3)
    assert TUNED["Switch-DR"](rounds, 2.0).estimate == pytest.approx(direct + (0.75 - 0.125) / 3)
    shrunk = [4 * w / (w * w + 4) for w in (1.5, 0.5, 2.5)]
    expected = direct + (shrunk[0] * 0.5 - shrunk[1] * 0.25 + shrunk[2] * 0.75) / 3
    assert TUNED["DRos"](rounds, 2.0).estimate == pytest.approx(expected)


def test_values_that_were_not_observed_are_made_up_for_by_the_others():
    """Half of an arm's values are missing, so those that came count twice."""
    rounds = Rounds.of(
        np.array([0, 0, 1, 1]),
        np.full((4, 2), 0.5),
        np.array([1.0, np.nan, 0.5, 0.5]),
        np.full((4, 2), 0.5),
        observed_share=np.array([0.5, 1.0]),
    )
    assert rounds.weight.tolist() == [2.0, 0.0, 1.0, 1.0]
    assert ESTIMATORS["IPS"](rounds).estimate == pytest.approx((2.0 + 0.5 + 0.5) / 4)


@pytest.mark.parametrize("name", TUNED)
def test_an_infinite_threshold_changes_nothing(name):
    rounds = rounds_of(random_log(seed=5, n=200, n_arms=4, target="random", reward="continuous"))
    plain = "IPS" if name == "clipped IPS" else "DR"
    assert TUNED[name](rounds, inf).estimate == pytest.approx(ESTIMATORS[plain](rounds).estimate, abs=1e-12)


def test_sums_over_parts_are_the_whole():
    log = random_log(seed=9, n=1_500, n_arms=4, target="random", reward="binary")
    rounds, groups = rounds_of(log), np.stack((np.arange(1_500) % 3 + 1, np.full(1_500, 4)), axis=1)
    whole = Tally(1_500, 6)
    whole.add(0, rounds, groups, log["predicted"])
    merged = Tally(1_500, 6)
    for start, stop in ((0, 700), (700, 701), (701, 1_500)):
        part = Tally(1_500, 6)
        at = slice(start, stop)
        cut = Rounds.of(
            log["chosen"][at], log["logging"][at], log["reward"][at], log["target"][at], predicted=log["predicted"][at]
        )
        part.add(start, cut, groups[at], log["predicted"][at])
        merged.merge(part)
    for key, sums in whole.blocks.items():
        np.testing.assert_allclose(merged.blocks[key], sums, atol=1e-12)
        assert merged.variance(*key) == pytest.approx(whole.variance(*key), rel=1e-9)
    for name, sums in whole.grouped.items():
        np.testing.assert_allclose(merged.grouped[name], sums, atol=1e-12)
        np.testing.assert_allclose(sums[:, 1:4].sum(axis=1), sums[:, 0], atol=1e-9)  # three groups make up all rounds
    np.testing.assert_allclose(merged.support.effective_samples, whole.support.effective_samples)
    assert whole.support.largest[0] == rounds.weight.max()
    assert THRESHOLDS[0] == inf


def test_effective_samples_by_hand():
    """Weights 1, 1, 2: (1 + 1 + 2)² / (1 + 1 + 4) = 8/3; expected squares are Σ π²/p."""
    behaviour = np.array([[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]])
    rounds = Rounds.of(np.array([0, 1, 1]), behaviour, np.ones(3), np.full((3, 2), 0.5))
    tally = Tally(3)
    tally.add(0, rounds)
    assert tally.support.effective_samples[0] == pytest.approx(16 / 6)
    square = 1.0 + 1.0 + (0.25 / 0.75 + 0.25 / 0.25)
    assert tally.support.expected_effective_samples[0] == pytest.approx(9 / square)
    assert tally.largest_possible == pytest.approx(2.0)


def test_the_variance_that_propensities_imply_is_that_of_fresh_draws():
    """Of IPS and DR on rounds of one context: against the variance over 200,000 draws from the propensities, to 2 %."""
    rng = np.random.default_rng(8)
    p, pi, mean, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6]), np.array([0.2, 0.5, 0.8]), np.full(3, 0.4)
    n = 200_000
    chosen = rng.choice(3, size=n, p=p)
    value = (rng.random(n) < mean[chosen]).astype(float)
    rounds = Rounds.of(chosen, np.tile(p, (n, 1)), value, np.tile(pi, (n, 1)), predicted=np.tile(q, (n, 1)))
    tally = Tally(n)
    tally.add(0, rounds)
    truth = float(pi @ mean)
    for name in ("IPS", "DR"):
        terms = ESTIMATORS[name](rounds)
        exact = float((pi**2 / p) @ mean) - truth**2  # Σ π²/p·E r² − ν², r in {0, 1}
        if name == "DR":
            exact = float((pi**2 / p) @ (mean * (1 - mean) + (mean - 0.4) ** 2))
        found = tally.spread.variance(name, terms.estimate)
        assert found == pytest.approx(exact, rel=0.02)
        if name == "IPS":
            assert found == pytest.approx((terms.direct + terms.residual).var(), rel=0.02)


def test_a_model_that_could_not_be_drawn_is_a_gap():
    rounds = Rounds.of(np.array([0, 0]), np.array([[1.0, 0.0], [0.5, 0.5]]), np.ones(2), np.full((2, 2), 0.5))
    tally = Tally(2)
    tally.add(0, rounds)
    assert tally.support.gap_share[0] == pytest.approx(0.25)


def test_a_regression_in_parts_is_the_regression_of_the_whole():
    log = random_log(seed=3, n=300, n_arms=3, target="random", reward="continuous")
    fold, log["reward"][::7] = np.arange(300) % 3, np.nan
    whole, first, second = (ArmRegression(3, 5) for _ in range(3))
    add(whole, log, fold)
    add(first, log, fold, slice(0, 100))
    add(second, log, fold, slice(100, 300))
    first.merge(second)
    expected = whole.predict(log["contexts"], fold)
    np.testing.assert_allclose(first.predict(log["contexts"], fold), expected, atol=1e-10)


def test_a_round_has_no_part_in_its_own_prediction():
    log = random_log(seed=4, n=90, n_arms=2, target="random", reward="continuous")
    fold = np.arange(90) % 3
    before, after = ArmRegression(2, 5), ArmRegression(2, 5)
    add(before, log, fold)
    add(after, log | {"reward": np.where(fold == 1, 1.0 - log["reward"], log["reward"])}, fold)
    one, other = before.predict(log["contexts"], fold), after.predict(log["contexts"], fold)
    np.testing.assert_allclose(one[fold == 1], other[fold == 1], atol=1e-12)
    assert np.abs(one[fold == 0] - other[fold == 0]).max() > 0.01


def test_uniform_logs_are_told_from_others():
    arms = np.array([True, True, False])
    assert is_uniform(np.array([[0.5, 0.5, 0.0]] * 3), arms)
    assert not is_uniform(np.array([[0.5, 0.5, 0.0], [0.6, 0.4, 0.0]]), arms)
    assert not is_uniform(np.array([[1.0, 0.0, 0.0]]), arms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"behaviour": np.array([[0.6, 0.6]])}, "behaviour: row 0: probabilities sum to 1.2, not 1"),
        ({"target": np.array([[np.nan, 1.0]])}, "target: row 0, column 0: nan is no probability"),
        ({"target": np.array([[-0.1, 1.1]])}, "target: row 0, column 0: -0.1 is no probability"),
        ({"behaviour": np.array([[0.0, 1.0]])}, "behaviour: row 0, arm 0: was drawn with probability 0"),
        ({"value": np.ones(2)}, r"value: has shape \(2,\), not \(1,\)"),
    ],
)
def test_what_cannot_be_names_row_and_column(change, message):
    arrays = {
        "chosen": np.array([0]),
        "behaviour": np.array([[0.5, 0.5]]),
        "value": np.array([1.0]),
        "target": np.array([[0.5, 0.5]]),
    } | change
    with pytest.raises(InvalidInput, match=message):
        Rounds.of(**arrays)


def test_no_rounds_are_refused():
    empty = np.zeros((0, 2))
    with pytest.raises(InvalidInput, match="there is none"):
        Rounds.of(np.zeros(0, dtype=int), empty, np.zeros(0), empty)
