"""Keys: whom they stand for, and that they are kept as digests only."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import Admission, Principal
from serving.errors import Forbidden, Unauthorized
from serving.settings import AuthSettings

KEYS = [
    {"key": "first-key-1", "user": "ada", "team": "search", "tier": "paid"},
    {"key": "second-key-2", "user": "bo"},
]


@pytest.fixture
def admission():
    return Admission(AuthSettings.model_validate({"admin_key": "admin-key-3", "keys": KEYS}))


@pytest.mark.parametrize("authorization", [None, "", "Bearer x", "whatever"])
def test_without_auth_everybody_is_nobody_in_particular(authorization):
    assert Admission(None).admit(authorization) == Principal()


def test_a_key_stands_for_its_principal(admission):
    assert admission.admit("Bearer first-key-1") == Principal("ada", "search", "paid")
    assert admission.admit("bearer  second-key-2 ") == Principal("bo")
    assert admission.admit("BEARER admin-key-3") == Principal("admin")


@given(st.text(max_size=40))
def test_what_is_no_key_is_refused(text):
    auth = AuthSettings.model_validate({"keys": KEYS})
    for authorization in (text, f"Bearer {text}", f"Bearer first-key-1{text or '!'}x", f"Basic {text}"):
        with pytest.raises(Unauthorized):
            Admission(auth).admit(authorization)


def test_a_header_that_is_no_text_is_refused(admission):
    """As it comes from bytes that are no UTF-8."""
    with pytest.raises(Unauthorized):
        admission.admit("Bearer \udcff\udcfe")


def test_no_admin_without_an_admin_key():
    admission = Admission(AuthSettings.model_validate({"keys": KEYS}))
    for key in ("admin", "admin-key-3", "None"):
        with pytest.raises(Unauthorized):
            admission.admit(f"Bearer {key}")


def test_no_key_is_kept(admission):
    def strings(value, depth=0):
        for inner in gc.get_referents(value) if depth < 6 else ():
            if isinstance(inner, str | bytes):
                yield str(inner)
            elif not isinstance(inner, type):
                yield from strings(inner, depth + 1)

    assert not any("-key-" in text for text in strings([admission._admin, admission._by_digest]))


def test_the_refusal_says_nothing_about_keys(admission):
    for authorization in ("Bearer first-key-x", "Basic first-key-1", None):
        with pytest.raises(Unauthorized) as refused:
            admission.admit(authorization)
        assert "first-key" not in str(refused.value)


def test_only_the_admin_key_is_the_operators(admission):
    assert admission.admit_admin("Bearer admin-key-3", "evil.example", "https://evil.example") == Principal("admin")
    with pytest.raises(Forbidden, match=r"send auth\.admin_key"):
        admission.admit_admin("Bearer first-key-1", "127.0.0.1", None)
    with pytest.raises(Unauthorized):
        admission.admit_admin("Bearer nobodys-key", "127.0.0.1", None)
    with pytest.raises(Forbidden, match=r"has no auth\.admin_key"):
        Admission(AuthSettings.model_validate({"keys": KEYS})).admit_admin("Bearer first-key-1", "localhost", None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "[::1]"])
def test_an_open_service_is_operated_from_its_own_machine(host):
    assert Admission(None).admit_admin(None, host, None) == Principal()
    assert Admission(None).admit_admin(None, host, f"http://{host}") == Principal()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example:8080", None),
        ("evil.example:8080", "http://evil.example:8080"),
        ("127.0.0.1:8080", "https://evil.example"),
        ("127.0.0.1:8080", "http://127.0.0.1:3000"),
        ("127.0.0.1:8080", "null"),
        ("127.0.0.1:8080", ""),
        ("127.0.0.1.evil.example", None),
        ("127.0.0.1@evil.example", None),
        ("192.0.2.1:8080", None),
        ("[::1", None),
        ("", None),
    ],
)
def test_an_open_service_takes_no_orders_from_other_sites_pages(host, origin):
    with pytest.raises(Forbidden):
        Admission(None).admit_admin(None, host, origin)
