"""Turns a prompt's text into a vector of unit length, so that texts alike have vectors alike.

Two encoders: hashed character trigrams (numpy only) and static word embeddings (the extra `embeddings`). Neither keeps
anything of a text, and neither knows what its vectors are used for.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput

__all__ = ["Encoder", "TextKind", "clip", "encoder"]

TextKind = Literal["trigrams", "embeddings"]
_TEXT_LIMIT = 4096  # characters read from each prompt's text: half from its start, half from its end
_BUCKETS = 512


class Encoder(Protocol):
    """A map from text to vectors; `version` changes whenever any text's vector would."""

    version: str
    dimension: int

    def encode(self, text: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Shape (dimension,), length about 1, or all 0 for a text with nothing in it; `raw` is the text in UTF-8."""
        ...


def encoder(kind: TextKind) -> Encoder:
    """The encoder of a kind; loaded once. Raises InvalidInput where the extra it needs is not installed."""
    return _trigrams() if kind == "trigrams" else _embeddings()


def clip(text: str) -> str:
    """The part of a text that is read: the first and last 2,048 characters of a longer one."""
    if len(text) <= _TEXT_LIMIT:
        return text
    return text[: _TEXT_LIMIT // 2] + text[-_TEXT_LIMIT // 2 :]


class _Trigrams:
    """Counts of hashed byte trigrams in 512 buckets, damped by a square root (Weinberger et al., 2009)."""

    version = "trigram-1"
    dimension = _BUCKETS

    def encode(self, text: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ARG002 - of the Protocol
        """See `Encoder.encode`."""
        if raw.size < 3:
            return np.zeros(_BUCKETS, dtype=np.float32)
        wide = raw.astype(np.uint16)
        # Multiplicative hashing of three bytes (Knuth, TAOCP 6.4) modulo 2¹⁶; the top bits are the well mixed ones.
        mixed = wide[:-2] * np.uint16(0x9E37)
        mixed ^= wide[1:-1] * np.uint16(0x85EB)
        mixed ^= wide[2:] * np.uint16(0xC2B3)
        mixed *= np.uint16(0x27D5)
        counts = np.sqrt(np.bincount(mixed >> np.uint16(7), minlength=_BUCKETS), dtype=np.float32)
        counts *= np.float32(1.0 / sqrt(raw.size - 2))
        return counts


class _Embeddings:
    """Mean of static token embeddings, 256 wide: WordLlama's weights, which come inside its package.

    Only its files are read. The package itself would import a client for downloads and, not finding its own tokenizer
    where it looks, start one.
    """

    version = "wordllama-256"
    dimension = 256

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._table: NDArray[np.float16] = load_file(folder / "weights" / "l2_supercat_256.safetensors")[
            "embedding.weight"
        ]

    def encode(self, text: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ARG002 - of the Protocol
        """See `Encoder.encode`."""
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.intp)
        if not ids.size:
            return np.zeros(self.dimension, dtype=np.float32)
        mean = self._table[np.minimum(ids, len(self._table) - 1)].mean(axis=0, dtype=np.float32)
        length = float(np.linalg.norm(mean))
        return np.asarray(mean / max(length, 1e-12), dtype=np.float32)


@cache
def _trigrams() -> Encoder:
    return _Trigrams()


@cache
def _embeddings() -> Encoder:
    found = find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise InvalidInput(
            "features.text", "embeddings need the extra of that name: pip install 'pointsman[embeddings]'"
        )
    return _Embeddings(Path(found.submodule_search_locations[0]))
