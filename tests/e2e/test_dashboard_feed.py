"""The dashboard's feed and files, without a browser: who is fed, until when, and what a stranger gets."""

from __future__ import annotations

import asyncio
import re
import time
from hashlib import sha256

import orjson
import pytest


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {
        "models": [trial.model("good"), trial.model("f500", breaker={"min_calls": 2, "open_s": 30})],
        "pools": [{"name": "auto", "models": ["good"]}],
        "dashboard": {"max_listeners": 2},
        "server": {"shutdown_grace_s": 60},  # longer than a test waits for its end
    }
    with run_service(config, tmp_path_factory.mktemp("feed")) as service:
        yield service


async def next_event(response):
    """(name, data) of the next server-sent event."""
    lines = (await asyncio.wait_for(response.content.readuntil(b"\n\n"), 20)).decode().strip().split("\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return fields["event"], orjson.loads(fields["data"])


async def post(http, service, model):
    """The status of one call."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
        return response.status


async def test_all_comes_at_first_and_then_what_changes(service, http):
    async with http.get(f"{service.url}/admin/live") as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        name, first = await next_event(response)
        assert (name, first["pools"], first["pool"]["name"]) == ("snapshot", ["auto"], "auto")
        calls = first["total"]["calls"]
        assert await post(http, service, "auto") == 200
        while True:
            name, data = await next_event(response)
            assert name == "tick"
            if data["total"]["calls"] == calls + 1:
                break
        assert sum(data["fine"][-1]["routed"].values()) >= 1


async def test_no_more_are_fed_than_allowed_and_a_place_is_free_again(service, http):
    url = f"{service.url}/admin/live"
    one, other = await http.get(url), await http.get(url)
    async with http.get(url) as third:
        assert third.status == 503
        assert (await third.json())["error"]["code"] == "overloaded"
        assert int(third.headers["Retry-After"]) >= 1
    one.close()
    give_up_at = time.monotonic() + 20
    while True:
        async with http.get(url) as again:
            if again.status == 200:
                break
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.1)
    other.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/live?pool=nowhere", 404),
        ("/admin/live?color=red", 400),
        ("/admin/decisions?limit=0", 400),
        ("/admin/decisions?limit=101", 400),
        ("/admin/decisions/pm-00000000000000000000000000000000", 404),
        ("/admin/decisions/nothing-like-it", 404),
        ("/admin/events?limit=x", 400),
        ("/dashboard/dashboard.html", 404),
        ("/dashboard/nothing.js", 404),
        ("/dashboard/..%2fassets.py", 404),
    ],
)
async def test_what_there_is_not_is_refused(service, http, path, status):
    from yarl import URL

    async with http.get(URL(service.url + path, encoded=True)) as response:
        assert response.status == status
        assert set(await response.json()) == {"error"}


async def test_a_page_of_another_site_gets_nothing_of_an_open_service(service, http):
    for path in ("/admin/live", "/admin/decisions", "/admin/events"):
        async with http.get(service.url + path, headers={"Origin": "http://elsewhere.example"}) as response:
            assert response.status == 403


async def test_the_page_allows_no_script_but_its_own_and_names_the_charts_hash(service, http):
    async with http.get(f"{service.url}/dashboard") as response:
        page, policy = await response.text(), response.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<script(?![^>]*\bsrc=)|\bon\w+=|\bstyle=|https?://", page) == []
    assert 'data-key="none"' in page
    names = re.findall(r'(?:src|href)="/dashboard/([^"]+)"', page)
    assert {"main.js", "uplot.js", "uplot.css", "page.css"} <= set(names)
    for name in names:
        async with http.get(f"{service.url}/dashboard/{name}") as response:
            assert response.status == 200
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            etag = response.headers["ETag"]
            assert etag == f'"{sha256(await response.read()).hexdigest()[:16]}"'
        async with http.get(f"{service.url}/dashboard/{name}", headers={"If-None-Match": etag}) as response:
            assert response.status == 304


async def test_an_open_breaker_is_on_the_time_line(service, http):
    for _ in range(3):
        assert await post(http, service, "f500") >= 500
    give_up_at = time.monotonic() + 20
    while True:
        async with http.get(f"{service.url}/admin/events?limit=5") as response:
            events = (await response.json())["events"]
        if any(e["kind"] == "breaker" and (e["model"], e["to"]) == ("f500", "open") for e in events):
            return
        assert time.monotonic() < give_up_at, events
        await asyncio.sleep(0.2)


async def test_a_listener_does_not_hold_up_the_end(service, http):
    """The last test of this file: it ends the service."""
    async with http.get(f"{service.url}/admin/live") as response:
        await next_event(response)
        assert await asyncio.to_thread(service.stop) == 0
        while await response.content.readany():
            pass  # it ended in order: a connection that broke would raise here
