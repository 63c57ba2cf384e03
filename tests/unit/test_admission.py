"""Keys: whom they stand for, and that they are kept as digests only."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access.keys import KeyRing
from serving.access.settings import AuthSettings
from serving.access.tiers import Tiers
from serving.admission import Admission, CrossSite, Principal
from serving.errors import Forbidden, Unauthorized

KEYS = [
    {"key": "first-key-1", "user": "ada", "team": "search", "tier": "paid"},
    {"key": "second-key-2", "user": "bo"},
]


def opened(auth=None, hosts=()):
    settings = None if auth is None else AuthSettings.model_validate(auth)
    ring = KeyRing(() if settings is None else settings.keys)
    return Admission(settings, ring, Tiers((), ring.allowed), clock=lambda: 1e9, hosts=hosts)


def sent(authorization=None, host="127.0.0.1", origin=None):
    named = {"Authorization": authorization, "Host": host, "Origin": origin}
    return {name: value for name, value in named.items() if value is not None}


@pytest.fixture
def admission():
    return opened({"admin_key": "admin-key-3", "keys": KEYS})


@pytest.mark.parametrize("authorization", [None, "", "Bearer x", "whatever"])
async def test_without_auth_everybody_is_nobody_in_particular(authorization):
    assert await opened().admit(sent(authorization)) == Principal()


async def test_a_key_stands_for_its_principal(admission):
    """Its id is the beginning of SHA-256("pointsman key id" + SHA-256(key)), computed with a shell."""
    ada = await admission.admit(sent("Bearer first-key-1"))
    assert ada == Principal("ada", "search", "paid", "cfg-f9d6714f4f2c")
    assert ada.tenant == "team:search"
    bo = await admission.admit(sent("bearer  second-key-2 "))
    assert (bo.user, bo.team, bo.tenant, bo.operator) == ("bo", None, "user:bo", False)
    operator = await admission.admit(sent("BEARER admin-key-3"))
    assert (operator, operator.operator) == (Principal("admin", key_id="admin"), True)


def test_no_two_kinds_of_tenant_meet():
    """A user who is called as a team is, or as a key's id, is another tenant."""
    assert Principal(team="x").tenant != Principal(user="x").tenant != Principal(key_id="x").tenant
    assert Principal(user="").tenant != Principal().tenant


@given(st.text(max_size=40))
async def test_what_is_no_key_is_refused(text):
    admission = opened({"keys": KEYS})
    for authorization in (text, f"Bearer {text}", f"Bearer first-key-1{text or '!'}x", f"Basic {text}"):
        with pytest.raises(Unauthorized):
            await admission.admit(sent(authorization))


async def test_a_header_that_is_no_text_is_refused(admission):
    """As it comes from bytes that are no UTF-8."""
    with pytest.raises(Unauthorized):
        await admission.admit(sent("Bearer \udcff\udcfe"))


async def test_no_admin_without_an_admin_key():
    admission = opened({"keys": KEYS})
    for key in ("admin", "admin-key-3", "None"):
        with pytest.raises(Unauthorized):
            await admission.admit(sent(f"Bearer {key}"))


def test_no_key_is_kept(admission):
    def strings(value, depth=0):
        for inner in gc.get_referents(value) if depth < 6 else ():
            if isinstance(inner, str | bytes):
                yield str(inner)
            elif not isinstance(inner, type):
                yield from strings(inner, depth + 1)

    assert not any("-key-" in text for text in strings([admission._admin, admission._ring]))


async def test_the_refusal_says_nothing_about_keys(admission):
    for authorization in ("Bearer first-key-x", "Basic first-key-1", None):
        with pytest.raises(Unauthorized) as refused:
            await admission.admit(sent(authorization))
        assert "first-key" not in str(refused.value)


def test_only_the_admin_key_is_the_operators(admission):
    assert admission.admit_admin(sent("Bearer admin-key-3", "evil.example", "https://evil.example")).operator
    with pytest.raises(Forbidden, match=r"send auth\.admin_key"):
        admission.admit_admin(sent("Bearer first-key-1"))
    with pytest.raises(Unauthorized):
        admission.admit_admin(sent("Bearer nobodys-key"))
    with pytest.raises(Forbidden, match=r"has no auth\.admin_key"):
        opened({"keys": KEYS}).admit_admin(sent("Bearer first-key-1", "localhost"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "[::1]"])
async def test_an_open_service_is_called_and_operated_from_its_own_machine(host):
    for headers in (sent(None, host), sent(None, host, f"http://{host}")):
        assert opened().admit_admin(headers) == Principal()
        assert await opened().admit(headers) == Principal()


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
async def test_an_open_service_takes_neither_orders_nor_calls_from_other_sites_pages(host, origin):
    headers = sent("Bearer any", host, origin)
    assert not opened().here(headers)
    with pytest.raises(CrossSite):
        opened().admit_admin(headers)
    with pytest.raises(CrossSite):
        await opened().admit(headers)


async def test_further_names_are_the_operators_word():
    admission = opened(hosts=("Router.internal",))
    assert await admission.admit(sent(None, "router.INTERNAL:8080")) == Principal()
    assert admission.here(sent(None, "router.internal", "http://router.internal"))
    for headers in (sent(None, "router.internal.evil.example"), sent(None, "router.internal", "http://evil.example")):
        assert not admission.here(headers)
