"""The API holds to its own document: whatever is asked, no error 500, no undocumented status, no other form of answer.

Schemathesis makes requests of `/openapi.json`, good ones and bad ones; a few of each route here, always the same.
An open run, with other requests each time: `POINTSMAN_FUZZ_EXAMPLES=300 pytest -s tests/e2e/test_openapi_fuzz.py`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.api.document import ROUTES

OPEN_RUN = os.environ.get("POINTSMAN_FUZZ_EXAMPLES")
EXAMPLES = int(OPEN_RUN or 15)  # of a route and of a kind: good and bad
SEED = 7
ADMIN_KEY = "admins-key-12"
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
NEVER_ENDS = "/admin/live"
FUZZED = [route for route in ROUTES if route.path != NEVER_ENDS]
counts: Counter[str] = Counter()


@pytest.fixture(scope="module")
def upstream(serve_in_thread):
    from scripted_upstream import Scripted

    scripted = Scripted()
    with serve_in_thread(scripted.app) as url:
        scripted.url = url
        yield scripted


@pytest.fixture(scope="module")
def service(run_service, upstream, tmp_path_factory):
    variants = [{"name": "a", "share": 0.5, "model": "good"}, {"name": "b", "share": 0.5, "model": "fair"}]
    config = {
        "auth": {"admin_key": ADMIN_KEY},
        "models": [upstream.model(name) for name in ("good", "fair", "spare")],
        "pools": [
            {
                "name": "auto",
                "models": ["good", "fair", "spare"],
                "cache": {"ttl_s": 60},
                "experiments": [{"name": "ab", "variants": variants}],
            }
        ],
        "budgets": [{"scope": "all", "usd": 1000.0, "name": "everybody"}],
        "log": {"flush_interval_s": 0.1},
    }
    with run_service(config, tmp_path_factory.mktemp("fuzz")) as service:
        yield service
        sys.stdout.write(f"\n{sum(counts.values())} requests: {dict(sorted(counts.items()))}\n")


@pytest.fixture(scope="module")
def schema(service):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=HEADERS)


@pytest.fixture(scope="module")
def known(service, upstream):
    """Names that there are, by parameter: with made-up ones alone nothing but 404 would be seen."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    answer = requests.post(f"{service.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=30).json()
    route = requests.post(f"{service.url}/v1/route", json=body, headers=HEADERS, timeout=30).json()
    key = requests.post(f"{service.url}/admin/keys", json={"user": "ada"}, headers=HEADERS, timeout=30).json()
    return {
        "name": ["spare", "auto", "fair", "auto", "everybody", "auto"],
        "pool": ["auto", "good"],
        "experiment": ["ab"],
        "id": [answer["id"], key["id"]],
        "file": ["index.css", "main.js", "start.js"],
        "model": ["auto", "good", "auto", "fair"],
        "decision_id": [answer["id"], route["decision_id"]],
        "endpoint": f"{upstream.url}/new/v1",
    }


def with_known(case, known, place):
    """The request with names that there are in place of made-up ones; `place` says which."""
    parameters = case.path_parameters
    for name in list(parameters or {}):
        parameters[name] = known[name][place % len(known[name])]
    for item in case.body if isinstance(case.body, list) else [case.body]:
        if isinstance(item, dict):
            for name in ("model", "decision_id"):
                if isinstance(item.get(name), str):
                    item[name] = known[name][place % len(known[name])]
            if place % 2:
                make_sense_of(item, known)


def make_sense_of(body, known):
    """Leave out what can hardly be right by chance: names of tiers, secrets that are no references, times to come."""
    for name in ("tier", "allow", "expires_at", "compare_to", "share", "steps"):
        body.pop(name, None)
    for name in ("name", "user", "team"):
        if isinstance(body.get(name), str):
            body[name] = f"made-{counts.total()}"
    if isinstance(body.get("model"), dict):
        body["model"] = {"name": f"made-{counts.total()}", "endpoint": known["endpoint"]}
        body["pools"] = ["auto"]
    variants = body.get("variants")
    if isinstance(variants, list) and variants:
        body["variants"] = [{"name": name, "share": 0.25, "model": "good"} for name in "ab"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("route", FUZZED, ids=lambda route: f"{route.method} {route.path}")
def test_every_answer_is_as_the_document_says(route, service, schema, known):
    operation = schema[route.path][route.method]
    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if route.body is not None or route.parameters:
        cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases, place=st.integers(-2, 5))
    def run(case, place):
        if place >= 0:
            with_known(case, known, place)
        response = case.call(base_url=service.url, headers=HEADERS, timeout=60)
        counts[str(response.status_code)] += 1
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=CHECKS, headers=HEADERS)
        if (route.method, route.path) == ("POST", "/admin/drain"):
            requests.delete(f"{service.url}/admin/drain", headers=HEADERS, timeout=30)

    (run if OPEN_RUN else seed(SEED)(run))()
    assert "unexpected error" not in service.log


@pytest.mark.parametrize(
    ("method", "path", "data", "status"),
    [
        ("HEAD", "/admin/models", None, 200),
        ("HEAD", "/openapi.json", None, 200),
        ("HEAD", NEVER_ENDS, None, 405),
        ("OPTIONS", "/v1/chat/completions", None, 405),
        ("GET", "/v1/chat/completions", None, 405),
        ("PUT", "/admin/pools/auto", b"{}", 405),
        ("POST", "/healthz", b"", 405),
        ("GET", "/nowhere", None, 404),
        ("GET", "/admin/matrix?color=red", None, 400),
        ("GET", "/admin/usage?by=team&by=model", None, 400),
        ("GET", "/admin/models?color=red", None, 200),
        ("POST", "/v1/chat/completions", b"model=auto", 400),
        ("POST", "/reward", b"\xff\xfe{}", 400),
        ("POST", "/admin/keys", b'{"user": "x", "unknown": 1}', 422),
    ],
)
def test_what_the_document_says_of_all_routes(service, method, path, data, status):
    headers = HEADERS | {"Content-Type": "application/x-www-form-urlencoded"}
    response = requests.request(method, service.url + path, data=data, headers=headers, timeout=30)
    assert response.status_code == status
    if status == 405:
        assert response.headers["Allow"]
    if method == "HEAD":
        assert response.content == b""
    elif status >= 400:
        assert set(response.json()["error"]) >= {"message", "type", "param", "code"}
