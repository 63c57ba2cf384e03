"""Turns one prompt into the feature vector the policy sees, in one pass.

Owns the layout of `x` and its version. Knows nothing of arms, rewards or HTTP, and keeps nothing of the text:
what leaves this module cannot be turned back into a prompt.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput
from bandit.text import Encoder, TextKind, clip, encoder
from bandit.types import Context, Prompt

__all__ = ["MAX_DIMENSION", "Features"]

MAX_DIMENSION = 64
_ROOMY = 32  # fitted categories and clusters take no more columns than this
_TEXT_COMPONENTS = 16
_FACTS = 7
_HASHED_CATEGORIES = 24
_WEAK_PRECISION = 10.0
_LARGEST_FEATURE = 100.0  # in a caller's own vector: one of 1e30 would wipe out all that was learned
_CODE_HINTS = (
    "```",
    "def ",
    "class ",
    "function ",
    "import ",
    "SELECT ",
    "#include ",
    "};",
    "</",
)  # one of them is there
_CODE = re.compile(r"```|\b(?:def|class|function|import|SELECT) |#include|\};|</")


class Features:
    """Feature extractor: intercept, text, the request's facts, the caller's category and the caller's own vector.

    `x` has shape (dimension,), float32, in this order:

    - 1 intercept, always 1;
    - the text, unless `text` is None: once `clusters` of shape (n_clusters, encoder's dimension) are fitted, one-hot of
      the one nearest to its encoding (`bandit.text`) by inner product; before that, for a pool without categories, the
      encoding through a fixed Gaussian random projection to 16 components (Johnson & Lindenstrauss, 1984), which keeps
      angles but no meanings;
    - 7 facts: input tokens, turns, system prompt, tools, code, JSON mode, share of non-ASCII bytes;
    - the category: one column a name of `categories` (empty: none), for None hashed to one of 24 columns;
    - `vector` columns for the caller's own features, 0 for a request that brings none.

    `precision_scale` (d,) says how much more evidence a column needs than a category's: 10 times for facts and
    projected text, which predict little and are many (on ten models' real answers, cold, with unscaled ones a policy
    lost .002 to .004 of quality to exploring them).

    d is 32 by default and at most 64; every decision costs O(n_arms·d²).
    `extract` reads at most 4,096 characters. It is deterministic across processes and machines. `version` names the
    layout and everything fitted, so that nothing is ever learned from another layout's vectors.
    """

    def __init__(
        self,
        categories: Sequence[str] | None = None,
        *,
        text: TextKind | None = "trigrams",
        clusters: NDArray[np.float32] | None = None,
        vector: int = 0,
    ) -> None:
        if categories is not None and len(set(categories)) != len(categories):
            raise InvalidInput("features.categories", "names must be distinct")
        if clusters is not None and text is None:
            raise InvalidInput("features.clusters", "are clusters of the text; text must be on")
        self.categories = None if categories is None else tuple(categories)
        self.text, self.clusters, self.vector = text, clusters, vector
        n_categories = _HASHED_CATEGORIES if self.categories is None else len(self.categories)
        taken = 1 + _FACTS + n_categories + vector
        self._encoder: Encoder | None = None if text is None else encoder(text)
        if clusters is not None:
            text_columns = self._checked_clusters(clusters)
        else:
            text_columns = _TEXT_COMPONENTS if text is not None and self.categories == () else 0
        self.dimension = taken + text_columns
        if vector < 0 or self.dimension > MAX_DIMENSION:
            raise InvalidInput("features", f"{self.dimension} columns; at most {MAX_DIMENSION} fit")
        self._facts_at = 1 + text_columns
        self._category_at = self._facts_at + _FACTS
        self._vector_at = self._category_at + n_categories
        self._columns = None if self.categories is None else {name: i for i, name in enumerate(self.categories)}
        self._projection = _projection(self._encoder, 0 if clusters is not None else text_columns)
        self.precision_scale = np.ones(self.dimension)
        self.precision_scale[1 if clusters is None else self._facts_at : self._category_at] = _WEAK_PRECISION
        self.version = self._version(text_columns)

    def extract(self, prompt: Prompt) -> Context:
        """The context of one prompt; O(length of its text) up to the limit.

        Raises InvalidInput for a vector that does not fit.
        """
        x = np.zeros(self.dimension, dtype=np.float32)
        x[0] = 1.0
        text = clip(prompt.text)
        raw = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
        if self._encoder is not None and self._facts_at > 1 and text:
            x[1 : self._facts_at] = self._text_columns(self._encoder.encode(text, raw))
        x[self._facts_at : self._category_at] = (
            log1p(prompt.input_tokens) / 8.0,
            log1p(prompt.turns) / 3.0,
            prompt.has_system,
            log1p(prompt.tools) / 3.0,
            _has_code(text),
            prompt.json_mode,
            0.0 if text.isascii() else np.count_nonzero(raw > 127) / raw.size,
        )
        if prompt.category is not None:
            column = self._column(prompt.category)
            if column is not None:
                x[self._category_at + column] = 1.0
        if prompt.vector is not None:
            x[self._vector_at :] = _checked(prompt.vector, self.vector)
        return Context(x=x, version=self.version, input_tokens=prompt.input_tokens, category=prompt.category)

    def fitted(self, prompts: Sequence[Prompt], *, clusters: int = 0, seed: int = 0) -> Features:
        """Features of the same kind with what can be learned from prompts alone, before any outcome.

        The category names that occur, where none were given (the most frequent, as many as fit), and `clusters`
        clusters of the texts by k-means on their encodings (Lloyd, 1982; k-means++ seeds), 0 for none.
        """
        categories = self.categories
        if categories is None:
            room = _ROOMY - 1 - _FACTS - self.vector - clusters
            names = Counter(p.category for p in prompts if p.category is not None)
            categories = tuple(sorted(name for name, _ in names.most_common(max(0, room))))
        centres = None
        if clusters and self._encoder is not None:
            centres = _centres(self._encoder, (p.text for p in prompts), clusters, seed)
        return Features(categories, text=self.text, clusters=centres, vector=self.vector)

    def state(self) -> dict[str, Any]:
        """Everything that makes these features, as plain data; `from_state` is its inverse."""
        return {
            "categories": None if self.categories is None else list(self.categories),
            "text": self.text,
            "clusters": self.clusters,
            "vector": self.vector,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Features:
        """The features that `state` was made of."""
        return Features(
            state["categories"], text=state["text"], clusters=state["clusters"], vector=int(state["vector"])
        )

    def _checked_clusters(self, clusters: NDArray[np.float32]) -> int:
        width = 0 if self._encoder is None else self._encoder.dimension
        if clusters.ndim != 2 or clusters.shape[1] != width or not np.isfinite(clusters).all():
            raise InvalidInput("features.clusters", f"must be finite, of shape (n_clusters, {width})")
        return int(clusters.shape[0])

    def _text_columns(self, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.clusters is not None:
            column = np.zeros(self._facts_at - 1, dtype=np.float32)
            if encoded.any():
                column[int(np.argmax(self.clusters @ encoded))] = 1.0
            return column
        return np.asarray(encoded @ self._projection, dtype=np.float32)

    def _column(self, category: str) -> int | None:
        if self._columns is not None:
            return self._columns.get(category)
        return _hashed_column(category)

    def _version(self, text_columns: int) -> str:
        names = "hashed" if self.categories is None else _digest("\0".join(self.categories).encode())
        text = "none" if self._encoder is None or not text_columns else f"{self._encoder.version}/{text_columns}"
        if self.clusters is not None:
            text += f"-{_digest(np.ascontiguousarray(self.clusters, dtype=np.float32).tobytes())}"
        n_categories = self._vector_at - self._category_at
        return f"2/{text}/c{n_categories}-{names}" + (f"/v{self.vector}" if self.vector else "")


def _has_code(text: str) -> bool:
    """Looks for words that hardly any text has first, which takes a fifth of the time."""
    return any(hint in text for hint in _CODE_HINTS) and _CODE.search(text) is not None


def _checked(values: Sequence[float], n: int) -> NDArray[np.float32]:
    """A caller's own vector as an array, or `InvalidInput` when its length or a value is wrong."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty((0, 0))
    if array.shape != (n,) or not (np.abs(array) <= _LARGEST_FEATURE).all():
        limits = f"{n} numbers between -{_LARGEST_FEATURE:g} and {_LARGEST_FEATURE:g}"
        raise InvalidInput("context", f"must be {limits}" if n else "this pool takes no vector (features.vector)")
    return array.astype(np.float32)


def _projection(text_encoder: Encoder | None, columns: int) -> NDArray[np.float32]:
    """A fixed Gaussian random projection, shape (encoder's dimension, columns), that keeps lengths on average."""
    rows = 0 if text_encoder is None else text_encoder.dimension
    generator = np.random.Generator(np.random.PCG64(20_240_725))
    projection = generator.standard_normal((rows, _TEXT_COMPONENTS))[:, :columns]
    return np.asarray(projection / np.sqrt(max(1, columns)), dtype=np.float32)


def _centres(text_encoder: Encoder, texts: Iterable[str], n: int, seed: int) -> NDArray[np.float32]:
    from scipy.cluster.vq import kmeans2

    encoded = [text_encoder.encode(t, np.frombuffer(t.encode("utf-8", "replace"), np.uint8)) for t in map(clip, texts)]
    rows = np.unique(np.array([row for row in encoded if row.any()], dtype=np.float64), axis=0)
    if len(rows) < n:
        raise InvalidInput("features.clusters", f"{len(rows)} different texts cannot make {n} clusters")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an empty cluster, which goes
        centres, labels = kmeans2(
            rows, n, iter=50, minit="++", rng=np.random.Generator(np.random.PCG64(seed)), missing="warn"
        )
    centres = centres[np.unique(labels)]
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    return np.asarray(centres / np.maximum(lengths, 1e-12), dtype=np.float32)


@lru_cache(maxsize=4096)
def _hashed_column(category: str) -> int:
    return int(_digest(category.encode("utf-8", "replace"), 8), 16) % _HASHED_CATEGORIES


def _digest(data: bytes, size: int = 4) -> str:
    return blake2b(data, digest_size=size).hexdigest()
