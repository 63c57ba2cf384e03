"""Keys: who may call what, and what is open."""

from __future__ import annotations

import pytest

KEY, ADMIN_KEY = "callers-key-1", "admins-key-12"
CLOSED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/infer/{pool:.+}"),
    ("GET", "/v1/models"),
    ("POST", "/v1/route"),
    ("POST", "/outcome"),
    ("POST", "/reward"),
    ("GET", "/admin/models"),
    ("POST", "/admin/models"),
    ("DELETE", "/admin/models/{name:.+}"),
    ("POST", "/admin/benchmarks"),
    ("GET", "/admin/matrix"),
    ("GET", "/admin/log.parquet"),
    ("POST", "/admin/reload"),
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("POST", "/admin/keys/{id:.+}/rotate"),
    ("DELETE", "/admin/keys/{id:.+}"),
    ("GET", "/admin/budgets"),
    ("PATCH", "/admin/budgets/{name:.+}"),
    ("GET", "/admin/usage"),
    ("GET", "/admin/pools"),
    ("POST", "/admin/pools/{name:.+}/experiments"),
    ("GET", "/admin/pools/{name:.+}/experiments/{experiment:.+}"),
    ("DELETE", "/admin/pools/{name:.+}/experiments/{experiment:.+}"),
    ("GET", "/admin/pools/{name:.+}/canary"),
    ("POST", "/admin/pools/{name:.+}/canary"),
    ("DELETE", "/admin/pools/{name:.+}/canary"),
    ("DELETE", "/admin/pools/{name:.+}/cache"),
    ("GET", "/admin/pools/{name:.+}"),
    ("PATCH", "/admin/pools/{name:.+}"),
    ("PATCH", "/admin/models/{name:.+}"),
    ("GET", "/admin/config"),
    ("GET", "/admin/canaries"),
    ("GET", "/admin/experiments"),
    ("GET", "/admin/snapshot"),
    ("GET", "/admin/drain"),
    ("POST", "/admin/drain"),
    ("DELETE", "/admin/drain"),
    ("GET", "/admin/faults"),
    ("POST", "/admin/faults"),
    ("DELETE", "/admin/faults"),
    ("GET", "/admin/live"),
    ("GET", "/admin/events"),
    ("GET", "/admin/decisions"),
    ("GET", "/admin/decisions/{id:.+}"),
]
OPEN = [("GET", path) for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/dashboard")]
OPEN_FILES = [("GET", "/dashboard/{file}"), ("GET", "/docs/{file}")]  # the pages' scripts and styles, without data
WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    KEY,
    f"Basic {KEY}",
    f"Token {KEY}",
    f"Bearer {KEY}x",
    f"Bearer {KEY[:-1]}",
    f"Bearer{KEY}",
    f"Bearer {KEY.upper()}",
    f"Bearer {KEY} {KEY}",
    "Bearer ü",
]


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada", "team": "search", "tier": "paid"}]},
        "models": [trial.model("good")],
        "pools": [{"name": "auto", "models": ["good"]}],
    }
    with run_service(config, tmp_path_factory.mktemp("access")) as service:
        yield service


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_every_endpoint_wants_a_known_key(service, http, method, path):
    """Before it reads a body, and without a word on what would have been right."""
    for authorization in WRONG:
        headers = {} if authorization is None else {"Authorization": authorization}
        async with http.request(method, service.url + path, data=b"{", headers=headers) as response:
            error = (await response.json())["error"]
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer"), authorization
        assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
        assert KEY not in error["message"]
    assert service.events() == []


async def test_no_route_was_forgotten_here():
    """Every route of the service is either among those that want a key or among those that are open."""
    from serving.handlers import Handlers

    routes = Handlers.routes(Handlers.__new__(Handlers))
    assert sorted((route.method, route.path) for route in routes) == sorted(CLOSED + OPEN + OPEN_FILES)


@pytest.mark.parametrize(("method", "path"), OPEN)
async def test_on_a_loopback_address_operators_need_no_key(service, http, method, path):
    async with http.request(method, service.url + path) as response:
        assert response.status == 200


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} ", f"Bearer {ADMIN_KEY}"])
async def test_a_known_key_is_let_in(service, http, authorization):
    async with http.get(service.url + "/v1/models", headers={"Authorization": authorization}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("key", "user", "team", "tier"), [(KEY, "ada", "search", "paid"), (ADMIN_KEY, "admin", None, None)]
)
async def test_calls_are_logged_under_the_keys_user(service, http, key, user, team, tier):  # noqa: PLR0917 - a row's columns
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {key}"}
    async with http.post(service.url + "/v1/route", json=body, headers=headers) as response:
        decision_id = (await response.json())["decision_id"]
    (decision,) = service.events("decision", decision_id)
    assert [decision["payload"][name] for name in ("user", "team", "tier")] == [user, team, tier]
