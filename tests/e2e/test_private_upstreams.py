"""Where a model that is added may be: what leads into the operator's network is refused, by a name or a number."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
import yaml
from aiohttp import web

ADMIN = {"Authorization": "Bearer admins-key-12"}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@pytest.fixture(scope="module")
def network(serve_in_thread):
    """A service of the operator's own network, which has a secret for whoever asks, and a redirect for the rest."""
    asked = []

    async def secret(request):
        asked.append(request.path)
        if request.path.startswith("/redirect"):
            raise web.HTTPTemporaryRedirect("/latest/meta-data/")
        return web.json_response({"id": "x", "secret": "of-the-inside", "choices": []})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", secret)
    with serve_in_thread(app) as url:
        yield url, asked


@pytest.fixture
def inside(network):
    network[1].clear()
    return network


@pytest.fixture
def config(trial):
    auth = {"admin_key": "admins-key-12"}
    once = {"retries": {"max_attempts": 1}}
    pools = [{"name": "auto", "models": ["good"]}]
    return {"auth": auth, "failures": once, "models": [trial.model("good")], "pools": pools}


async def ask(http, service, method, path, body=None):
    async with http.request(method, service.url + path, json=body, headers=ADMIN) as response:
        return response.status, await response.json()


async def added(http, service, endpoint, name="late"):
    return await ask(
        http, service, "POST", "/admin/models", {"model": {"name": name, "endpoint": endpoint}, "pools": []}
    )


async def test_an_added_model_is_not_called_inside(run_service, config, inside, http, tmp_path):
    """Neither at what says so itself, nor at a name or a spelling that only stands for it: that is seen at the call."""
    url, asked = inside
    port = urlsplit(url).port
    with run_service(config, tmp_path) as service:
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.5", "169.254.169.254"):
            status, answer = await added(http, service, f"http://{host}:{port}/v1")
            assert (status, answer["error"]["problems"][0]["param"]) == (422, "model.endpoint"), host
            assert "server.private_upstreams" in answer["error"]["message"]
        for number, host in enumerate(("2130706433", "0x7f.1", "0177.0.0.1", socket.gethostname())):
            assert (await added(http, service, f"http://{host}:{port}/v1", f"late-{number}"))[0] == 201
            status, answer = await ask(
                http, service, "POST", "/v1/chat/completions", CHAT | {"model": f"late-{number}"}
            )
            assert (status, answer["error"]["code"]) == (502, "upstream_unreachable"), host
            assert "127.0.0.1" not in answer["error"]["message"]
        assert asked == []
        several = {"name": "two", "endpoints": [{"url": "https://api.example.com/v1"}, {"url": f"{url}/v1"}]}
        status, answer = await ask(http, service, "POST", "/admin/models", {"model": several, "pools": []})
        assert (status, answer["error"]["problems"][0]["param"]) == (422, "model.endpoints[1].url")


async def test_one_from_before_a_restart_is_not_either(run_service, config, inside, http, tmp_path):
    url, asked = inside
    open_config = config | {"server": {"private_upstreams": True}}
    with run_service(open_config, tmp_path) as service:
        assert (await added(http, service, f"{url}/v1"))[0] == 201
        status, answer = await ask(http, service, "POST", "/v1/chat/completions", CHAT | {"model": "late"})
        assert (status, answer["secret"], len(asked)) == (200, "of-the-inside", 1)
        assert service.stop() == 0
    with run_service(config, tmp_path) as service:
        status, answer = await ask(http, service, "POST", "/v1/chat/completions", CHAT | {"model": "late"})
        assert (status, answer["error"]["code"], len(asked)) == (502, "upstream_unreachable", 1)
        assert "server.private_upstreams" in answer["error"]["message"]
        (service.data_dir.parent / "pointsman.yaml").write_text(yaml.safe_dump(open_config))
        assert (await ask(http, service, "POST", "/admin/reload"))[0] == 200
        status, _ = await ask(http, service, "POST", "/v1/chat/completions", CHAT | {"model": "late"})
        assert (status, len(asked)) == (200, 2)


async def test_the_configurations_own_machines_may_serve_an_added_model(run_service, config, trial, http, tmp_path):
    with run_service(config, tmp_path) as service:
        assert (await added(http, service, trial.model("fair")["endpoint"], "fair"))[0] == 201
        status, _ = await ask(http, service, "POST", "/v1/chat/completions", CHAT | {"model": "fair"})
        assert status == 200


@pytest.mark.parametrize(
    "endpoint",
    [
        "file:///etc/passwd",
        "ftp://files.example/v1",
        "gopher://127.0.0.1:6379/_",
        "http://user:secret@api.example.com/v1",
        "http://api.example.com/v1?key=secret",
        "http://api.example.com/v1#x",
        "http://api.example.com:0/v1",
        "http://a b/v1",
        "http://x/v1\r\nHost: evil",
        "http:///v1",
        "//api.example.com/v1",
    ],
)
async def test_what_is_no_plain_address_of_the_web_is_refused(run_service, config, http, tmp_path, endpoint):
    with run_service(config | {"server": {"private_upstreams": True}}, tmp_path) as service:
        status, answer = await added(http, service, endpoint)
        assert (status, answer["error"]["problems"][0]["param"]) == (422, "model.endpoint")
        assert "secret" not in str(answer)


async def test_no_redirect_is_followed_and_no_proxy_of_the_environment_asked(  # noqa: PLR0917 - fixtures
    run_service, config, inside, http, tmp_path, monkeypatch
):
    url, asked = inside
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"{url}/proxy")
    away = {"name": "away", "endpoint": f"{url}/redirect/v1"}
    with run_service(config | {"models": [*config["models"], away]}, tmp_path) as service:
        status, answer = await ask(http, service, "POST", "/v1/chat/completions", CHAT | {"model": "away"})
        assert (status, "of-the-inside" in str(answer)) == (502, False)
        status, _ = await ask(http, service, "POST", "/v1/chat/completions", CHAT | {"model": "good"})
        assert status == 200
    assert set(asked) == {"/redirect/v1/chat/completions"}
