"""Tokens: what they must prove, and that no algorithm, key or claim of the sender's choice gets past."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from hashlib import sha256

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.access.jwks import FileKeys, UrlKeys, parse_set
from serving.access.jwt import FixedKey, TokenReader, is_token
from serving.access.principal import Principal
from serving.access.settings import JwtSettings
from serving.errors import Unauthorized, Unavailable
from serving.settings import ConfigError, Settings

SECRET = "a-shared-secret-of-more-than-32-bytes"


def settings(**more):
    return JwtSettings.model_validate(more)


def claims(**more):
    return {"sub": "ada", "exp": time.time() + 60} | more


def part(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed_by_hand(header, body, key):
    """HS256 by RFC 7515, without the library under test."""
    text = f"{part(header)}.{part(body)}"
    return f"{text}.{part(hmac.digest(key, text.encode(), 'sha256'))}"


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def pem(rsa_key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return rsa_key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def jwk(key, kid, **more):
    kind = jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
    return json.loads(kind.to_jwk(key.public_key())) | {"kid": kid} | more


@pytest.fixture
def shared():
    with_secret = settings(algorithms=["HS256"], secret=SECRET)
    return TokenReader(with_secret, FixedKey(with_secret))


async def refusal(reader, token):
    with pytest.raises(Unauthorized) as refused:
        await reader.read(token)
    return str(refused.value)


async def test_a_token_stands_for_whom_its_claims_name(shared):
    token = signed_by_hand({"alg": "HS256"}, claims(team="search", tier="paid", iss="x"), SECRET.encode())
    subject = sha256(b"x\nada").hexdigest()[:16]
    assert await shared.read(token) == Principal("ada", "search", "paid", f"jwt:{subject}")


async def test_other_claims_may_say_it():
    given_names = {"user": "email", "team": "https://example.com/team", "tier": "plan"}
    other = settings(algorithms=["HS256"], secret=SECRET, claims=given_names)
    body = claims(email="ada@example.com", plan="free", tier="paid") | {"https://example.com/team": "search"}
    principal = await TokenReader(other, FixedKey(other)).read(jwt.encode(body, SECRET))
    assert (principal.user, principal.team, principal.tier) == ("ada@example.com", "search", "free")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"exp": 1.0}, "has expired"),
        ({"exp": None}, "lacks exp"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"nbf": 32503680000}, "not valid yet"),  # in the year 3000: parameters are made long before tests run
        ({"sub": None}, "no claim 'sub'"),
        ({"sub": ""}, "claim 'sub' must be a text"),
        ({"sub": "a\nb"}, "claim 'sub' must be a text"),
        ({"sub": "a" * 201}, "claim 'sub' must be a text"),
        ({"tier": ["paid"]}, "claim 'tier' must be a text"),
        ({"team": 7}, "claim 'team' must be a text"),
    ],
)
async def test_a_token_without_what_it_must_say_is_refused(shared, more, says):
    body = {name: value for name, value in claims(**more).items() if value is not None}
    assert says in await refusal(shared, signed_by_hand({"alg": "HS256"}, body, SECRET.encode()))


async def test_issuer_and_audience_are_asked_for_where_they_are_named():
    strict = settings(algorithms=["HS256"], secret=SECRET, issuer="https://a", audience="us")
    reader = TokenReader(strict, FixedKey(strict))
    assert (await reader.read(jwt.encode(claims(iss="https://a", aud=["them", "us"]), SECRET))).user == "ada"
    assert "another issuer" in await refusal(reader, jwt.encode(claims(iss="https://b", aud="us"), SECRET))
    assert "another audience" in await refusal(reader, jwt.encode(claims(iss="https://a", aud="them"), SECRET))
    assert "lacks" in await refusal(reader, jwt.encode(claims(iss="https://a"), SECRET))


async def test_clocks_may_differ_by_the_leeway(shared):
    lenient = settings(algorithms=["HS256"], secret=SECRET, leeway_s=60)
    token = jwt.encode(claims(exp=time.time() - 30), SECRET)
    assert (await TokenReader(lenient, FixedKey(lenient)).read(token)).user == "ada"
    assert "expired" in await refusal(shared, token)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 7, [], "RS256", "HS512", "hs256"])
async def test_an_algorithm_that_was_not_named_is_refused(shared, algorithm):
    """Also where it is signed with the right secret, and `none` with and without a signature."""
    token = signed_by_hand({"alg": algorithm}, claims(), SECRET.encode())
    for text in (token, token.rpartition(".")[0] + "."):
        await refusal(shared, text)


async def test_a_public_key_is_no_shared_secret(pem):
    """The classic confusion: HS256, signed with the public key that everybody has."""
    public = settings(algorithms=["RS256"], public_key=pem)
    reader = TokenReader(public, FixedKey(public))
    for key in (pem.encode(), pem.strip().encode()):
        assert "RS256" in await refusal(reader, signed_by_hand({"alg": "HS256"}, claims(), key))
        await refusal(reader, signed_by_hand({"alg": "RS256"}, claims(), key))


async def test_rs256_with_a_public_key(rsa_key, pem):
    public = settings(algorithms=["RS256"], public_key=pem)
    reader = TokenReader(public, FixedKey(public))
    assert (await reader.read(jwt.encode(claims(), rsa_key, "RS256"))).user == "ada"
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert "signature" in await refusal(reader, jwt.encode(claims(), other, "RS256"))


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60), st.integers(0, 2), st.integers(0, 200))
async def test_a_token_that_was_tampered_with_is_refused(text, which, at):
    with_secret = settings(algorithms=["HS256"], secret=SECRET)
    reader, parts = TokenReader(with_secret, FixedKey(with_secret)), jwt.encode(claims(), SECRET).split(".")
    old = parts[which]
    at %= len(old) - 1  # the last character of base64 has bits that mean nothing
    parts[which] = old[:at] + ("A" if old[at] != "A" else "B") + old[at + 1 :]
    for token in (".".join(parts), text, f"{text}.{text}.{text}"):
        said = await refusal(reader, token)
        assert SECRET not in said
        assert len(text) < 8 or text not in said


async def test_depth_and_length_are_bounded(shared):
    deep = f"{part(b'[' * 5000)}.{part({})}.x"
    assert "malformed" in await refusal(shared, deep)
    assert "longer" in await refusal(shared, "a" * 9000 + ".b.c")


def test_what_has_the_form_of_a_token():
    assert is_token(jwt.encode(claims(), SECRET))
    assert not any(is_token(text) for text in ("pm-key-abc", "a.b", "a.b.c.d", "..", "a b.c.d", "ä.b.c"))


# --- JWK sets


class Pages:
    """A session whose GETs give `status` and `body`, or raise; counts them."""

    def __init__(self, body=b"", status=200):
        self.body, self.status, self.count, self.held = body, status, 0, None

    def get(self, _url, **_):
        self.count += 1
        return _Page(self)


class _Page:
    def __init__(self, pages):
        self.pages, self.status, self.content = pages, pages.status, self

    async def __aenter__(self):
        if self.pages.held is not None:
            await self.pages.held.wait()
        if isinstance(self.pages.body, Exception):
            raise self.pages.body
        return self

    async def __aexit__(self, *_):
        return None

    async def iter_any(self):
        for at in range(0, len(self.pages.body), 1000):
            yield self.pages.body[at : at + 1000]


def a_set(*keys):
    return json.dumps({"keys": keys}).encode()


async def test_a_key_is_found_by_its_id_and_may_only_do_what_it_is_for(rsa_key, tmp_path):
    curve = ec.generate_private_key(ec.SECP256R1())
    shared = {"kty": "oct", "kid": "s", "k": part(SECRET.encode())}
    path = tmp_path / "jwks.json"
    path.write_bytes(a_set(jwk(rsa_key, "r"), jwk(curve, "e"), shared, jwk(rsa_key, "enc", use="enc"), {"kty": "?"}, 7))
    named = settings(algorithms=["RS256", "ES256"], jwks_file=str(path))
    reader = TokenReader(named, FileKeys(named))
    assert (await reader.read(jwt.encode(claims(), rsa_key, "RS256", headers={"kid": "r"}))).user == "ada"
    assert (await reader.read(jwt.encode(claims(), curve, "ES256", headers={"kid": "e"}))).user == "ada"
    assert (await reader.read(jwt.encode(claims(), rsa_key, "RS256"))).user == "ada"  # the only one of its kind
    for key, algorithm, kid in ((rsa_key, "RS256", "e"), (rsa_key, "RS256", "enc"), (rsa_key, "RS256", "x")):
        assert "nobody here knows" in await refusal(reader, jwt.encode(claims(), key, algorithm, headers={"kid": kid}))
    await refusal(reader, jwt.encode(claims(), SECRET, "HS256", headers={"kid": "s"}))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"keys": {}}', b"<html>", b'{"keys": [' + b"{}," * 1000 + b"{}]}"]
)
def test_what_is_no_set_is_refused(raw):
    with pytest.raises(ValueError, match=r"."):
        parse_set(raw)


async def test_a_file_is_read_again_when_it_changes(rsa_key, tmp_path):
    """A key that leaves the set is refused from then on; a set that cannot be read leaves the last one in force."""
    path, now = tmp_path / "jwks.json", 0.0
    named = settings(algorithms=["RS256"], jwks_file=str(path))
    keys = FileKeys(named, clock=lambda: now)
    with pytest.raises(Unavailable):
        await keys.key_for("a", "RS256")
    for content, known in ((a_set(jwk(rsa_key, "a")), "a"), (b"nonsense", "a"), (a_set(jwk(rsa_key, "bb")), "bb")):
        path.write_bytes(content)
        now += 1
        await keys.key_for(known, "RS256")
    with pytest.raises(Unauthorized):
        await keys.key_for("a", "RS256")


async def test_an_unknown_key_id_asks_once_and_not_again_before_the_retry(rsa_key):
    now, pages = 0.0, Pages(a_set(jwk(rsa_key, "a")))
    named = settings(algorithms=["RS256"], jwks_url="https://x.example/k", jwks_retry_s=10)
    keys = UrlKeys(named, pages, clock=lambda: now)
    await keys.refresh()
    pages.body = a_set(jwk(rsa_key, "a"), jwk(rsa_key, "b"))
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await keys.key_for("b", "RS256")
    assert pages.count == 1
    now = 10.0
    pages.held = asyncio.Event()
    asking = [asyncio.create_task(keys.key_for("b", "RS256")) for _ in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    asking[0].cancel()
    pages.held.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(each, asyncio.CancelledError) for each in found) == 1
    assert sum(isinstance(each, jwt.PyJWK) for each in found) == 49
    assert pages.count == 2


@pytest.mark.parametrize(
    "broken", [b"nonsense", b"[" * 2000, OSError("refused at https://x/?token=abc"), TimeoutError()]
)
async def test_a_set_that_cannot_be_fetched_leaves_the_last_one(rsa_key, broken, caplog):
    pages = Pages(broken)
    named = settings(algorithms=["RS256"], jwks_url="https://x.example/k?token=abc", jwks_max_bytes=1024)
    keys = UrlKeys(named, pages)
    await keys.refresh()
    with pytest.raises(Unavailable):
        await keys.key_for("a", "RS256")
    pages.body = a_set(jwk(rsa_key, "a"))
    await keys.refresh()
    good = pages.body
    for body, status in ((broken, 200), (good, 500), (good, 302)):
        pages.body, pages.status = body, status
        await keys.refresh()
        await keys.key_for("a", "RS256")
    assert "cannot be fetched" in caplog.text
    assert "abc" not in caplog.text


# --- the section of the configuration


def test_a_public_key_that_is_none_is_told_before_the_service_starts(pem):
    """Also one of another kind than the algorithm's."""
    model = {"name": "m", "endpoint": "http://127.0.0.1:9/v1"}
    data = {"models": [model], "pools": [{"name": "p", "models": ["m"]}]}
    broken = pem.replace("M", "!", 1)
    for key, algorithm in ((broken, "RS256"), (pem, "ES256"), (pem, "EdDSA")):
        with pytest.raises(ConfigError) as refused:
            Settings.parse(data | {"auth": {"jwt": {"algorithms": [algorithm], "public_key": key}}})
        assert [problem.path for problem in refused.value.problems] == ["auth.jwt.public_key"]
    assert Settings.parse(data | {"auth": {"jwt": {"algorithms": ["RS256"], "public_key": pem}}}).auth is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"], "secret": SECRET},
        {"algorithms": [], "secret": SECRET},
        {"algorithms": ["RS256"], "secret": SECRET},
        {"algorithms": ["HS256", "RS256"], "secret": SECRET},
        {"algorithms": ["HS512"], "secret": SECRET},
        {"algorithms": ["HS256"], "secret": "short"},
        {"algorithms": ["HS256"], "jwks_file": "x"},
        {"algorithms": ["RS256"], "jwks_file": "x", "jwks_url": "https://x.example"},
        {"algorithms": ["RS256"], "jwks_url": "http://x.example/jwks"},
        {"algorithms": ["RS256"], "jwks_url": "file:///etc/passwd"},
        {"algorithms": ["RS256"], "jwks_url": "https://me:secret@x.example"},
        {"algorithms": ["RS256"], "public_key": "MIIB"},
        {"algorithms": ["RS256"], "public_key": "-----BEGIN PRIVATE KEY-----\nMIIB"},
    ],
)
def test_a_section_that_would_let_anyone_in_is_refused(wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)
