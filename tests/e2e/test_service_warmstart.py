"""From `pointsman warmstart` to the first decisions, over restarts, and to another warm start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

ROOT = Path(__file__).parents[2]
WARM_S = 60


def write_outcomes(folder, qualities):
    """A folder of recorded outcomes: 60 prompts of two categories, one quality a model."""
    folder.mkdir()
    tables = {
        "prompts": "SELECT 'p' || i AS prompt_id, 'question ' || i AS prompt, ['maths', 'law'][i % 2 + 1] AS category,"
        " 'warm' AS split FROM range(60) t(i)",
        "outcomes": "SELECT 'p' || i AS prompt_id, model, 'r' AS run, quality, 0.0001 AS cost_usd, 0.2 AS latency_s,"
        " 10 AS input_tokens, 20 AS output_tokens FROM range(60) t(i), models",
    }
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE models (model VARCHAR, quality DOUBLE)")
        connection.executemany("INSERT INTO models VALUES (?, ?)", list(qualities.items()))
        for name, query in tables.items():
            connection.execute(f"COPY ({query}) TO '{folder / name}.parquet' (FORMAT parquet)")
    return folder


def warmstart(folder, source, *options):
    command = [sys.executable, "-m", "serving", "warmstart", "-c", str(folder / "pointsman.yaml")]
    command += ["--data-dir", str(folder / "data"), "--from", str(source), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WARM_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def config(trial):
    pool = {"name": "auto", "models": ["good", "fair"], "policy": {"seed": 1}}
    return {"models": [trial.model("good"), trial.model("fair")], "pools": [pool]}


@pytest.fixture
def route(http):
    """Decide `n` times: (decision id, model) of each."""

    async def route(service, n):
        decided = []
        for i in range(n):
            body = {"model": "auto", "messages": [{"role": "user", "content": f"question {i}"}]}
            async with http.post(service.url + "/v1/route", json=body) as response:
                answer = await response.json()
            decided.append((answer["decision_id"], answer["model"]))
        return decided

    return route


@pytest.fixture
def reward(http):
    async def reward(service, items):
        async with http.post(service.url + "/reward", json=items) as response:
            assert response.status == 200, await response.text()

    return reward


def share(decided, model):
    return sum(chosen == model for _, chosen in decided) / len(decided)


async def test_from_a_folder_to_decisions_to_a_restart_to_another_start(run_service, config, route, reward, tmp_path):
    """The first decisions follow the start; what is learned stays; other features take over, old feedback does not."""
    better = {"fair": 0.95, "good": 0.05}
    with run_service(config, tmp_path) as service:  # writes the configuration; learns nothing yet
        pass
    (tmp_path / "data" / "router.sqlite").unlink()
    assert "0.9500" in warmstart(tmp_path, write_outcomes(tmp_path / "set", better))

    with run_service(config, tmp_path) as service:
        assert "has a warm start of" in service.log
        decided = await route(service, 40)
        assert share(decided, "fair") >= 0.9
        late = decided.pop()[0]
        for _ in range(25):  # the truth is the opposite of what was recorded
            await reward(service, [{"decision_id": d, "quality": float(m == "good")} for d, m in decided])
            decided = await route(service, 40)
        assert share(decided, "good") >= 0.8
        assert service.stop() == 0

    with run_service(config, tmp_path) as service:
        assert share(await route(service, 40), "good") >= 0.8
        service.kill()

    warmstart(tmp_path, tmp_path / "set", "--clusters", "4")
    with run_service(config, tmp_path) as service:
        assert "starts without what it had learned" in service.log
        assert share(await route(service, 40), "fair") >= 0.9
        await reward(service, [{"decision_id": late, "quality": 0.0}] * 1)  # durable, and of another layout's context
        assert service.stop() == 0

    with run_service(config, tmp_path) as service:
        assert "starts without" not in service.log.rsplit("replayed", 2)[-1]
        assert share(await route(service, 40), "fair") >= 0.9


async def test_a_running_services_own_log_warms_a_new_one(  # noqa: PLR0917 - fixtures
    run_service, config, route, reward, wait_until, tmp_path
):
    config["log"] = {"flush_interval_s": 0.05}
    with run_service(config, tmp_path / "old") as service:
        for _ in range(5):
            decided = await route(service, 40)
            await reward(service, [{"decision_id": d, "quality": float(m == "good")} for d, m in decided])
        log = service.data_dir / "log.duckdb"
        await wait_until(log.exists)
        with run_service(config, tmp_path / "new"):
            pass
        (tmp_path / "new" / "data" / "router.sqlite").unlink()
        await wait_until(lambda: "200 decisions" in warmstart(tmp_path / "new", log), 60)
        await route(service, 1)  # it served on meanwhile
    with run_service(config, tmp_path / "new") as service:
        assert share(await route(service, 40), "good") >= 0.85


def test_a_damaged_start_keeps_the_service_from_starting(run_service, config, tmp_path):
    """It may have learned with the file's features: starting without them would lose that silently."""
    with run_service(config, tmp_path):
        pass
    (tmp_path / "data" / "warmstart.npz").write_bytes(b"PK?")
    command = [sys.executable, "-m", "serving", "serve", "-c", str(tmp_path / "pointsman.yaml"), "--port", "0"]
    command += ["--data-dir", str(tmp_path / "data")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WARM_S, check=False)
    assert ended.returncode == 1
    assert "pointsman: cannot use" in ended.stderr
    assert "Traceback" not in ended.stderr
