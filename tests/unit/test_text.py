"""Encoders: unit length, texts alike near each other, nothing for nothing; and word embeddings where installed."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import Features, Prompt
from bandit.errors import InvalidInput
from bandit.text import clip, encoder


def encode(kind, text):
    return encoder(kind).encode(text, np.frombuffer(text.encode("utf-8", "replace"), np.uint8))


@pytest.fixture(params=["trigrams", "embeddings"])
def kind(request):
    if request.param == "embeddings":
        pytest.importorskip("wordllama")
        pytest.importorskip("tokenizers")
        pytest.importorskip("safetensors")
    return request.param


def test_an_encoding_has_its_stated_width_and_unit_length(kind):
    for text in ("What is 2 + 2?", "Grüße aus Köln, 世界! 😀", "word " * 1000):
        vector = encode(kind, text)
        assert (vector.shape, vector.dtype) == ((encoder(kind).dimension,), np.float32)
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_array_equal(encode(kind, text), vector)


def test_an_empty_text_has_no_direction(kind):
    assert not encode(kind, "").any()


def test_texts_alike_are_nearer_than_texts_unlike(kind):
    a, b, c = (
        encode(kind, text)
        for text in (
            "Solve the quadratic equation x^2 + 3x + 2 = 0 for x.",
            "Find the roots of the quadratic equation x^2 + 5x + 6 = 0.",
            "Write a love letter from a pirate to the sea.",
        )
    )
    assert a @ b > a @ c + 0.1


def test_trigrams_are_counted_and_damped_by_a_square_root():
    """The text "aaaa" has one trigram twice: √2/√2. Two different ones share the length: 1/√2 each."""
    assert sorted(encode("trigrams", "aaaa"))[-2:] == pytest.approx([0.0, 1.0])
    assert sorted(encode("trigrams", "abcd"))[-3:] == pytest.approx([0.0, 0.5**0.5, 0.5**0.5])
    assert not encode("trigrams", "ab").any()


def test_word_embeddings_know_words_of_like_meaning():
    """Texts with no word in common: trigrams cannot tell, embeddings can."""
    for module in ("wordllama", "tokenizers", "safetensors"):
        pytest.importorskip(module)
    physician, doctor, guitar = (encode("embeddings", text) for text in ("physician", "doctor", "guitar"))
    assert physician @ doctor > physician @ guitar + 0.2


def test_features_of_embeddings_have_a_version_of_their_own():
    for module in ("wordllama", "tokenizers", "safetensors"):
        pytest.importorskip(module)
    features = Features([], text="embeddings")
    assert features.version != Features([]).version
    assert features.extract(Prompt("hello there")).x[1:17].any()


def test_without_the_extra_embeddings_say_what_to_install(monkeypatch):
    import bandit.text as module

    module._embeddings.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(InvalidInput, match=r"pip install 'pointsman\[embeddings\]'"):
        encoder("embeddings")


def test_long_texts_are_clipped_to_their_ends():
    assert clip("a" * 4096) == "a" * 4096
    assert clip("a" * 3000 + "b" * 3000) == "a" * 2048 + "b" * 2048
