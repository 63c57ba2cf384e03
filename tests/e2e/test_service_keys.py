"""Keys made while the service runs: by API and command line, rotated, revoked, after `kill -9`, and never shown."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256

import duckdb
import pytest

ADMIN_KEY = "admins-key-12"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def config(trial):
    return {
        "auth": {"admin_key": ADMIN_KEY},
        "log": {"flush_interval_s": 0.1},
        "models": [trial.model("good")],
        "pools": [{"name": "auto", "models": ["good"]}],
    }


async def asked(http, service, method, path, body=None, headers=ADMIN):  # noqa: PLR0917
    async with http.request(method, service.url + path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def called(http, service, secret):
    """The status of a call with this key."""
    status, _ = await asked(http, service, "POST", "/v1/chat/completions", CHAT, bearer(secret))
    return status


async def made(http, service, **body):
    status, key = await asked(http, service, "POST", "/admin/keys", {"user": "ada"} | body)
    assert status == 201
    return key


async def test_a_key_is_made_used_rotated_and_revoked(run_service, config, http, tmp_path):
    """The service starts with no caller at all; a revoked key is refused by the very next call."""
    with run_service(config, tmp_path) as service:
        key = await made(http, service, team="search", tier="paid", name="laptop")
        assert await called(http, service, key["secret"]) == 200
        (decision,) = service.events("decision")
        assert [decision["payload"][name] for name in ("user", "team", "tier", "key_id")] == [
            *("ada", "search", "paid"),
            key["id"],
        ]
        _, turned = await asked(http, service, "POST", f"/admin/keys/{key['id']}/rotate", {"grace_s": 600})
        assert [await called(http, service, each["secret"]) for each in (key, turned)] == [200, 200]
        _, again = await asked(http, service, "POST", f"/admin/keys/{key['id']}/rotate", {"grace_s": 0})
        assert [await called(http, service, each["secret"]) for each in (key, turned, again)] == [401, 401, 200]
        status, revoked = await asked(http, service, "DELETE", f"/admin/keys/{key['id']}")
        assert (status, revoked["state"]) == (200, "revoked")
        assert await called(http, service, again["secret"]) == 401
        _, listed = await asked(http, service, "GET", "/admin/keys")
        assert [entry["state"] for entry in listed["keys"]] == ["revoked"]


async def test_keys_survive_a_kill_and_a_snapshot(run_service, config, http, tmp_path):
    """What was answered holds after `kill -9`, from the log, and after an orderly stop, from the snapshot."""
    with run_service(config, tmp_path) as service:
        kept, turned, gone = [await made(http, service, user=name) for name in ("ada", "bo", "cy")]
        _, new = await asked(http, service, "POST", f"/admin/keys/{turned['id']}/rotate", {"grace_s": 0})
        await asked(http, service, "DELETE", f"/admin/keys/{gone['id']}")
        service.kill()
    for ending in ("stop", "kill"):
        with run_service(config, tmp_path) as service:
            statuses = [await called(http, service, key["secret"]) for key in (kept, turned, new, gone)]
            assert statuses == [200, 401, 200, 401]
            getattr(service, ending)()


async def test_only_the_operator_makes_keys(run_service, config, http, tmp_path):
    with run_service(config, tmp_path) as service:
        key = await made(http, service)
        for method, path, body in (
            ("GET", "/admin/keys", None),
            ("POST", "/admin/keys", {"user": "eve"}),
            ("POST", f"/admin/keys/{key['id']}/rotate", {}),
            ("DELETE", f"/admin/keys/{key['id']}", None),
        ):
            status, answer = await asked(http, service, method, path, body, bearer(key["secret"]))
            assert (status, answer["error"]["code"]) == (403, "admin_only")
        for body, status, code in (({}, 422, "invalid_field"), ({"user": "ada", "allow": ["x"]}, 422, "invalid_field")):
            answered, answer = await asked(http, service, "POST", "/admin/keys", body)
            assert (answered, answer["error"]["code"]) == (status, code)
        answered, answer = await asked(http, service, "DELETE", "/admin/keys/key-0")
        assert (answered, answer["error"]["code"]) == (404, "key_not_found")
        assert len(service.events("change")) == 1


async def test_no_secret_is_anywhere_but_in_the_answer_that_made_it(  # noqa: PLR0917 - fixtures
    run_service, config, http, tmp_path, wait_until, trial
):
    """Not in what the process wrote, not in any file of its data, not upstream; a digest only in one store."""
    config["auth"]["keys"] = [{"key": "configured-key-77", "user": "bo"}]
    with run_service(config, tmp_path) as service:
        key = await made(http, service, name="laptop")
        _, turned = await asked(http, service, "POST", f"/admin/keys/{key['id']}/rotate", {})
        secrets = [key["secret"], turned["secret"], "configured-key-77", ADMIN_KEY]
        digests = [sha256(secret.encode()).hexdigest() for secret in secrets]
        assert [await called(http, service, secret) for secret in secrets] == [200] * 4
        assert await called(http, service, key["secret"] + "x") == 401
        async with http.get(f"{trial.url}/control?last=4") as response:
            upstream = await response.text()
        told = [upstream]
        for path in ("/admin/keys", "/admin/models", "/metrics", "/v1/models"):
            async with http.get(service.url + path, headers=ADMIN) as response:
                told.append(await response.text())
        log = service.data_dir / "log.duckdb"
        await wait_until(lambda: log.exists() and _changes(log) == 2)
        service.stop()
        told += [service.log, repr(_rows(log))]
        assert not any(text in each for each in told for text in (*secrets, *digests))
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "pointsman.yaml":
            raw = path.read_bytes()
            assert not any(secret.encode() in raw for secret in secrets), path
            assert path.name.startswith("router.sqlite") or not any(digest.encode() in raw for digest in digests), path


def _changes(log):
    try:
        with duckdb.connect(str(log), read_only=True) as connection:
            return connection.execute("SELECT count(*) FROM changes WHERE subject = 'keys'").fetchone()[0]
    except duckdb.Error:  # just being written
        return 0


def _rows(log):
    with duckdb.connect(str(log), read_only=True) as connection:
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        return [connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in names]  # noqa: S608


async def test_the_command_line_does_the_same(run_service, config, http, tmp_path):
    """A secret is all that standard output holds; a wrong admin key is told by the variable it was read from."""
    with run_service(config, tmp_path) as service:
        secret = _keys(service, "create", "--user", "ada", "--allow", "auto", "--days", "1").stdout.strip()
        assert await called(http, service, secret) == 200
        _, listed = await asked(http, service, "GET", "/admin/keys")
        (entry,) = listed["keys"]
        turned = _keys(service, "rotate", entry["id"], "--grace-s", "0").stdout.strip()
        assert [await called(http, service, each) for each in (secret, turned)] == [401, 200]
        shown = _keys(service, "list").stdout
        assert entry["id"] in shown.replace("\n", "")
        assert turned not in shown
        assert "revoked" in _keys(service, "revoke", entry["id"]).stdout
        assert await called(http, service, turned) == 401
        refused = _keys(service, "list", key="wrong-key-1", code=2)
        assert "POINTSMAN_ADMIN_KEY" in refused.stderr
        assert "wrong-key-1" not in refused.stderr + refused.stdout
        service.stop()
        assert "nothing usable answers" in _keys(service, "list", code=2).stderr


def _keys(service, *arguments, key=ADMIN_KEY, code=0):
    command = [sys.executable, "-m", "serving", "keys", *arguments, "--url", service.url]
    env = os.environ | {"POINTSMAN_ADMIN_KEY": key, "COLUMNS": "200"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done
