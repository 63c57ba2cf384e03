"""What the running service logs: one line for each event, as asked for, with ids and without secrets."""

from __future__ import annotations

import json
import re

import pytest
from scripted_upstream import Scripted

PROMPT, KEY, CALLER = "a prompt nobody may log", "sk-upstream-key-nobody-logs", "caller-key-nobody-logs"
ASK = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
AS_CALLER = {"Authorization": f"Bearer {CALLER}"}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        scripted.rest["bad"] = "500"
        yield scripted


def config(scripted, **logging):
    return {
        "models": [scripted.model("good", api_key=KEY), scripted.model("bad", api_key=KEY)],
        "pools": [{"name": "auto", "models": ["good"]}],
        "auth": {"keys": [{"key": CALLER, "user": "somebody"}]},
        "logging": logging,
    }


def rows(service):
    return [json.loads(line) for line in service.log.splitlines()]


def of_request(service, name):
    return [row for row in rows(service) if row.get("request_id") == name]


async def test_json_lines_name_the_request_its_decision_and_what_became_of_it(
    run_service, scripted, http, tmp_path, wait_until
):
    with run_service(config(scripted, format="json", access=True), tmp_path) as service:
        url = f"{service.url}/v1/chat/completions"
        for stream in (False, True):
            headers = AS_CALLER | {"x-request-id": f"mine-{stream}"}
            async with http.post(url, json=ASK | {"stream": stream}, headers=headers) as response:
                await response.read()
            assert response.headers["x-request-id"] == f"mine-{stream}"
            (row,) = await wait_until(lambda name=f"mine-{stream}": of_request(service, name))
            assert row["decision_id"] == response.headers["x-pointsman-decision-id"]
            assert (row["logger"], row["level"], row["message"]) == ("pointsman.access", "info", "request")
            assert (row["method"], row["route"], row["status"]) == ("POST", "/v1/chat/completions", 200)
            assert (row["pool"], row["model"], row["mode"]) == ("auto", "good", "bandit")
            assert row["duration_ms"] > 0
        async with http.post(url, json=ASK | {"model": "bad"}, headers=AS_CALLER) as response:
            assert response.status == 503
        assert (rows(service)[-1]["status"], rows(service)[-1]["error"]) == (503, "no_model_available")
        async with http.get(f"{service.url}/a/{KEY}?key={CALLER}") as response:
            assert response.status == 404
        assert (rows(service)[-1]["route"], rows(service)[-1]["status"]) == (None, 404)
        count = len(rows(service))
        async with http.get(f"{service.url}/healthz") as response:
            assert response.headers["x-request-id"]
        assert len(rows(service)) == count
        assert service.stop() == 0
        for secret in (PROMPT, KEY, CALLER, "from good", "somebody"):
            assert secret not in service.log
        assert all({"ts", "level", "logger", "message"} <= set(row) for row in rows(service))


async def test_a_request_has_an_id_whatever_its_caller_says(run_service, scripted, http, tmp_path):
    with run_service(config(scripted), tmp_path) as service:
        seen = set()
        for given in (None, "", "with blanks in it", "x" * 129, 'quo"te', "naïve"):
            headers = AS_CALLER | ({} if given is None else {"x-request-id": given})
            async with http.post(f"{service.url}/v1/chat/completions", json=ASK, headers=headers) as response:
                made = response.headers["x-request-id"]
            assert re.fullmatch(r"req-[0-9a-f]{20}", made)
            seen.add(made)
        assert len(seen) == 6
        async with http.post(f"{service.url}/v1/chat/completions", json=ASK) as response:
            assert (response.status, "x-request-id" in response.headers) == (401, True)
        assert "pointsman.access" not in service.log


async def test_the_command_line_has_the_last_word(run_service, scripted, tmp_path):
    arguments = ("--log-format", "json", "--log-level", "error")
    with run_service(config(scripted, level="debug"), tmp_path, arguments=arguments) as service:
        assert service.stop() == 0
        assert rows(service) == []
