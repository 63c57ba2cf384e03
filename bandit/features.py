"""Turns one prompt into the feature vector the policy sees, with numpy only and in one pass.

Owns the layout of `x` and its version. Knows nothing of arms, rewards or HTTP, and keeps nothing of the text:
what leaves this module cannot be turned back into a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from math import log1p, sqrt

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput
from bandit.types import Context, Prompt

__all__ = ["MAX_DIMENSION", "Features"]

MAX_DIMENSION = 32
_TEXT_COMPONENTS = 16
_FACTS = 7
_HASHED_CATEGORIES = 8
_BUCKETS = 512
_LARGEST_FEATURE = 100.0  # in a caller's own vector: one of 1e30 would wipe out all that was learned
_TEXT_LIMIT = 4096  # characters read from each prompt's text: half from its start, half from its end
_CODE = re.compile(r"```|\b(?:def|class|function|import|SELECT) |#include|\};|</")


class Features:
    """Feature extractor: intercept, hashed character trigrams, the request's facts, the caller's category.

    `x` has shape (dimension,), float32, in this order:

    - 1 intercept, always 1;
    - up to 16 text components: counts of hashed character trigrams in 512 buckets, damped by a square root,
      normalised to length 1 and put through a fixed Gaussian random projection (Johnson & Lindenstrauss, 1984;
      feature hashing: Weinberger et al., 2009). Angles between prompts survive, meanings do not;
    - 7 facts: input tokens, turns, system prompt, tools, code, JSON mode, share of non-ASCII bytes;
    - the category: one column a name of `categories` if given (text components give way so that d ≤ 32),
      otherwise hashed to one of 8 columns.

    `extract` reads at most 4,096 characters. It is deterministic across processes and machines.
    """

    def __init__(self, categories: Sequence[str] | None = None, *, text: bool = True) -> None:
        if categories is not None and len(set(categories)) != len(categories):
            raise InvalidInput("features.categories", "names must be distinct")
        n_categories = _HASHED_CATEGORIES if categories is None else len(categories)
        room = MAX_DIMENSION - 1 - _FACTS - n_categories
        if room < 0:
            raise InvalidInput("features.categories", f"at most {MAX_DIMENSION - 1 - _FACTS} names")
        self._columns = None if categories is None else {name: i for i, name in enumerate(categories)}
        self._text_components = min(_TEXT_COMPONENTS, room) if text else 0
        self._facts_at = 1 + self._text_components
        self._category_at = self._facts_at + _FACTS
        self.dimension = self._category_at + n_categories
        names = "hashed" if categories is None else blake2b("\0".join(categories).encode(), digest_size=4).hexdigest()
        self.version = f"trigram-1/t{self._text_components}/c{n_categories}-{names}"
        generator = np.random.Generator(np.random.PCG64(20_240_725))
        projection = generator.standard_normal((_BUCKETS, _TEXT_COMPONENTS))[:, : self._text_components]
        self._projection = (projection / np.sqrt(max(1, self._text_components))).astype(np.float32)

    def extract(self, prompt: Prompt) -> Context:
        """The context of one prompt; O(length of its text) up to the limit."""
        x = np.zeros(self.dimension, dtype=np.float32)
        x[0] = 1.0
        text = _clip(prompt.text)
        raw = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
        if self._text_components and raw.size >= 3:
            x[1 : self._facts_at] = self._text(raw)
        x[self._facts_at : self._category_at] = (
            log1p(prompt.input_tokens) / 8.0,
            log1p(prompt.turns) / 3.0,
            prompt.has_system,
            log1p(prompt.tools) / 3.0,
            _CODE.search(text) is not None,
            prompt.json_mode,
            0.0 if text.isascii() else np.count_nonzero(raw > 127) / raw.size,
        )
        if prompt.category is not None:
            column = self._column(prompt.category)
            if column is not None:
                x[self._category_at + column] = 1.0
        return Context(x=x, version=self.version, input_tokens=prompt.input_tokens, category=prompt.category)

    def check(self, x: Sequence[float]) -> NDArray[np.float32]:
        """A caller's own vector as an array, or `InvalidInput` when its shape or a value is wrong."""
        try:
            array = np.asarray(x, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            array = np.empty(0)
        if array.shape != (self.dimension,) or array[0] != 1.0 or not (np.abs(array) <= _LARGEST_FEATURE).all():
            expected = f"{self.dimension} numbers between -{_LARGEST_FEATURE:g} and {_LARGEST_FEATURE:g}, the first 1"
            raise InvalidInput("context", f"must be {expected}, for features {self.version}")
        return array.astype(np.float32)

    def _text(self, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
        wide = raw.astype(np.uint16)
        # Multiplicative hashing of three bytes (Knuth, TAOCP 6.4) modulo 2¹⁶; the top bits are the well mixed ones.
        mixed = wide[:-2] * np.uint16(0x9E37)
        mixed ^= wide[1:-1] * np.uint16(0x85EB)
        mixed ^= wide[2:] * np.uint16(0xC2B3)
        mixed *= np.uint16(0x27D5)
        counts = np.sqrt(np.bincount(mixed >> np.uint16(7), minlength=_BUCKETS), dtype=np.float32)
        counts *= np.float32(1.0 / sqrt(raw.size - 2))
        projected: NDArray[np.float32] = counts @ self._projection
        return projected

    def _column(self, category: str) -> int | None:
        if self._columns is not None:
            return self._columns.get(category)
        return _hashed_column(category)


@lru_cache(maxsize=4096)
def _hashed_column(category: str) -> int:
    return (
        int.from_bytes(blake2b(category.encode("utf-8", "replace"), digest_size=8).digest(), "big") % _HASHED_CATEGORIES
    )


def _clip(text: str) -> str:
    if len(text) <= _TEXT_LIMIT:
        return text
    return text[: _TEXT_LIMIT // 2] + text[-_TEXT_LIMIT // 2 :]
