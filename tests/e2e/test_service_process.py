"""The program itself: how it ends, and how it says that it cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHAT_PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def config(trial):
    return {
        "models": [trial.model("good"), trial.model("steady"), trial.model("slow")],
        "pools": [{"name": "auto", "models": ["good", "steady"]}],
    }


async def run(*arguments):
    """(exit code, what it printed, what it complained of) of the program with these arguments."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "serving",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ,
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


async def _until_started(trial, http, model, calls):
    async with asyncio.timeout(10):
        while (await trial.seen(http, model))["started"] < calls:  # noqa: ASYNC110 - another process's counter
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_calls_under_way_are_finished_before_the_end(run_service, trial, http, config, tmp_path, number):  # noqa: PLR0917 - fixtures
    """Streamed or not; the next start finds everything in the snapshot and replays nothing."""
    started = (await trial.seen(http, "steady"))["started"]
    with run_service(config, tmp_path) as service:
        calls = []
        for stream in (False, True):
            body = {"model": "steady", "messages": MESSAGES, "stream": stream}
            calls.append(asyncio.create_task(_answer(http, service.url, body)))
        await _until_started(trial, http, "steady", started + 2)
        service.process.send_signal(number)
        whole, streamed = await asyncio.gather(*calls)
        assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert b"quality 1.0" in whole
    assert streamed.endswith(b"data: [DONE]\n\n")
    assert [event["payload"]["status"] for event in service.events("outcome")] == ["ok", "ok"]
    if number == signal.SIGTERM:
        with run_service(config, tmp_path) as service:
            assert service.log.count("replayed 0 events") == 2
    assert "Traceback" not in service.log


async def _answer(http, url, body):
    async with http.post(url + CHAT_PATH, json=body) as response:
        assert response.status == 200
        return await response.read()


async def test_calls_that_take_longer_than_the_grace_are_given_up(run_service, trial, http, config, tmp_path):
    """Each is told so, and still has its outcome."""
    started = (await trial.seen(http, "slow"))["started"]
    with run_service(config | {"server": {"shutdown_grace_s": 0.2}}, tmp_path) as service:
        body = {"model": "slow", "messages": MESSAGES}
        call = asyncio.create_task(http.post(service.url + CHAT_PATH, json=body))
        await _until_started(trial, http, "slow", started + 1)
        service.process.send_signal(signal.SIGTERM)
        async with await call as response:
            assert (response.status, response.headers["Connection"]) == (503, "close")
            assert (await response.json())["error"]["code"] == "unavailable"
        assert await asyncio.to_thread(service.process.wait, 10) == 0
    (outcome,) = service.events("outcome")
    assert (outcome["payload"]["status"], outcome["payload"]["error"]) == ("cancelled", "service_stopped")


async def test_why_it_cannot_start(run_service, config, tmp_path):
    """The port is taken; the folder belongs to a running service; the folder is a file. Exit code 1 and one line."""
    path, file = tmp_path / "pointsman.yaml", tmp_path / "file"
    path.write_text(yaml.safe_dump(config))
    file.touch()
    with (
        contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken,
        run_service(config, tmp_path / "running") as service,
    ):
        port = taken.getsockname()[1]
        results = await asyncio.gather(
            run("serve", "-c", path, "--port", port, "--data-dir", tmp_path / "other"),
            run("serve", "-c", path, "--port", 0, "--data-dir", service.data_dir),
            run("serve", "-c", path, "--port", 0, "--data-dir", file),
        )
    for (code, out, err), reason in zip(
        results, ("address already in use", "another process has it open", "file"), strict=True
    ):
        assert (code, out) == (1, "")
        problem = err.strip().splitlines()[-1]
        assert problem.startswith("pointsman: ")
        assert reason in problem
        assert "Traceback" not in err


async def test_bad_configurations_and_folders_are_told_before_anything_starts(tmp_path):
    """Exit code 2 and every problem, by `check` and `serve` alike; nothing is left behind."""
    path = tmp_path / "bad.yaml"
    path.write_text(
        "server: {port: 99999, hots: x}\n"
        "models: [{name: m, endpoint: 'ftp://x', api_key: ${NOT_SET_ANYWHERE}}]\n"
        "pools: [{name: auto, models: [n], policy: {kind: tompson}}]\n"
    )
    data_dir = tmp_path / "data"
    results = await asyncio.gather(
        run("check", "-c", path),
        run("serve", "-c", path, "--data-dir", data_dir),
        run("check", "-c", tmp_path / "missing.yaml"),
        run("upstreams", "--outcomes", tmp_path / "missing", "--port", 0),
        run("upstreams", "--outcomes", tmp_path, "--port", 0),
    )
    for code, out, err in results:
        assert (code, out) == (2, "")
        assert "Traceback" not in err
    for _, _, err in results[:2]:
        for part in ("server.port", "server.hots", "host", "models[0].endpoint", "NOT_SET_ANYWHERE", "thompson"):
            assert part in err
    assert "missing.yaml" in results[2][2]
    assert not data_dir.exists()


async def test_check_shows_what_a_configuration_amounts_to(config, tmp_path):
    """Every pool and model, and no secret."""
    config["models"][0]["api_key"] = "sk-secret-0451"
    config["auth"] = {"keys": [{"key": "callers-secret-0451", "user": "ada"}]}
    path = tmp_path / "pointsman.yaml"
    path.write_text(yaml.safe_dump(config))
    code, out, err = await run("check", "-c", path)
    assert (code, err) == (0, "")
    assert all(name in out for name in ("auto", "good", "steady", "slow", "ada"))
    assert "0451" not in out
