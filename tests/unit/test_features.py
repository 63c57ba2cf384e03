"""Feature vectors: their layout by hand, their limits, and what odd text does to them."""

from __future__ import annotations

import subprocess
import sys
from math import log
from pathlib import Path

import numpy as np
import pytest

from bandit import Features, Prompt
from bandit.errors import InvalidInput
from bandit.features import MAX_DIMENSION

ROOT = Path(__file__).parents[2]
PLAIN = Features(["code", "math"], text=None)  # intercept, 7 facts, 2 categories
HASHED = Features()  # intercept, 7 facts, 24 hashed categories
TEXT = Features([])  # intercept, 16 components of the text, 7 facts


def test_every_fact_stands_where_the_layout_says():
    prompt = Prompt("import é", input_tokens=7, turns=2, has_system=True, tools=1, json_mode=True, category="math")
    # "import é" in UTF-8: 7 ASCII bytes and 2 others
    expected = [1, log(8) / 8, log(3) / 3, 1, log(2) / 3, 1, 1, 2 / 9, 0, 1]
    context = PLAIN.extract(prompt)
    np.testing.assert_allclose(context.x, expected, rtol=1e-6)
    assert (context.x.dtype, context.version, context.input_tokens) == (np.float32, PLAIN.version, 7)
    assert context.category == "math"


def test_an_empty_prompt_is_the_intercept_and_its_one_turn():
    expected = np.zeros(24)
    expected[0], expected[1 + 16 + 1] = 1.0, log(2) / 3
    np.testing.assert_allclose(TEXT.extract(Prompt()).x, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 24, 56])
def test_text_is_projected_where_there_is_no_category_to_go_by(n):
    names = [f"c{i}" for i in range(n)]
    with_text, without = Features(names), Features(names, text=None)
    assert with_text.dimension == 1 + 7 + n + (16 if n == 0 else 0)
    assert without.dimension == 1 + 7 + n
    x = with_text.extract(Prompt("some text", category=names[-1] if n else None)).x
    assert x.shape == (with_text.dimension,)
    assert x[1:17].any()
    if n:
        assert x[-1] == 1.0


def test_facts_and_projected_text_need_ten_times_the_evidence_of_a_category():
    assert TEXT.precision_scale.tolist() == [1.0] + [10.0] * 23
    assert PLAIN.precision_scale.tolist() == [1.0] + [10.0] * 7 + [1.0] * 2
    clustered = Features(["a"], clusters=np.eye(3, 512, dtype=np.float32), vector=2)
    assert clustered.precision_scale.tolist() == [1.0] * 4 + [10.0] * 7 + [1.0] * 3


def test_layouts_wider_than_64_and_equal_names_are_refused():
    assert MAX_DIMENSION == 64
    for make in (
        lambda: Features([f"c{i}" for i in range(57)]),
        lambda: Features(["a", "a"]),
        lambda: Features([], vector=57),
        lambda: Features([], vector=-1),
        lambda: Features([], clusters=np.eye(57, 512, dtype=np.float32)),
    ):
        with pytest.raises(InvalidInput, match="features"):
            make()


def test_named_categories_are_one_hot_and_others_are_none():
    assert [list(PLAIN.extract(Prompt(category=c)).x[-2:]) for c in ("code", "math", "law", None)] == [
        [1, 0],
        [0, 1],
        [0, 0],
        [0, 0],
    ]


def test_without_names_a_category_is_hashed_to_one_of_24_columns():
    columns = set()
    for i in range(400):
        tail = HASHED.extract(Prompt(category=f"task {i}")).x[8:]
        assert tail.shape == (24,)
        assert sorted(tail) == [0] * 23 + [1]
        columns.add(int(tail.argmax()))
    assert columns == set(range(24))
    assert not HASHED.extract(Prompt(category=None)).x[8:].any()


def test_the_version_names_the_layout():
    versions = [f.version for f in (HASHED, TEXT, PLAIN, Features(["math", "code"]), Features([], text=None))]
    assert len(set(versions)) == 5
    assert Features().version == HASHED.version


def test_text_with_one_repeated_trigram_has_one_direction_however_long():
    short, long = (TEXT.extract(Prompt(text)).x[1:17] for text in ("aaa", "a" * 500))
    np.testing.assert_allclose(short, long, rtol=1e-5)
    assert short.any()


def test_the_projection_keeps_lengths_on_average():
    """The mean of n=400 squared lengths is 1 ± 4·√(2/16)/√400 = ±0.071 if rows are Gaussian of variance 1/16."""
    letters = [chr(97 + i) for i in range(20)]
    texts = [3 * a + 3 * b for a in letters for b in letters]
    squares = [float((TEXT.extract(Prompt(t)).x[1:17] ** 2).sum()) for t in texts]
    assert abs(np.mean(squares) - 1.0) < 0.071


def test_prompts_alike_have_smaller_angles_than_prompts_unlike():
    def direction(text):
        v = TEXT.extract(Prompt(text)).x[1:17]
        return v / np.linalg.norm(v)

    a = direction("Solve the quadratic equation x^2 + 3x + 2 = 0 for x.")
    b = direction("Solve the quadratic equation x^2 + 5x + 6 = 0 for x.")
    c = direction("Schreibe ein Gedicht über den Herbst in Hamburg!")
    assert a @ b > 0.8 > a @ c


def test_another_process_with_another_hash_seed_makes_the_same_vector():
    code = (
        "from bandit import Features, Prompt\n"
        "print(Features().extract(Prompt('Grüße, 世界', 12, category='law')).x.tobytes().hex())"
    )
    here = HASHED.extract(Prompt("Grüße, 世界", 12, category="law")).x.tobytes().hex()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        assert run.stdout.decode().strip() == here


def test_only_the_first_and_last_2048_characters_of_a_long_text_are_read():
    start, end = "abc" * 682 + "xy", "d" * 2048
    assert len(start) == 2048
    long = start + "```def class ü" * 700_000 + end  # about 10 MB
    np.testing.assert_array_equal(TEXT.extract(Prompt(long)).x, TEXT.extract(Prompt(start + end)).x)
    other = start[:-1] + "é" + long[2048:]
    assert (TEXT.extract(Prompt(other)).x != TEXT.extract(Prompt(long)).x).any()


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("a", 0.0), ("😀", 1.0), ("a😀", 0.8), ("\0\0\0\0", 0.0), ("\ud800abc", 0.0), ("\udfff", 0.0)],
)
def test_odd_text_gives_finite_features(text, share):
    x = TEXT.extract(Prompt(text, category=text)).x
    assert np.isfinite(x).all()
    assert x[1 + 16 + 6] == pytest.approx(share)
    assert x[1:17].any() == (len(text.encode("utf-8", "replace")) >= 3)


@pytest.mark.parametrize("field", ["input_tokens", "turns", "tools"])
def test_a_prompt_with_a_negative_count_is_refused(field):
    with pytest.raises(InvalidInput, match=field):
        Prompt("x", **{field: -1})
