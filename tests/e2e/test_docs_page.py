"""The page at /docs in a real browser: it shows every route, asks the service itself, and nobody else."""

from __future__ import annotations

import pytest
from chromium import PATIENCE_MS, launched

from serving.api.document import ROUTES


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    config = {"models": [trial.model("good")], "pools": [{"name": "auto", "models": ["good"]}]}
    with run_service(config, tmp_path_factory.mktemp("docs")) as service:
        yield service


def test_every_route_is_shown_and_can_be_tried(service):
    with launched() as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        wrong, elsewhere = [], []
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((service.url, "data:")) else elsewhere.append(r.url))
        page.goto(f"{service.url}/docs")
        page.wait_for_selector(".opblock")
        assert page.locator(".opblock").count() == len(ROUTES)
        page.locator("#operations-Operating-get_admin_drain button.opblock-summary-control").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        answer = page.locator(".live-responses-table .microlight").first.inner_text()
        assert '"draining": false' in answer
        assert (wrong, elsewhere) == ([], [])


async def test_its_files_are_told_apart_by_content_and_there_are_no_others(service, http):
    async with http.get(f"{service.url}/docs") as response:
        assert "script-src 'self';" in response.headers["Content-Security-Policy"]
    for path in ("/docs/swagger-ui-bundle.js", "/openapi.json"):
        async with http.get(service.url + path) as response:
            assert response.status == 200
            tag = {"If-None-Match": response.headers["ETag"]}
        async with http.get(service.url + path, headers=tag) as response:
            assert (response.status, await response.read()) == (304, b"")
    for name in ("LICENSE", "..%2f__init__.py", "index.html"):
        async with http.get(f"{service.url}/docs/{name}") as response:
            assert response.status == 404
