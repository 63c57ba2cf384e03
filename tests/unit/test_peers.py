"""The policy benchmark's peers: each learns, each warms up, and a missing library is named."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from bandit.errors import InvalidInput
from benchmarks.peers import PEERS, PeerNotInstalled, make, warm_rows
from benchmarks.peers.litellm_adaptive import MAX_SAMPLES

LIBRARY = {
    "paretobandit": "pareto_bandit",
    "vw_squarecb": "vowpalwabbit",
    "vw_softmax": "vowpalwabbit",
    "mabwiser_lints": "mabwiser",
    "bayesianbandits": "bayesianbandits",
}
CONTEXTUAL = ("paretobandit", "vw_squarecb", "vw_softmax", "mabwiser_lints", "bayesianbandits", "river_linucb")
DIMENSION = 3
EQUAL_COSTS = np.full(2, 1e-3)


def peer(name, *, seed=0, n_arms=2, mean_cost_usd=EQUAL_COSTS, **options):
    """A peer, or a skipped test where its library is not installed."""
    if name in LIBRARY:
        pytest.importorskip(LIBRARY[name])
    return make(name, n_arms=n_arms, dimension=DIMENSION, seed=seed, mean_cost_usd=mean_cost_usd, **options)


def contexts(rng, n):
    return np.column_stack([np.ones(n), rng.normal(size=(n, DIMENSION - 1))])


def play(one, rng, n, quality):
    """The arms it chose, shape (n,), when arm a answers context x with quality(x, a) in [0, 1] for 0.001 USD."""
    chosen = np.empty(n, dtype=int)
    for i, x in enumerate(contexts(rng, n)):
        arm = one.choose(x, "code")
        assert 0 <= arm < 2
        one.learn(x, arm, quality(x, arm), 1e-3, "code")
        chosen[i] = arm
    return chosen


@pytest.mark.parametrize("name", PEERS)
def test_it_learns_the_better_of_two_arms(name):
    """Successes 90 % against 10 %, equal costs, n = 600, seeds fixed: of the last 200 calls most go to arm 1."""
    rng = np.random.default_rng(1)
    chosen = play(peer(name), rng, 600, lambda _, arm: float(rng.random() < (0.1, 0.9)[arm]))
    assert np.mean(chosen[-200:] == 1) > 0.8


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_a_contextual_peer_learns_which_arm_suits_which_context(name):
    """Arm 1 is right where x₁ > 0, arm 0 elsewhere; n = 1,500, seeds fixed: chance would be 50 %."""
    rng = np.random.default_rng(2)
    suited = []

    def quality(x, arm):
        suited.append(arm == int(x[1] > 0))
        return float(suited[-1])

    play(peer(name), rng, 1500, quality)
    assert np.mean(suited[-300:]) > 0.8


@pytest.mark.parametrize("name", PEERS)
def test_warm_up_data_are_learned_before_the_first_choice(name):
    """1,000 rows in which arm 1 answers 0.9 and arm 0 0.1 (± 0.05): of 50 choices without feedback most are arm 1."""
    rng = np.random.default_rng(3)
    x = contexts(rng, 1000)
    quality = np.tile([0.1, 0.9], (1000, 1)) + rng.normal(scale=0.05, size=(1000, 2)).clip(-0.1, 0.1)
    one = peer(name, warm=(x, quality, np.full((1000, 2), 1e-3)), warm_categories=("code",) * 1000)
    chosen = [one.choose(row, "code") for row in contexts(rng, 50)]
    assert np.mean(chosen) > 0.8


@pytest.mark.parametrize("name", PEERS)
def test_the_same_seed_gives_the_same_choices(name):
    def chosen():
        rng = np.random.default_rng(4)
        return play(peer(name, seed=7), rng, 100, lambda _, arm: float(rng.random() < (0.4, 0.6)[arm])).tolist()

    assert chosen() == chosen()


@pytest.mark.parametrize("name", PEERS)
def test_warm_up_rows_without_a_quality_are_left_out(name):
    rng = np.random.default_rng(5)
    quality = rng.random((60, 2))
    quality[::2, 0] = np.nan
    one = peer(name, warm=(contexts(rng, 60), quality, np.full((60, 2), 1e-3)))
    assert one.choose(contexts(rng, 1)[0]) in {0, 1}


def test_paretobandit_keeps_near_its_budget():
    """The dear arm answers 1.0 for 0.010 USD, the cheap one 0.5 for 0.001; budget 0.004, n = 3,000: within 5 %."""
    rng = np.random.default_rng(6)
    one = peer("paretobandit", mean_cost_usd=np.array([0.001, 0.010]), usd_per_request=0.004)
    spent = 0.0
    for x in contexts(rng, 3000):
        arm = one.choose(x)
        one.learn(x, arm, (0.5, 1.0)[arm], (0.001, 0.010)[arm])
        spent += (0.001, 0.010)[arm]
    assert 0.002 < spent / 3000 < 0.004 * 1.05


def test_litellms_posterior_hears_no_more_than_200_samples():
    """200 failures and then 10,000 successes leave Beta(1, 201), of which a draw above 0.1 has odds of 6e-10."""
    one = peer("litellm_adaptive", mean_cost_usd=np.array([0.0, 0.0]))
    x = np.ones(DIMENSION)
    for _ in range(MAX_SAMPLES):
        one.learn(x, 0, 0.0, 0.0, "code")
    for _ in range(10_000):
        one.learn(x, 0, 1.0, 0.0, "code")
    for _ in range(50):
        one.learn(x, 1, 1.0, 0.0, "code")
    assert {one.choose(x, "code") for _ in range(500)} == {1}


def test_litellms_posteriors_are_one_for_each_request_type():
    one = peer("litellm_adaptive")
    x = np.ones(DIMENSION)
    for _ in range(MAX_SAMPLES):
        one.learn(x, 0, 1.0, 0.0, "code")
        one.learn(x, 1, 0.0, 0.0, "code")
        one.learn(x, 0, 0.0, 0.0, "law")
        one.learn(x, 1, 1.0, 0.0, "law")
    assert {one.choose(x, "code") for _ in range(200)} == {0}
    assert {one.choose(x, "law") for _ in range(200)} == {1}


def test_litellm_weighs_quality_7_to_3_against_the_cost():
    """Qualities of 0.5 and 0.9 score 0.35 + 0.3 and 0.63 + 0: the cheap arm wins more often; 0.14 + 0.3 loses."""
    x = np.ones(DIMENSION)
    for cheap_quality, winner in ((0.5, 0), (0.2, 1)):
        one = peer("litellm_adaptive", mean_cost_usd=np.array([1e-4, 1e-2]))
        for _ in range(MAX_SAMPLES):
            one.learn(x, 0, cheap_quality, 0.0)
            one.learn(x, 1, 0.9, 0.0)
        assert np.mean([one.choose(x) == winner for _ in range(500)]) > 0.5


@pytest.mark.parametrize("name", ["paretobandit", "litellm_adaptive"])
@pytest.mark.parametrize("costs", [None, np.array([1e-3, np.nan])])
def test_a_peer_that_weighs_costs_refuses_to_guess_them(name, costs):
    with pytest.raises(InvalidInput, match="mean_cost_usd"):
        peer(name, mean_cost_usd=costs)


def test_shapes_that_disagree_are_refused():
    x, quality = np.ones((4, DIMENSION)), np.ones((4, 2))
    with pytest.raises(InvalidInput, match=r"warm\.cost_usd"):
        peer("river_ucb", warm=(x, quality, np.ones((4, 3))))
    with pytest.raises(InvalidInput, match="mean_cost_usd"):
        peer("river_ucb", mean_cost_usd=np.ones(3))
    with pytest.raises(InvalidInput, match="warm_categories"):
        peer("river_ucb", warm=(x, quality, quality), warm_categories=("a",))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(InvalidInput, match="litellm_adaptive"):
        make("oracle", n_arms=2, dimension=DIMENSION, seed=0)


def test_a_peer_whose_library_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mabwiser.mab", None)  # how Python marks a module that cannot be imported
    monkeypatch.delitem(sys.modules, "benchmarks.peers.mabwiser_lints", raising=False)
    with pytest.raises(PeerNotInstalled, match="extra `peers`") as caught:
        make("mabwiser_lints", n_arms=2, dimension=DIMENSION, seed=0)
    assert isinstance(caught.value, ModuleNotFoundError)


def test_warm_rows_are_the_measured_outcomes_in_order():
    quality = np.array([[0.1, np.nan], [0.3, 0.4]])
    rows = [(row, arm, q) for row, _, arm, q in warm_rows((np.ones((2, 3)), quality, quality))]
    assert rows == [(0, 0, 0.1), (1, 0, 0.3), (1, 1, 0.4)]
    assert list(warm_rows(None)) == []


def test_the_extra_installs_every_library_that_a_peer_needs():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    wanted = {"paretobandit", "vowpalwabbit", "mabwiser", "bayesianbandits"}
    assert wanted <= {line.partition(">")[0] for line in project["project"]["optional-dependencies"]["peers"]}
