"""Sessions: what their hashes keep apart, and how many are remembered for how long."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.traffic.sessions import Kept, Sessions, installation_key, session_hash

KEY = b"k" * 32
TEXTS = st.text(max_size=8)


@given(st.tuples(TEXTS, TEXTS, TEXTS), st.tuples(TEXTS, TEXTS, TEXTS))
def test_sessions_of_two_tenants_pools_or_names_are_two(first, second):
    assert (session_hash(KEY, *first) == session_hash(KEY, *second)) == (first == second)


def test_another_installation_has_other_hashes_and_none_shows_the_name():
    assert session_hash(KEY, "team:a", "auto", "chat-1") != session_hash(b"j" * 32, "team:a", "auto", "chat-1")
    assert len(session_hash(KEY, "team:a", "auto", "chat-1")) == 16
    int(session_hash(KEY, "team:a", "auto", "chat-1"), 16)


def test_the_installations_key_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "session.key"
    made = installation_key(path)
    assert len(made) == 32
    assert installation_key(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_session_is_found_until_it_was_idle_for_too_long():
    sessions = Sessions(limit=10, ttl_s=60.0)
    sessions.keep("s", Kept("a", 100.0, "e/x"))
    assert sessions.find("s", 160.0) == Kept("a", 100.0, "e/x")
    assert sessions.find("s", 160.5) is None
    assert sessions.find("t", 100.0) is None


def test_the_longest_idle_make_room_and_the_forgotten_are_dropped():
    sessions = Sessions(limit=2, ttl_s=60.0)
    for ts, name in enumerate("abac"):
        sessions.keep(name, Kept("m", float(ts)))
    assert [sessions.find(name, 4.0) is not None for name in "abc"] == [True, False, True]
    sessions.keep("d", Kept("m", 1_000.0))
    assert len(sessions) == 1


def test_what_is_kept_survives_as_plain_data():
    sessions, restored = Sessions(5, 60.0), Sessions(5, 60.0)
    sessions.keep("s", Kept("a", 1.0))
    sessions.keep("t", Kept("b", 2.0, "e/x"))
    restored.load(sessions.state())
    assert restored.state() == sessions.state() == [["s", "a", 1.0, None], ["t", "b", 2.0, "e/x"]]


@pytest.mark.parametrize("length", [0, 31])
def test_a_broken_key_is_made_anew(tmp_path, length):
    path = tmp_path / "session.key"
    path.write_bytes(b"x" * length)
    assert len(installation_key(path)) == 32
