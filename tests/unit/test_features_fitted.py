"""What features learn from prompts alone, the caller's own vector, and when the version changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bandit import Features, Prompt, snapshot
from bandit.errors import InvalidInput

ROOT = Path(__file__).parents[2]
MATH = [f"Solve the equation {i}x^2 + {i + 1}x = {i * 7} for x and show each step." for i in range(1, 30)]
GERMAN = [f"Schreibe bitte ein kurzes Gedicht über den Herbst, Strophe {i}." for i in range(1, 30)]
PROMPTS = [
    Prompt(text, category=name)
    for name, texts in (("math", MATH), ("art", GERMAN[:9]), (None, GERMAN))
    for text in texts
]


def column(features, text):
    (at,) = np.flatnonzero(features.extract(Prompt(text)).x[1 : 1 + len(features.clusters)])
    return int(at)


def test_clusters_tell_kinds_of_text_apart():
    features = Features(text="trigrams").fitted(PROMPTS, clusters=2)
    assert len({column(features, text) for text in MATH}) == 1
    assert len({column(features, text) for text in GERMAN}) == 1
    assert column(features, MATH[0]) != column(features, GERMAN[0])
    assert not features.extract(Prompt("")).x[1:3].any()  # nothing to be near to


def test_fitting_learns_the_category_names_that_occur_the_most_frequent_where_not_all_fit():
    assert Features().fitted(PROMPTS).categories == ("art", "math")
    many = [Prompt(category=f"c{i:02d}") for i in range(40) for _ in range(40 - i)]
    assert Features().fitted(many).categories == tuple(f"c{i:02d}" for i in range(24))
    assert Features(["own"]).fitted(PROMPTS).categories == ("own",)


def test_fitting_is_deterministic_and_its_version_names_what_was_fitted():
    base = Features(["math"])
    one, again = (base.fitted(PROMPTS, clusters=3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.clusters, again.clusters)
    assert one.version == again.version
    others = [
        base,
        Features(["math", "art"]),
        Features(["math"], vector=1),
        base.fitted(PROMPTS, clusters=2, seed=1),
        Features(["math"], clusters=one.clusters + np.float32(1e-3)),
        Features(["art"], clusters=one.clusters),
    ]
    assert len({one.version, *(other.version for other in others)}) == 1 + len(others)


def test_another_process_fits_the_same_clusters():
    code = (
        "from bandit import Features, Prompt\n"
        "texts = [f'{a} {i * i} {b}' for i in range(20) for a, b in (('sum of', 'and 3'), ('Gedicht', 'Herbst'))]\n"
        "print(Features([]).fitted([Prompt(t) for t in texts], clusters=4, seed=5).version)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize(
    "features",
    [
        Features(),
        Features(["a", "b"], text=None, vector=3),
        Features([], vector=2).fitted(PROMPTS, clusters=4),
    ],
)
def test_features_survive_a_trip_through_a_snapshot(features):
    back = Features.from_state(snapshot.loads(snapshot.dumps({"f": features.state()}))["f"])
    assert (back.version, back.dimension) == (features.version, features.dimension)
    prompt = Prompt(MATH[3], 12, category="a", vector=(1.0,) * features.vector or None)
    np.testing.assert_array_equal(back.extract(prompt).x, features.extract(prompt).x)


def test_a_callers_own_vector_stands_last_and_is_0_for_a_request_without_one():
    features = Features(["a"], text=None, vector=2)
    np.testing.assert_array_equal(
        features.extract(Prompt(category="a", vector=(0.5, -100.0))).x[-3:], [1.0, 0.5, -100.0]
    )
    np.testing.assert_array_equal(features.extract(Prompt(category="a")).x[-3:], [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "vector",
    [
        (1.0,),
        (1.0, 2.0, 3.0),
        (),
        (1.0, float("nan")),
        (1.0, float("inf")),
        (1.0, 101.0),
        (1.0, 1e30),  # one such vector would wipe out an arm's other evidence
        (1.0, 10**400),
        ("a", "b"),
        (None, 1.0),
        ((1.0,), (2.0,)),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(vector):
    with pytest.raises(InvalidInput, match="context"):
        Features([], vector=2).extract(Prompt(vector=vector))


def test_a_pool_that_takes_no_vector_says_so():
    with pytest.raises(InvalidInput, match=r"takes no vector \(features.vector\)"):
        Features().extract(Prompt(vector=(1.0,)))


@pytest.mark.parametrize("clusters", [np.zeros((2, 5)), np.zeros(512), np.full((2, 512), np.nan)])
def test_clusters_of_another_shape_are_refused(clusters):
    with pytest.raises(InvalidInput, match=r"features.clusters: must be finite, of shape \(n_clusters, 512\)"):
        Features(clusters=clusters.astype(np.float32))


def test_clusters_need_text_and_enough_different_texts():
    with pytest.raises(InvalidInput, match="text must be on"):
        Features(text=None, clusters=np.eye(2, 512, dtype=np.float32))
    with pytest.raises(InvalidInput, match="1 different texts cannot make 2 clusters"):
        Features().fitted([Prompt("the same"), Prompt("the same"), Prompt("")], clusters=2)
