"""A page in an operator's browser: what other sites' pages can have sent to a service gets nothing and does nothing."""

from __future__ import annotations

import pytest
from test_service_access import CLOSED

KEY = "callers-key-1"
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
WATCHED = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/start.js")


def foreign(port):
    """As a form's post to us comes, from a page or a sandboxed one, and as one comes whose name was rebound to us."""
    return [
        {"Origin": "https://evil.example", "Content-Type": "text/plain"},
        {"Origin": "null", "Content-Type": "text/plain"},
        {"Origin": f"http://127.0.0.1:{int(port) - 1}"},
        {"Host": f"evil.example:{port}"},
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
    ]


@pytest.fixture(scope="module")
def config(trial):
    return {"models": [trial.model("good")], "pools": [{"name": "auto", "models": ["good"]}]}


@pytest.fixture(scope="module")
def service(run_service, config, tmp_path_factory):
    named = config | {"server": {"allowed_hosts": ["router.internal"]}}
    with run_service(named, tmp_path_factory.mktemp("open")) as service:
        yield service


@pytest.mark.parametrize(("method", "path"), CLOSED + [("GET", path) for path in WATCHED])
async def test_an_open_service_answers_no_page_of_another_site(service, http, method, path):
    before = service.events()
    for headers in foreign(service.url.rpartition(":")[2]):
        async with http.request(method, service.url + path, json=CHAT, headers=headers) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (403, "cross_site"), headers
            assert not {name for name in response.headers if name.lower().startswith("access-control")}
    assert service.events() == before


async def test_no_preflight_is_answered_so_no_page_elsewhere_can_send_json_or_headers(service, http):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for path in ("/v1/chat/completions", "/reward", "/admin/models"):
        async with http.options(service.url + path, headers=asked) as response:
            assert response.status == 405
            assert not {name for name in response.headers if name.lower().startswith("access-control")}


async def test_it_answers_its_own_machine_and_the_names_it_was_given(service, http):
    port = service.url.rpartition(":")[2]
    own = [{}, {"Origin": service.url}, {"Host": f"localhost:{port}"}, {"Host": "router.internal"}]
    for headers in (*own, {"Host": "router.internal", "Origin": "http://router.internal"}):
        async with http.post(f"{service.url}/v1/chat/completions", json=CHAT, headers=headers) as response:
            assert response.status == 200, headers
            assert "Set-Cookie" not in response.headers
        for path in WATCHED:
            async with http.get(service.url + path, headers=headers) as response:
                assert response.status == 200


async def test_with_keys_a_rebound_name_reads_no_metrics_either(run_service, config, http, tmp_path):
    keyed = config | {"auth": {"keys": [{"key": KEY, "user": "ada"}]}}
    with run_service(keyed, tmp_path) as service:
        for path in WATCHED:
            for headers, status in (({"Host": "evil.example"}, 401), ({}, 200)):
                async with http.get(service.url + path, headers=headers) as response:
                    assert response.status == status
        headers = {"Host": "proxied.example", "Origin": "https://app.example", "Authorization": f"Bearer {KEY}"}
        async with http.post(f"{service.url}/v1/chat/completions", json=CHAT, headers=headers) as response:
            assert response.status == 200


async def test_pages_tell_browsers_what_they_may_do(service, http):
    for path in ("/dashboard", "/dashboard/main.js", "/docs", "/docs/start.js", "/openapi.json"):
        async with http.get(service.url + path) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff", path
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert "Set-Cookie" not in response.headers
            policy = response.headers.get("Content-Security-Policy", "")
        if path in ("/dashboard", "/docs"):
            for word in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
                assert word in policy, path
