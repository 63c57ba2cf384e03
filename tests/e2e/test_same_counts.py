"""Metrics, the log, /admin/usage, the budgets' ledger and the dashboard's page count the same.

2,000 calls by default; POINTSMAN_COUNTED_CALLS=10000 makes as many.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import aiohttp
import duckdb
import pytest
from chromium import EXECUTABLE, Opened, launched
from prometheus_client.parser import text_string_to_metric_families
from scripted_upstream import Scripted

CALLS = int(os.environ.get("POINTSMAN_COUNTED_CALLS", "2000"))
ADMIN = "operator-of-the-tests"
TEAMS = {"search": "key-of-search", "ads": "key-of-ads", "poor": "key-of-poor"}
AT_ONCE = 48
HAPPENS = {  # what an endpoint does, how often
    "ok": 70,
    "500": 6,
    "busy": 3,
    "reset": 3,
    "malformed": 3,
    "reset-midway": 3,
    "bad-request": 3,
    "too-long": 2,
    "slow-0.3": 7,
}
OF_ALL = ("calls", "attempts", "failed", "input_tokens", "output_tokens", "cost_usd", "unpriced_calls")
BY_MODEL = """
SELECT d.pool, o.model, d.mode, count(DISTINCT o.decision_id), count(*), count(*) FILTER (o.status <> 'ok'),
       coalesce(sum(o.input_tokens), 0), coalesce(sum(o.output_tokens), 0), coalesce(sum(o.cost_usd), 0)
FROM outcomes o JOIN decisions d USING (decision_id) GROUP BY ALL
"""


@pytest.fixture
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture
def config(scripted):
    eager = {"breaker": {"enabled": False}}
    unpriced = scripted.model("free", **eager)
    del unpriced["price"]
    retries = {"backoff_s": 0.001, "max_backoff_s": 0.01, "budget": 1.0, "burst": 1000}
    keys = [{"key": key, "user": f"u-{team}", "team": team} for team, key in TEAMS.items()]
    return {
        "auth": {"admin_key": ADMIN, "keys": keys},
        "models": [scripted.model(name, **eager) for name in ("a", "b", "c")] + [unpriced],
        "pools": [
            {
                "name": "auto",
                "models": ["a", "b", "free"],
                "policy": {"kind": "uniform", "seed": 7},
                "slo": {"availability": 0.99, "latency_s": 0.2, "latency_share": 0.9, "success_quality": 0.5},
                "shadow": {"model": "c", "share": 0.1, "max_usd_per_day": 100, "max_concurrent": 50},
                "failures": {"retries": retries},
            },
            {"name": "few", "models": ["a", "c"], "objective": {"quality": 1, "cost": 1}},
        ],
        "budgets": [
            {"name": "everybody", "scope": "all", "usd": 1000, "per": "total"},
            {"name": "little", "scope": "team", "match": "poor", "tokens": 1000, "per": "total"},
        ],
        "metering": {"assumed_output_tokens": 5},
    }


class Callers:
    """What was sent, and what came back."""

    def __init__(self, service):
        self.service, self.draws = service, random.Random(11)
        self.sent, self.results, self.answered, self.graded = Counter(), Counter(), Counter(), 0

    async def call(self, session):
        draws = self.draws
        model = draws.choices(["auto", "few", "a", "c"], [70, 20, 5, 5])[0]
        stream, team, impatient, graded = (
            draws.random() < 0.3,
            draws.choices(list(TEAMS), [5, 4, 1])[0],
            draws.random(),
            draws.random(),
        )
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream, "max_tokens": 5}
        headers = {"Authorization": f"Bearer {TEAMS[team]}"}
        self.sent[model] += 1
        try:
            async with asyncio.timeout(0.1 if impatient < 0.3 else 30):
                url = f"{self.service.url}/v1/chat/completions"
                async with session.post(url, json=body, headers=headers) as response:
                    await response.read()
        except (TimeoutError, aiohttp.ClientError):
            self.results["gone"] += 1
            return
        self.results[response.status] += 1
        self.answered[model] += response.status == 200
        if response.status == 200 and graded < 0.5:
            item = {"decision_id": response.headers["x-pointsman-decision-id"], "quality": round(graded * 2, 3)}
            async with session.post(f"{self.service.url}/reward", json=item, headers=headers) as response:
                self.graded += (await response.json()).get("status") == "recorded"

    async def make(self, number):
        left = iter(range(number))

        async def caller(session):
            for _ in left:
                await self.call(session)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(caller(session) for _ in range(AT_ONCE)))


async def scraped(service, http):
    async with http.get(f"{service.url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return [sample for family in families for sample in family.samples]


def total(samples, name, *by, **labels):
    """The sum of a metric's samples that have these labels; by the values of `by`, where some are named."""
    sums = Counter()
    for sample in samples:
        if sample.name == name and all(sample.labels[k] == v for k, v in labels.items()):
            sums[tuple(sample.labels[k] for k in by)] += sample.value
    return sums if by else sums[()]


async def asked(service, http, path):
    async with http.get(service.url + path, headers={"Authorization": f"Bearer {ADMIN}"}) as response:
        assert response.status == 200
        return await response.json()


async def settled(service, http):
    """The samples once nothing is under way."""
    for _ in range(200):
        samples = await scraped(service, http)
        busy = ("pointsman_endpoint_calls", "pointsman_gate_calls", "pointsman_shadow_calls")
        if not any(total(samples, name) for name in busy):
            return samples
        await asyncio.sleep(0.05)
    raise AssertionError("calls stayed under way")


def shown_on_the_page(service):
    """(calls, USD) at the top of the dashboard of each pool, as a browser has them; not for a thread with a loop.

    Nothing where there is no browser, but in CI, where its absence is a failure.
    """
    shown = {}
    if not Path(EXECUTABLE).exists() and not os.environ.get("CI"):
        return shown
    with launched() as browser:
        opened = Opened(browser, service.url)
        opened.page.get_by_label("Admin key").fill(ADMIN)
        opened.page.keyboard.press("Enter")
        for pool in ("auto", "few"):
            opened.live().locator("#pool").select_option(pool)
            opened.page.wait_for_function("pool => document.title.startsWith(pool + ' ')", arg=pool)
            figures = [opened.page.locator(f"#tiles [data-figure={name}]") for name in ("calls", "cost_usd")]
            shown[pool] = tuple(float(figure.get_attribute("value")) for figure in figures)
        assert opened.errors == []
        opened.context.close()
    return shown


def rows_of(service, sql):
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        return log.execute(sql).fetchall()


async def test_all_count_the_same(run_service, config, scripted, http, tmp_path):
    draws = random.Random(5)
    with run_service(config, tmp_path) as service:
        for model in ("a", "b", "c", "free"):
            scripted.plans[model].extend(draws.choices(list(HAPPENS), list(HAPPENS.values()), k=4 * CALLS))
        callers = Callers(service)
        await callers.make(CALLS)
        assert {200, 400, 402, "gone"} <= set(callers.results), "the traffic was to be mixed"
        samples = await settled(service, http)
        usage = await asked(service, http, "/admin/usage?by=pool,model,mode")
        budgets = {b["name"]: b for b in (await asked(service, http, "/admin/budgets"))["budgets"]}
        pools = {row["pool"]: row for row in (await asked(service, http, "/admin/usage?by=pool"))["rows"]}
        page = await asyncio.to_thread(shown_on_the_page, service)
        assert service.stop() == 0
    log = {tuple(row[:3]): row[3:] for row in rows_of(service, BY_MODEL)}
    modes = {mode for _, _, mode in log}
    assert {"bandit", "pinned", "shadow"} <= modes
    assert usage["total"]["attempts"] > usage["total"]["calls"] > 0.7 * CALLS, "there were to be retries"
    _same_as_the_log(usage, log)
    _same_as_usage(samples, usage, log)
    _requests_are_those_sent(samples, callers)
    for pool, (calls, cost_usd) in page.items():
        assert calls == pools[pool]["calls"]
        assert cost_usd == pytest.approx(pools[pool]["cost_usd"], abs=1e-9)
    (everybody,) = budgets["everybody"]["counters"]
    assert everybody["spent"] == pytest.approx(usage["total"]["cost_usd"], abs=1e-9)
    assert everybody["reserved"] == budgets["little"]["counters"][0]["reserved"] == 0
    decisions = dict(rows_of(service, "SELECT (pool, chosen, mode)::VARCHAR, count(*) FROM decisions GROUP BY ALL"))
    shown = total(samples, "pointsman_decisions_total", "pool", "model", "mode")
    assert {f"({', '.join(key)})": count for key, count in shown.items()} == decisions
    assert sum(decisions.values()) == usage["total"]["calls"]
    graded = rows_of(service, "SELECT count(*), sum(quality) FROM rewards WHERE revision = 0 AND quality IS NOT NULL")
    assert (total(samples, "pointsman_quality_count"), callers.graded) == (graded[0][0], graded[0][0])
    assert total(samples, "pointsman_quality_sum") == pytest.approx(graded[0][1], abs=1e-9)


def _same_as_the_log(usage, log):
    rows = {(row["pool"], row["model"], row["mode"]): row for row in usage["rows"]}
    assert set(rows) == set(log)
    for key, (calls, attempts, failed, tokens_in, tokens_out, cost_usd) in log.items():
        row = rows[key]
        counted = [row[name] for name in OF_ALL[:5]]
        assert counted == [calls, attempts, failed, tokens_in, tokens_out], key
        assert row["cost_usd"] == pytest.approx(cost_usd, abs=1e-9)


def _same_as_usage(samples, usage, log):
    attempts = total(samples, "pointsman_calls_total", "pool", "model", "mode")
    assert attempts == {key: row[1] for key, row in log.items()}
    good = total(samples, "pointsman_calls_total", "pool", "model", "mode", status="ok")
    assert all(attempts[key] - good[key] == row[2] for key, row in log.items())
    sums = usage["total"]
    assert total(samples, "pointsman_calls_total") == sums["attempts"]
    assert total(samples, "pointsman_tokens_total", direction="input") == sums["input_tokens"]
    assert total(samples, "pointsman_tokens_total", direction="output") == sums["output_tokens"]
    assert sums["cost_usd"] > 0
    assert total(samples, "pointsman_cost_usd_total") == pytest.approx(sums["cost_usd"], abs=1e-9)
    by_model = Counter()
    for row in usage["rows"]:
        by_model[row["pool"], row["model"]] += row["cost_usd"]
    for key, cost_usd in total(samples, "pointsman_cost_usd_total", "pool", "model").items():
        assert cost_usd == pytest.approx(by_model[key], abs=1e-9)


def _requests_are_those_sent(samples, callers):
    """Each request of a pool has one result, and the objectives are about those that their pool could answer.

    Of who leaves before the body has been read nobody knows for which pool it was.
    """
    for pool in ("auto", "few"):
        results = total(samples, "pointsman_requests_total", "result", pool=pool)
        assert callers.sent[pool] - callers.results["gone"] <= sum(results.values()) <= callers.sent[pool]
        assert results["ok",] + results["failed",] >= callers.answered[pool]  # a stream may break off after its 200
        assert min(results[name,] for name in ("ok", "cancelled", "refused")) > 0
    results = total(samples, "pointsman_requests_total", "result", pool="auto")
    about = total(samples, "pointsman_slo_requests_total", "objective", pool="auto")
    bad = total(samples, "pointsman_slo_bad_requests_total", "objective", pool="auto")
    assert about["availability",] == results["ok",] + results["failed",]
    assert bad["availability",] == results["failed",]
    assert results["ok",] <= about["latency",] <= results["ok",] + results["cancelled",]
    assert total(samples, "pointsman_request_duration_seconds_count", pool="auto") == results["ok",]
    assert 0 < total(samples, "pointsman_successes_total", pool="auto") < callers.graded
