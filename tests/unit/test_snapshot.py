"""Snapshots: what goes in comes out, and nothing else is ever loaded."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from bandit import snapshot
from bandit.errors import SnapshotMismatch

STATE = {
    "numbers": [1, 2.5, -0.0, 1e300, 1e-300],
    "nothing": None,
    "text": "Grüße \U0001f600 \0",
    "flags": [True, False],
    "deep": {"er": [{"a": np.arange(6.0).reshape(2, 3)}, np.array([], dtype=np.int64)]},
    "kinds": [np.array([True, False]), np.array([2**62, -1]), np.array([np.nan, np.inf, -0.0])],
    "empty": {},
}


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    else:
        assert repr(a) == repr(b)  # -0.0 is not 0.0


def test_a_nested_state_comes_back_bit_by_bit():
    assert_same(snapshot.loads(snapshot.dumps(STATE)), STATE)


def test_equal_states_give_equal_bytes():
    assert snapshot.dumps(STATE) == snapshot.dumps(snapshot.loads(snapshot.dumps(STATE)))


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def plain_array():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


def meta(text):
    return np.frombuffer(text.encode(), dtype=np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"not a snapshot at all",
        b"PK\x03\x04",
        bytes(range(256)) * 20,
        plain_array(),
        archive(a=np.arange(3)),  # no meta
        archive(meta=meta("{")),
        archive(meta=meta('{"a": {"__array__": "a0"}}')),  # names an array that is not there
        archive(meta=meta('{"a": {"__array__": [1]}}')),
        archive(meta=np.array([0xFF, 0xFE], dtype=np.uint8)),
    ],
)
def test_other_bytes_are_refused(data):
    with pytest.raises(SnapshotMismatch):
        snapshot.loads(data)


class Explosive:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_refused_unopened():
    objects = np.array([Explosive()], dtype=object)
    for data in (pickle.dumps(Explosive()), archive(meta=meta('{"a": {"__array__": "a0"}}'), a0=objects)):
        with pytest.raises(SnapshotMismatch):
            snapshot.loads(data)


SMALL = {"a": np.arange(5.0), "b": [1, None, "x"]}


def test_every_truncation_is_refused():
    data = snapshot.dumps(SMALL)
    for length in range(len(data)):
        with pytest.raises(SnapshotMismatch):
            snapshot.loads(data[:length])


def test_a_flipped_bit_is_refused_or_harmless():
    data = snapshot.dumps(SMALL)
    refused = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        try:
            state = snapshot.loads(bytes(damaged))
        except SnapshotMismatch:
            refused += 1
        else:
            assert_same(state, SMALL)
    assert refused > len(data) // 2
