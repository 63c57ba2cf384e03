"""Tokens (JWT) on the real process: HS256, RS256, a JWK set in a file and at a URL that changes."""

from __future__ import annotations

import asyncio
import hmac
import json
import time

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SECRET = "a-shared-secret-of-more-than-32-bytes"


@pytest.fixture(scope="module")
def signers():
    return [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]


def jwk(signer, kid):
    return json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(signer.public_key())) | {"kid": kid}


def token(key, algorithm, kid=None, **more):
    body = {"sub": "ada", "team": "search", "tier": "paid", "exp": int(time.time()) + 60} | more
    return jwt.encode(body, key, algorithm, headers=None if kid is None else {"kid": kid})


@pytest.fixture
def config(trial):
    def config(**section):
        return {
            "auth": {"admin_key": "admins-key-12", "jwt": section},
            "models": [trial.model("good")],
            "pools": [{"name": "auto", "models": ["good"]}],
        }

    return config


async def route(http, service, text):
    """(status, error code or the decision's row)."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    async with http.post(f"{service.url}/v1/route", json=body, headers={"Authorization": f"Bearer {text}"}) as response:
        answer = await response.json()
    if response.status != 200:
        return response.status, answer["error"]["code"]
    (decision,) = service.events("decision", answer["decision_id"])
    return 200, decision["payload"]


async def admitted(http, service, text):
    """Wait until this token is taken; the service looks at a file once a second."""
    for _ in range(200):
        if (await route(http, service, text))[0] == 200:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the token was never taken")


async def test_hs256(run_service, config, http, tmp_path):
    """A token is logged under its claims, is no operator, and is never logged itself."""
    with run_service(config(algorithms=["HS256"], secret=SECRET), tmp_path) as service:
        good = token(SECRET, "HS256")
        status, row = await route(http, service, good)
        assert (status, row["user"], row["team"], row["tier"]) == (200, "ada", "search", "paid")
        assert row["key_id"].startswith("jwt:")
        wrong = [
            token(SECRET, "HS256", exp=1),
            token(SECRET + "x", "HS256"),
            token(SECRET * 2, "HS512"),
            jwt.encode({"sub": "ada", "exp": time.time() + 60}, None, "none"),
            jwt.encode({"sub": "ada"}, SECRET, "HS256"),
            good[:-3] + "abc",
        ]
        for text in wrong:
            assert await route(http, service, text) == (401, "invalid_api_key")
        async with http.get(f"{service.url}/admin/models", headers={"Authorization": f"Bearer {good}"}) as response:
            assert response.status == 403
        assert (await route(http, service, "admins-key-12"))[0] == 200
        service.stop()
        written = service.log + "".join(path.read_bytes().decode("latin-1") for path in service.data_dir.iterdir())
        assert not any(text in written for text in (SECRET, good, *wrong))


async def test_rs256(run_service, config, http, tmp_path, signers):
    """Also the classic confusion is refused: HS256 with the public key as its secret."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = signers[0].public_key().public_bytes(serialization.Encoding.PEM, form).decode()
    with run_service(config(algorithms=["RS256"], public_key=pem, audience="us"), tmp_path) as service:
        assert (await route(http, service, token(signers[0], "RS256", aud="us")))[0] == 200
        assert (await route(http, service, token(signers[1], "RS256", aud="us")))[0] == 401
        assert (await route(http, service, token(signers[0], "RS256", aud="them")))[0] == 401
        header, body = (part.rstrip(b"=").decode() for part in _parts({"alg": "HS256"}, {"sub": "a", "exp": 1e10}))
        confused = jwt.utils.base64url_encode(_hmac(pem, f"{header}.{body}")).decode()
        assert (await route(http, service, f"{header}.{body}.{confused}"))[0] == 401


def _parts(*values):
    return (jwt.utils.base64url_encode(json.dumps(value).encode()) for value in values)


def _hmac(key, text):
    return hmac.digest(key.encode(), text.encode(), "sha256")


async def test_a_jwk_set_in_a_file_is_read_again_when_it_changes(run_service, config, http, tmp_path, signers):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(signers[0], "one")]}))
    with run_service(config(algorithms=["RS256"], jwks_file=str(path)), tmp_path) as service:
        one, two = token(signers[0], "RS256", "one"), token(signers[1], "RS256", "two")
        assert [(await route(http, service, text))[0] for text in (one, two)] == [200, 401]
        path.write_text(json.dumps({"keys": [jwk(signers[1], "two")]}))
        await admitted(http, service, two)
        assert (await route(http, service, one))[0] == 401


async def test_a_jwk_set_at_a_url(run_service, config, http, tmp_path, signers, serve_in_thread):  # noqa: PLR0917 - fixtures
    """A new signer's first token has the set read once more; made-up key ids do not, before jwks_retry_s."""
    served = {"keys": [jwk(signers[0], "one")], "count": 0, "status": 200}

    async def jwks(request):
        served["count"] += 1
        return web.json_response({"keys": served["keys"]}, status=served["status"])

    app = web.Application()
    app.add_routes([web.get("/jwks.json", jwks)])
    with serve_in_thread(app) as url:
        section = {"algorithms": ["RS256"], "jwks_url": f"{url}/jwks.json", "jwks_retry_s": 3600}
        with run_service(config(**section), tmp_path / "a") as service:
            assert served["count"] == 1
            assert (await route(http, service, token(signers[0], "RS256", "one")))[0] == 200
            for kid in ("made", "up", "ids"):
                assert (await route(http, service, token(signers[1], "RS256", kid)))[0] == 401
            assert served["count"] == 1
        served["status"] = 500
        with run_service(config(**section | {"jwks_retry_s": 0.1}), tmp_path / "b") as service:
            first = token(signers[0], "RS256", "one")
            assert await route(http, service, first) == (503, "unavailable")
            served["status"] = 200
            await admitted(http, service, first)
            served["keys"].append(jwk(signers[1], "two"))
            await admitted(http, service, token(signers[1], "RS256", "two"))
