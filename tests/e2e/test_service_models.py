"""Models that come and go while the service runs: at once, under checks, through restarts, and no key on the disk."""

from __future__ import annotations

import asyncio
import hashlib

import duckdb
import openai
import pytest
import yaml

KEY, ADMIN_KEY = "callers-key-1", "admins-key-12"
SECRET = "sk-late-secret-0123456789"
VARIABLE = "POINTSMAN_TEST_LATE_KEY"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CALLER = {"Authorization": f"Bearer {KEY}"}
HELLO = [{"role": "user", "content": "hello"}]
PATH = "/admin/models"


def _config(trial, **more):
    return {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "models": [trial.model(name) for name in ("good", "fair", "steady")],
        "pools": [
            {"name": "auto", "models": ["good", "fair"], "policy": {"kind": "uniform"}},
            {"name": "other", "models": ["good"]},
            {"name": "pinned-down", "models": ["good", "fair"], "policy": {"kind": "fixed", "model": "good"}},
            {"name": "shares", "models": ["good", "fair"], "policy": {"kind": "weighted", "weights": {"good": 1}}},
        ],
    } | more


def _late(trial, **more):
    return trial.model("late", upstream_model="good", api_key="${" + VARIABLE + "}") | more


@pytest.fixture(scope="module", autouse=True)
def _environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, SECRET)
        yield


@pytest.fixture(scope="module")
def service(run_service, trial, tmp_path_factory):
    """For what is refused, and so changes nothing."""
    with run_service(_config(trial), tmp_path_factory.mktemp("models")) as service:
        yield service


async def _ask(http, service, method, path=PATH, *, body=None, headers=ADMIN):
    async with http.request(method, service.url + path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def _listed(http, service):
    status, answer = await _ask(http, service, "GET")
    assert status == 200
    return {model["name"]: model for model in answer["models"]}


async def _served_by(service, calls, model="auto"):
    """Which models answer, asked with the official client."""
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0) as client:
        answers = [await client.chat.completions.create(model=model, messages=HELLO) for _ in range(calls)]
    return {answer.model for answer in answers}


def _assert_no_key(folder):
    """Neither store, nor the log, nor what lies between."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"router.sqlite", "service.log"} <= {path.name for path in files}
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []


async def test_every_model_is_listed_with_its_part_in_each_pool(service, http):
    models = await _listed(http, service)
    assert list(models) == ["good", "fair", "steady"]
    part = {"state": "admitted", "newcomer": False, "evidence": {"quality": 0.0, "latency": 0.0}}
    good = models["good"]
    assert [entry["pool"] for entry in good["pools"]] == ["auto", "other", "pinned-down", "shares"]
    assert good["pools"][0] == {"pool": "auto"} | part
    assert (good["source"], good["problem"], models["steady"]["pools"]) == ("configuration", None, [])
    assert good["price"] == {
        "input_per_million": 1.0,
        "output_per_million": 10.0,
        "cached_input_per_million": None,
        "per_call": 0.0,
    }
    assert "api_key" not in good


async def test_only_the_operator_may(service, expect_refusal):
    for method, path in (("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/good")):
        status, error = await expect_refusal(service, method, path, b"{", CALLER)
        assert (status, error["code"], error["type"]) == (403, "admin_only", "permission_error")


async def test_what_is_wrong_with_a_new_model_is_said_all_at_once(service, expect_refusal, trial):
    model = _late(
        trial, endpoint="ftp://x", timeout_s=0, tiemout=1, headers={"x-team": "literal", "bad name": "${HOME}"}
    )
    del model["name"]
    body = {"model": model | {"api_key": SECRET}, "pools": ["auto", "auto"], "accuracy": 1.5, "extra": 1}
    status, error = await expect_refusal(service, "POST", PATH, body, ADMIN)
    assert (status, error["code"]) == (422, "invalid_field")
    found = {problem["param"]: problem["message"] for problem in error["problems"]}
    assert set(found) >= {
        "model.name",
        "model.endpoint",
        "model.timeout_s",
        "model.tiemout",
        "model.api_key",
        "model.headers.x-team",
        "model.headers.bad name",
        "pools[1]",
        "accuracy",
        "extra",
    }
    assert "must be a reference such as ${NAME}" in found["model.api_key"]
    assert "kept in files" in found["model.headers.x-team"]
    assert "did you mean timeout_s?" in found["model.tiemout"]
    assert SECRET not in str(error)
    assert "literal" not in str(error)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": {"api_key": "${POINTSMAN_TEST_NEVER_SET}"}}, "model.api_key"),
        ({"model": {"api_key": "Bearer ${HOME}"}}, "model.api_key"),
        ({"model": {"api_key": "${HOME:-literal}"}}, "model.api_key"),
        ({"model": {"api_key": 7}}, "model.api_key"),
        ({"model": {"headers": ["x"]}}, "model.headers"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": "good", "pools": []}, "pools"),
        ({"pools": "auto"}, "pools"),
        ({"accuracy": 0.8}, "samples"),
        ({"samples": 50}, "accuracy"),
        ({"accuracy": 0.8, "samples": 0}, "samples"),
        ({"accuracy": 0.8, "samples": 50, "pools": []}, "pools"),
    ],
)
async def test_a_field_that_is_wrong_is_named(service, expect_refusal, trial, change, param):
    model = change.get("model", {})
    body = {"pools": ["auto"]} | change | {"model": _late(trial) | model if isinstance(model, dict) else model}
    status, error = await expect_refusal(service, "POST", PATH, body, ADMIN)
    assert (status, error["code"], error["param"]) == (422, "invalid_field", param)


async def test_a_body_without_a_model_says_so(service, expect_refusal):
    status, error = await expect_refusal(service, "POST", PATH, {}, ADMIN)
    assert (status, error["param"], error["problems"][0]["message"]) == (422, "model", "is required")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", PATH, {"model": "gould", "pools": ["auto"]}, 404, "did you mean 'good'?"),
        ("POST", PATH, {"model": "steady", "pools": ["other", "atuo"]}, 404, "did you mean 'auto'?"),
        ("POST", PATH, {"model": "good", "pools": ["auto"]}, 409, "is in pool 'auto' already"),
        ("DELETE", f"{PATH}/nobody", None, 404, "'nobody'"),
        ("DELETE", f"{PATH}/good?pools=nowhere", None, 404, "'nowhere'"),
        ("DELETE", f"{PATH}/fair?pools=auto&pools=other", None, 409, "'fair' is not in pool 'other'"),
        ("DELETE", f"{PATH}/good?pools=other", None, 409, "last model of pool 'other'"),
        ("DELETE", f"{PATH}/good", None, 409, "last model"),
        ("DELETE", f"{PATH}/good?pools=pinned-down", None, 409, "policy.model"),
        ("DELETE", f"{PATH}/good?pools=shares", None, 409, "policy.weights"),
        ("DELETE", f"{PATH}/steady", None, 409, "is in no pool"),
        ("DELETE", f"{PATH}/good?pool=auto", None, 400, "there is only pools"),
    ],
)
async def test_a_change_that_cannot_be_made_changes_nothing(service, expect_refusal, method, path, body, status, said):  # noqa: PLR0917 - a row's columns
    found, error = await expect_refusal(service, method, path, body, ADMIN)
    assert found == status
    assert said in error["message"]


@pytest.mark.parametrize("name", ["good", "auto"])
async def test_a_name_that_is_taken_is_refused(service, expect_refusal, trial, name):
    status, error = await expect_refusal(service, "POST", PATH, {"model": _late(trial, name=name)}, ADMIN)
    assert (status, error["code"]) == (409, "model_conflict")


async def test_an_open_service_takes_orders_from_this_machine_but_not_from_other_sites_pages(
    run_service, trial, http, expect_refusal, tmp_path
):
    """Their pages can post here unasked; a browser then sends their origin, or as the host a name they pointed here."""
    config = _config(trial)
    del config["auth"]
    with run_service(config, tmp_path) as service:
        port = service.url.rpartition(":")[2]
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": f"evil.example:{port}"}):
            body = {"model": _late(trial), "pools": ["auto"]}
            status, error = await expect_refusal(service, "POST", PATH, body, headers)
            assert (status, error["code"]) == (403, "cross_site")
        for headers in ({}, {"Origin": service.url}, {"Host": f"localhost:{port}"}):
            assert (await _ask(http, service, "GET", headers=headers))[0] == 200


async def test_a_service_without_an_admin_key_is_closed(run_service, trial, expect_refusal, tmp_path):
    config = _config(trial)
    del config["auth"]["admin_key"]
    with run_service(config, tmp_path) as service:
        status, error = await expect_refusal(service, "GET", PATH, None, CALLER)
    assert (status, error["message"]) == (403, "/admin is for the operator: the configuration has no auth.admin_key")


async def test_a_model_comes_takes_traffic_outlives_restarts_and_goes(run_service, trial, http, tmp_path):
    with run_service(_config(trial), tmp_path) as service:
        body = {"model": _late(trial), "pools": ["auto", "other"], "accuracy": 0.8, "samples": 50}
        status, added = await _ask(http, service, "POST", body=body)
        assert (status, added["source"], added["problem"]) == (201, "runtime", None)
        assert [entry["pool"] for entry in added["pools"]] == ["auto", "other"]
        part = {"pool": "auto", "state": "admitted", "newcomer": True, "evidence": {"quality": 50.0, "latency": 0.0}}
        assert added["pools"][0] == part
        assert await _served_by(service, 60) == {"good", "fair", "late"}
        assert await _served_by(service, 1, "late") == {"late"}
        request = await trial.last_request(http)
        assert hashlib.sha256(SECRET.encode()).hexdigest()[:12] in request["headers"]["authorization"]
        service.kill()
    _assert_no_key(tmp_path)
    with run_service(_config(trial), tmp_path) as service:
        assert (await _listed(http, service))["late"]["pools"][0]["pool"] == "auto"
        assert await _served_by(service, 60) == {"good", "fair", "late"}
        assert service.stop() == 0  # with a snapshot: the next start replays nothing
    with run_service(_config(trial), tmp_path) as service:
        assert "replayed 0 events" in service.log
        assert await _served_by(service, 60) == {"good", "fair", "late"}
        status, removed = await _ask(http, service, "DELETE", f"{PATH}/late?pools=other")
        assert (status, removed) == (200, {"name": "late", "removed_from": ["other"], "callable": True})
        assert await _served_by(service, 1, "late") == {"late"}
        status, removed = await _ask(http, service, "DELETE", f"{PATH}/late")
        assert (status, removed) == (200, {"name": "late", "removed_from": ["auto"], "callable": False})
        assert await _served_by(service, 40) == {"good", "fair"}
        async with http.get(service.url + "/metrics") as response:
            states = [line for line in (await response.text()).splitlines() if "filter_state{" in line]
        assert states
        assert not any('model="late"' in line for line in states)
        service.kill()
    with run_service(_config(trial), tmp_path) as service:
        assert list(await _listed(http, service)) == ["good", "fair", "steady"]
        with pytest.raises(openai.NotFoundError):
            await _served_by(service, 1, "late")
        assert service.stop() == 0
    assert "Traceback" not in service.log
    _assert_no_key(tmp_path)
    _assert_changes_are_logged(service)


def _assert_changes_are_logged(service):
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        rows = log.execute("SELECT pool, model, reason FROM filter_events ORDER BY seq").fetchall()
        assert log.execute("SELECT count(*) FROM rejected").fetchone() == (0,)
    came = [(None, "late", "added"), ("auto", "late", "added"), ("other", "late", "added")]
    assert rows == [*came, ("other", "late", "removed"), ("auto", "late", "removed"), (None, "late", "removed")]
    assert {event["payload"]["by"] for event in service.events("model_added")} == {"admin"}


async def test_a_model_of_the_configuration_joins_and_leaves_pools(run_service, trial, http, tmp_path):
    """It stays callable by its name; what an operator did to the pools outlives a restart."""
    with run_service(_config(trial), tmp_path) as service:
        assert (await _ask(http, service, "POST", body={"model": "steady", "pools": ["other"]}))[0] == 201
        status, removed = await _ask(http, service, "DELETE", f"{PATH}/fair?pools=auto")
        assert (status, removed["callable"]) == (200, True)
        service.kill()
    for _ in range(2):  # from events, then from a snapshot
        with run_service(_config(trial), tmp_path) as service:
            models = await _listed(http, service)
            assert [entry["pool"] for entry in models["steady"]["pools"]] == ["other"]
            assert [entry["pool"] for entry in models["fair"]["pools"]] == ["pinned-down", "shares"]
            assert await _served_by(service, 10) == {"good"}
            assert await _served_by(service, 1, "fair") == {"fair"}
            assert service.stop() == 0
    with run_service(_config(trial), tmp_path) as service:
        assert (await _ask(http, service, "POST", body={"model": "fair", "pools": ["auto"]}))[0] == 201
        assert await _served_by(service, 40) == {"good", "fair"}


async def test_without_its_variable_a_model_stays_out_until_it_is_back(run_service, trial, http, tmp_path, monkeypatch):
    with run_service(_config(trial), tmp_path) as service:
        assert (await _ask(http, service, "POST", body={"model": _late(trial), "pools": ["auto"]}))[0] == 201
        service.kill()
    monkeypatch.delenv(VARIABLE)
    for _ in range(2):
        with run_service(_config(trial), tmp_path) as service:
            assert f"needs {VARIABLE} from the service's environment, which is not set" in service.log
            late = (await _listed(http, service))["late"]
            assert VARIABLE in late["problem"]
            assert late["pools"] == []
            assert await _served_by(service, 20) == {"good", "fair"}
            status, answer = await _ask(http, service, "POST", body={"model": "late", "pools": ["other"]})
            assert (status, answer["error"]["code"]) == (409, "model_conflict")
            assert service.stop() == 0
    monkeypatch.setenv(VARIABLE, SECRET)
    with run_service(_config(trial), tmp_path) as service:
        assert await _served_by(service, 60) == {"good", "fair", "late"}
        assert service.stop() == 0
    monkeypatch.delenv(VARIABLE)
    with run_service(_config(trial), tmp_path) as service:
        status, removed = await _ask(http, service, "DELETE", f"{PATH}/late")
        assert (status, removed) == (200, {"name": "late", "removed_from": [], "callable": False})
        assert service.stop() == 0
    before = service.log
    with run_service(_config(trial), tmp_path) as service:
        assert "late" not in await _listed(http, service)
        assert "ERROR" not in service.log.removeprefix(before)


async def test_the_configuration_wins_over_what_was_added(run_service, trial, http, tmp_path):
    """As when an operator has written the addition into the file."""
    with run_service(_config(trial), tmp_path) as service:
        assert (await _ask(http, service, "POST", body={"model": _late(trial), "pools": ["auto"]}))[0] == 201
        assert await _served_by(service, 60) == {"good", "fair", "late"}
        service.kill()
    config = _config(trial)
    config["models"].append(trial.model("late", upstream_model="fair", price=None))
    config["pools"][0]["models"].append("late")
    for _ in range(2):
        with run_service(config, tmp_path) as service:
            late = (await _listed(http, service))["late"]
            assert (late["source"], late["upstream_model"], late["price"]) == ("configuration", "fair", None)
            assert [entry["pool"] for entry in late["pools"]] == ["auto"]
            assert service.stop() == 0
    assert "Traceback" not in service.log


async def test_calls_under_way_finish_when_their_model_leaves(run_service, trial, http, tmp_path):
    """A plain call and a stream that take 0.6 s, and the model gone meanwhile."""
    with run_service(_config(trial), tmp_path) as service:
        body = {"model": trial.model("late", upstream_model="steady"), "pools": []}
        status, added = await _ask(http, service, "POST", body=body)
        assert (status, added["pools"]) == (201, [])
        before = (await trial.seen(http, "steady"))["started"]
        calls = [asyncio.create_task(_call(http, service, stream=stream)) for stream in (False, True)]
        while (await trial.seen(http, "steady"))["started"] < before + 2:  # noqa: ASYNC110 - the upstreams tell nobody
            await asyncio.sleep(0.01)
        assert (await _ask(http, service, "DELETE", f"{PATH}/late"))[0] == 200
        assert (await _ask(http, service, "DELETE", f"{PATH}/late"))[0] == 404
        answers = await asyncio.gather(*calls)
        assert [status for status, _ in answers] == [200, 200]
        assert answers[1][1].endswith("data: [DONE]\n\n")
        with pytest.raises(openai.NotFoundError):
            await _served_by(service, 1, "late")
        assert service.stop() == 0
    assert [event["payload"]["status"] for event in service.events("outcome")] == ["ok", "ok"]


async def _call(http, service, *, stream):
    body = {"model": "late", "messages": HELLO, "stream": stream}
    async with http.post(service.url + "/v1/chat/completions", json=body, headers=CALLER) as response:
        return response.status, await response.text()


async def test_a_name_may_hold_slashes(run_service, trial, http, tmp_path):
    name = "vendor/late-1%20"
    with run_service(_config(trial), tmp_path) as service:
        body = {"model": _late(trial, name=name), "pools": ["auto"]}
        assert (await _ask(http, service, "POST", body=body))[0] == 201
        status, removed = await _ask(http, service, "DELETE", f"{PATH}/vendor%2Flate-1%2520")
        assert (status, removed["name"]) == (200, name)


def test_what_the_tests_keep_secret_is_in_no_configuration(trial):
    assert SECRET not in yaml.safe_dump(_config(trial))
