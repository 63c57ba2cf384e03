"""`pointsman report` on the log of a running service: the matrix's figures, and one sentence for what cannot be."""

from __future__ import annotations

import json
import subprocess
import sys

import openai
import pytest

KEY, ADMIN_KEY = "callers-key-1", "admins-key-12"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CALLER = {"Authorization": f"Bearer {KEY}"}
SHARED = ("accuracy", "quality", "calls", "failed", "benchmark_calls", "benchmark_failed", "cost_usd_per_call",
          "benchmark_cost_usd_per_call")  # fmt: skip


def report(*arguments):
    command = [sys.executable, "-m", "serving", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


async def _driven(http, service):
    """Calls of the pool by two categories, failed ones among them, pinned ones, feedback and its revision, a suite."""
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0) as client:
        for number in range(24):
            try:
                answer = await client.chat.completions.create(
                    model="good" if number % 8 == 7 else "auto",
                    messages=[{"role": "user", "content": "hello"}],
                    extra_headers={"x-pointsman-category": "math"} if number % 3 else {},
                )
            except openai.APIStatusError:
                continue
            for quality in (0.25, float(number % 2))[number % 4 == 0 :]:
                reward = {"decision_id": answer.id, "quality": quality, "revise": True}
                async with http.post(service.url + "/reward", json=reward, headers=CALLER) as response:
                    assert response.status == 200
    for run in ("1", "2"):
        results = [
            {"item_id": str(i), "model": name, "category": "math", "quality": float(i < 3), "latency_s": 0.5 * i}
            for i in range(6)
            for name in ("good", "fair")
        ]
        results[int(run)] |= {"quality": None, "error": "timeout", "cost_usd": 0.5}
        async with http.post(
            service.url + "/admin/benchmarks", json={"suite": "s", "run": run, "results": results}, headers=ADMIN
        ) as response:
            assert response.status == 200


@pytest.fixture
async def service(run_service, trial, http, tmp_path):
    config = {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"key": KEY, "user": "ada"}]},
        "models": [trial.model(name) for name in ("good", "fair", "f500")],
        "pools": [
            {
                "name": "auto",
                "models": ["good", "fair", "f500"],
                "policy": {"kind": "weighted", "weights": {"good": 2, "fair": 1, "f500": 1}},
            }
        ],
    }
    with run_service(config, tmp_path) as service:
        await _driven(http, service)
        yield service


async def test_the_report_has_the_figures_of_the_matrix(service, http, tmp_path):
    """Of the same time: until is the matrix's, and since its beginning."""
    async with http.get(service.url + "/admin/matrix?pool=auto&days=1", headers=ADMIN) as response:
        matrix = await response.json()
    out = tmp_path / "report.json"
    times = ("--since", f"{matrix['since']:f}", "--until", f"{matrix['until']:f}")
    done = report(service.data_dir, "--json", out, "--pool", "auto", *times)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(out.read_text())
    assert sum(entry["overall"]["calls"] for entry in matrix["models"]) >= 21
    assert any(entry["overall"]["failed"] for entry in matrix["models"])
    assert [row["model"] for row in data["models"]] == sorted(entry["model"] for entry in matrix["models"])
    for entry in matrix["models"]:
        row = next(row for row in data["models"] if row["model"] == entry["model"])
        _same(row["overall"], entry["overall"])
        assert [c["category"] for c in row["categories"]] == [c["category"] for c in entry["categories"]]
        for mine, theirs in zip(row["categories"], entry["categories"], strict=True):
            _same(mine, theirs)


def _same(mine, theirs):
    for name in SHARED:
        assert mine[name] == pytest.approx(theirs[name], nan_ok=True), name
    for name in ("latency_s", "benchmark_latency_s"):
        assert {key: mine[name][key] for key in ("p50", "p95", "samples")} == pytest.approx(theirs[name])


async def test_a_page_is_made_while_the_service_runs(service, http, tmp_path):
    out = tmp_path / "report.html"
    async with http.get(service.url + "/admin/matrix", headers=ADMIN) as response:  # so that the log is up to date
        assert response.status == 200
    done = report(service.data_dir / "log.duckdb", "-o", out, "-c", tmp_path / "pointsman.yaml", "--policy", "uniform")
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "uniform" in text
    async with http.get(service.url + "/healthz") as response:
        assert response.status == 200
