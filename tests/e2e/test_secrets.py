"""No secret of a configuration is anywhere but in its file: markers, and a search of all that is said and kept."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256

import duckdb
import jwt
import pytest
import yaml
from aiohttp import web
from steered_service import HELLO

SECRETS = {
    name: f"marker-{name}-5f0c1d7e9b42a683"
    for name in (
        "admin",
        "caller",
        "jwt-shared-secret-of-the-tests",
        "model-key",
        "endpoint-key",
        "model-header",
        "endpoint-header",
        "webhook",
    )
}
ADMIN = {"Authorization": f"Bearer {SECRETS['admin']}"}
CALLER = {"Authorization": f"Bearer {SECRETS['caller']}"}
GET_ROUTES = {  # how a route's own parts are filled in; a route that is not here fails the test
    "/admin/models": "",
    "/admin/matrix": "",
    "/admin/log.parquet": "?table=changes",
    "/admin/keys": "",
    "/admin/budgets": "",
    "/admin/usage": "?by=user,key",
    "/admin/pools": "",
    "/admin/pools/{name:.+}": "/admin/pools/auto",
    "/admin/pools/{name:.+}/canary": "/admin/pools/auto/canary",
    "/admin/pools/{name:.+}/experiments/{experiment:.+}": "/admin/pools/auto/experiments/test",
    "/admin/config": "",
    "/admin/canaries": "",
    "/admin/experiments": "",
    "/admin/events": "?limit=500",
    "/admin/snapshot": "",
    "/admin/drain": "",
    "/admin/faults": "",
    "/admin/live": "",
    "/admin/decisions": "",
    "/admin/decisions/{id:.+}": "/admin/decisions/",
}
STATUSES = (400, 401, 403, 404, 422, 429, 500)


async def leak(request):
    """An endpoint that says in its errors, or in a broken answer, everything that it was sent."""
    status = int(request.match_info["status"])
    sent = " ".join([*(f"{name}: {value}" for name, value in request.headers.items()), str(request.url)])
    if status == 200:
        return web.Response(text=f'{{"id": {sent}', content_type="application/json")
    return web.json_response({"error": {"message": sent, "type": sent, "code": sent, "param": sent}}, status=status)


@pytest.fixture(scope="module")
def config(serve_in_thread):
    app = web.Application()
    app.router.add_post("/{status}/{tail:.*}", leak)
    with serve_in_thread(app) as url:

        def model(status):
            first = {"url": f"{url}/{status}/v1", "api_key": SECRETS["endpoint-key"]}
            first["headers"] = {"x-place": SECRETS["endpoint-header"]}
            return {
                "name": f"m{status}",
                "endpoints": [first, {"url": f"{url}/{status}/other/v1"}],
                "api_key": SECRETS["model-key"],
                "headers": {"x-model": SECRETS["model-header"]},
                "price": {"per_call": 0.001},
                "breaker": {"enabled": False},
            }

        names = [f"m{status}" for status in (*STATUSES, 200)]
        variants = [{"name": "one", "share": 0.5, "model": "m500"}, {"name": "two", "share": 0.5, "model": "m200"}]
        yield {
            "auth": {
                "admin_key": SECRETS["admin"],
                "keys": [{"key": SECRETS["caller"], "user": "ada", "team": "search"}],
                "jwt": {"algorithms": ["HS256"], "secret": SECRETS["jwt-shared-secret-of-the-tests"]},
            },
            "log": {"flush_interval_s": 0.1},
            "faults": {"enabled": True},
            "failures": {"retries": {"max_attempts": 2, "backoff_s": 0}},
            "budgets": [
                {
                    "scope": "user",
                    "match": "poor",
                    "usd": 1e-9,
                    "per": "total",
                    "webhook": f"{url}/500/hook?t={SECRETS['webhook']}",
                }
            ],
            "limits": [{"scope": "user", "match": "slow", "requests_per_minute": 1}],
            "metering": {"webhook_attempts": 1},
            "models": [model(status) for status in (*STATUSES, 200)],
            "pools": [
                {"name": "auto", "models": names, "experiments": [{"name": "test", "variants": variants}]},
                *({"name": f"only-{name}", "models": [name], "failures": {"fallbacks": []}} for name in names),
            ],
        }


def token(user, secret=SECRETS["jwt-shared-secret-of-the-tests"], **more):
    return {"Authorization": f"Bearer {jwt.encode({'sub': user, 'exp': 4e9} | more, secret, 'HS256')}"}


async def every_error(http, service):
    """All that is told to those who ask for what cannot be had, and to those whose endpoints fail."""
    told = []

    async def ask(method, path, body=None, headers=CALLER, data=None):
        async with http.request(method, service.url + path, json=body, data=data, headers=headers) as response:
            told.append(f"{response.status} {dict(response.headers)} {await response.text()}")
            return response.status

    pools = [f"only-m{status}" for status in (*STATUSES, 200)]
    for stream in (False, True):
        for name in (*pools, *(pool.removeprefix("only-") for pool in pools), "auto"):
            body = {"model": name, "messages": HELLO, "max_tokens": 5, "stream": stream}
            assert await ask("POST", "/v1/chat/completions", body) >= 400
    chat = {"model": "only-m500", "messages": HELLO, "max_tokens": 5}
    assert await ask("POST", "/v1/chat/completions", chat, token("poor")) == 402
    assert await ask("POST", "/v1/chat/completions", chat, token("slow")) >= 500
    assert await ask("POST", "/v1/chat/completions", chat, token("slow")) == 429
    for headers in (
        token("eve", "another-secret-that-is-long-enough"),
        token("eve", exp=1),
        {},
        {"Authorization": "Bearer x.y.z"},
    ):
        assert await ask("POST", "/v1/chat/completions", chat, headers) == 401
    for headers in (CALLER, token("admin")):
        assert await ask("GET", "/admin/keys", None, headers) == 403
    assert await ask("POST", "/v1/chat/completions", {"model": "none", "messages": HELLO}) == 404
    assert await ask("POST", "/v1/chat/completions", data=b"{") == 400
    assert await ask("POST", "/reward", {"decision_id": "pm-1", "quality": 2}) == 422
    given = {"name": "new", "endpoint": "http://127.0.0.1:9/v1", "api_key": SECRETS["model-key"]}
    for more in (
        {},
        {"headers": {"x-key": SECRETS["model-header"]}},
        {"timeout_s": -1},
        {"api_keys": SECRETS["endpoint-key"]},
    ):
        assert await ask("POST", "/admin/models", {"model": given | more, "pools": ["auto"]}, ADMIN) == 422
    assert await ask("PATCH", "/admin/budgets/none", {"usd": 1}, ADMIN) == 404
    assert await ask("PATCH", "/admin/pools/auto", {"weights": {SECRETS["admin"][:4]: 1}}, ADMIN) == 422
    return told


async def every_answer(http, service):
    """What operators are told at every route that has something to tell."""
    from serving.handlers import Handlers

    routes = Handlers.routes(Handlers.__new__(Handlers))
    paths = [route.path for route in routes if route.method == "GET" and route.path.startswith("/admin")]
    told = []
    async with http.get(f"{service.url}/admin/decisions", headers=ADMIN) as response:
        decision_id = (await response.json())["decisions"][0]["decision_id"]
    for path in [*paths, "/metrics", "/healthz", "/readyz", "/v1/models", "/openapi.json", "/docs", "/dashboard"]:
        filled = GET_ROUTES[path] if path.startswith("/admin") else ""
        address = filled if filled.startswith("/") else path + filled
        address += decision_id if address.endswith("decisions/") else ""
        async with http.get(service.url + address, headers=ADMIN) as response:
            assert response.status == 200, address
            body = response.content.readuntil(b"\n\n") if path == "/admin/live" else response.read()
            told.append((await body).decode(errors="replace"))
    return told


def seen_in(texts):
    return {name for name, secret in SECRETS.items() for text in texts if secret in text}


async def test_no_secret_is_said_or_kept(run_service, config, http, tmp_path, wait_until):
    with run_service(config, tmp_path) as service:
        log = service.data_dir / "log.duckdb"
        made = await _made(http, service)
        told = await every_error(http, service)
        await wait_until(log.exists)
        told += await every_answer(http, service)
        await wait_until(lambda: "webhook was not told" in service.log)
        assert service.stop() == 0
        told += [service.log, service.process.stdout.read().decode()]
        assert len(told) > 50
        assert seen_in(told) == set()
        assert not any(made in text for text in told)
    _nothing_kept(tmp_path, log, [*SECRETS.values(), made])


async def _made(http, service):
    """The secret of a key that was made while it runs."""
    async with http.post(f"{service.url}/admin/keys", json={"user": "cy"}, headers=ADMIN) as response:
        return (await response.json())["secret"]


def _nothing_kept(folder, log, secrets):
    """Not in the log's tables nor in any file; a digest of a key that was made, in one store alone."""
    with duckdb.connect(str(log), read_only=True) as connection:
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        rows = repr([connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in names])  # noqa: S608
    digests = [sha256(secret.encode()).hexdigest() for secret in secrets]
    assert "'ada'" in rows
    assert not any(text in rows for text in (*secrets, *digests))
    assert log.parent.stat().st_mode & 0o077 == 0  # the folder that the service made is its owner's
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != "pointsman.yaml"]
    assert {"router.sqlite", "log.duckdb", "session.key"} <= {path.name for path in kept}
    for path in kept:
        raw = path.read_bytes()
        assert not any(secret.encode() in raw for secret in secrets), path
        if not path.name.startswith("router.sqlite"):
            assert not any(digest.encode() in raw for digest in digests), path


def _changed(config, path, value):
    changed = yaml.safe_load(yaml.safe_dump(config))
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return yaml.safe_dump(changed)


def test_check_shows_none_whatever_is_wrong(config, tmp_path):
    """Nor do problems beside a secret, or with one, quote it: not even where the file cannot be read at all."""
    good = yaml.safe_dump(config)
    texts = {
        0: [good],
        2: [
            _changed(config, ("models", 0, "api_keey"), SECRETS["model-key"]),
            _changed(config, ("models", 0, "api_key"), [SECRETS["model-key"]]),
            _changed(config, ("models", 0, "headers"), SECRETS["model-header"]),
            _changed(config, ("models", 0, "headers", "x-model"), SECRETS["model-header"] + "\n"),
            _changed(config, ("models", 0, "endpoint"), f"ftp://u:{SECRETS['endpoint-key']}@h/v1"),
            _changed(config, ("auth", "admin_key"), SECRETS["caller"]),
            _changed(config, ("auth", "jwt", "algorithms"), ["RS256"]),
            _changed(config, ("budgets", 0, "webhook"), f"ftp://h/{SECRETS['webhook']}"),
            good.replace(f"admin_key: {SECRETS['admin']}", f'admin_key: "{SECRETS["admin"]}'),
            good.replace(f"admin_key: {SECRETS['admin']}", f"admin_key: {SECRETS['admin']}: {{"),
        ],
    }
    for code, many in texts.items():
        for number, text in enumerate(many):
            path = tmp_path / f"{code}-{number}.yaml"
            path.write_text(text)
            command = [sys.executable, "-m", "serving", "check", "-c", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == code, (number, done.stdout, done.stderr)
            assert seen_in([done.stdout, done.stderr]) == set(), (number, done.stdout, done.stderr)
