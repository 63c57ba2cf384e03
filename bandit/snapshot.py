"""Learned state as bytes and back: numpy's own archive with a JSON part, no pickled code.

Knows how nested dictionaries of plain values and arrays are written, not what they mean.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from typing import Any

import numpy as np

from bandit.errors import SnapshotMismatch

__all__ = ["dumps", "loads"]

_ARRAY = "__array__"
# What numpy, zipfile and json raise for damaged bytes; TypeError: numpy read something that is no archive.
_DAMAGE = (ValueError, LookupError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def dumps(state: dict[str, Any]) -> bytes:
    """Bytes of a nested structure of dicts, lists, numbers, strings, None and numpy arrays."""
    arrays: dict[str, np.ndarray] = {}
    meta = json.dumps(_stripped(state, arrays)).encode()
    buffer = io.BytesIO()
    parts: dict[str, Any] = {"meta": np.frombuffer(meta, dtype=np.uint8), **arrays}
    np.savez(buffer, **parts)
    return buffer.getvalue()


def loads(data: bytes) -> dict[str, Any]:
    """The inverse of `dumps`; raises `SnapshotMismatch` for anything it did not write."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        state: dict[str, Any] = _restored(json.loads(arrays.pop("meta").tobytes()), arrays)
    except _DAMAGE as error:
        raise SnapshotMismatch(f"not a snapshot: {error}") from error
    return state


def _stripped(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`value` with names in place of arrays, which go into `arrays`."""
    # Not a function within `dumps`: one that calls itself there is a cycle, and keeps all arrays until a collection.
    if isinstance(value, np.ndarray):
        arrays[f"a{len(arrays)}"] = value
        return {_ARRAY: f"a{len(arrays) - 1}"}
    if isinstance(value, dict):
        return {key: _stripped(item, arrays) for key, item in value.items()}
    return [_stripped(item, arrays) for item in value] if isinstance(value, (list, tuple)) else value


def _restored(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            return arrays[value[_ARRAY]]
        return {key: _restored(item, arrays) for key, item in value.items()}
    return [_restored(item, arrays) for item in value] if isinstance(value, list) else value
