"""The audit of dependencies: a known vulnerability fails it, a service that is not there does not."""

from __future__ import annotations

import asyncio
import re
import sys

import pytest
from aiohttp import web
from conftest import ROOT

KNOWN = {
    "id": "TEST-2026-1",
    "summary": "it leaks",
    "affected": [
        {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
        }
    ],
}


@pytest.fixture
def advisories(serve_in_thread):
    async def query(request):
        asked = await request.json()
        leaks = (asked["package"]["name"], asked["version"]) == ("leaky", "1.0")
        return web.json_response({"vulns": [KNOWN]} if leaks else {})

    app = web.Application()
    app.router.add_post("/v1/query", query)
    with serve_in_thread(app) as url:
        yield f"{url}/v1/query"


async def audited(tmp_path, url, text):
    (file := tmp_path / "constraints.txt").write_text(text)
    command = (sys.executable, str(ROOT / ".ci" / "audit.py"), str(file), "--url", url)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode()


async def test_a_known_vulnerability_fails_the_build(tmp_path, advisories):
    code, out = await audited(tmp_path, advisories, "leaky==1.0\nsound==2.0\n")
    assert code == 1
    assert re.search(r"leaky\s+1\.0\s+TEST-2026-1\s+1\.1", out)


async def test_without_one_it_passes(tmp_path, advisories):
    code, out = await audited(tmp_path, advisories, "leaky==1.1\nsound==2.0\n")
    assert (code, "No known vulnerabilities found" in out) == (0, True)


async def test_what_cannot_be_audited_fails(tmp_path, advisories):
    assert (await audited(tmp_path, advisories, "leaky>=1.0\n"))[0] == 1


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/v1/query", "nowhere"])
async def test_a_service_that_cannot_be_asked_is_said_and_fails_nothing(tmp_path, advisories, path):
    url = path if "://" in path else advisories.replace("query", path)
    code, out = await audited(tmp_path, url, "leaky==1.0\n")
    assert (code, out.startswith("NOT AUDITED: ")) == (0, True)


def test_every_version_it_is_asked_about_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
