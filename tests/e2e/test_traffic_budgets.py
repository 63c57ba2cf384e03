"""A hard budget holds whatever comes at once, can be spent, and is found again after a crash."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest

MESSAGES = [{"role": "user", "content": "hello"}]
KEY, ADMIN = "caller-of-the-tests", "operator-of-the-tests"
CALLERS = 200
LIMIT_USD = 1.0
PRICE = {"input_per_million": 1.0, "output_per_million": 100.0}
REFUSALS_UNTIL_DONE = 3


@pytest.fixture
def config(trial):
    return {
        "auth": {"admin_key": ADMIN, "keys": [{"key": KEY, "user": "ada", "team": "search"}]},
        "models": [trial.model("good", price=PRICE)],
        "pools": [{"name": "auto", "models": ["good"]}],
        "budgets": [{"name": "one", "scope": "team", "match": "search", "usd": LIMIT_USD, "per": "total"}],
        "limits": [{"scope": "user", "match": "nobody", "requests_per_minute": 1}],
    }


def spent_usd(service):
    return sum(event["payload"]["cost_usd"] or 0.0 for event in service.events("outcome"))


async def ledger_usd(service, http):
    async with http.get(f"{service.url}/admin/budgets", headers={"Authorization": f"Bearer {ADMIN}"}) as response:
        (budget,) = (await response.json())["budgets"]
        return budget


async def spend(service, *, stop=None):
    """200 callers who call on until they have been refused three times in a row."""
    statuses: dict[int, int] = {}

    async def caller(session):
        refused = 0
        while refused < REFUSALS_UNTIL_DONE and not (stop is not None and stop.is_set()):
            body = {"model": "auto", "messages": MESSAGES, "max_tokens": 200}
            try:
                async with session.post(f"{service.url}/v1/chat/completions", json=body) as response:
                    error = await response.json()
            except aiohttp.ClientError:
                return
            statuses[response.status] = statuses.get(response.status, 0) + 1
            assert response.status in (200, 402), error
            refused = refused + 1 if response.status == 402 else 0
            await asyncio.sleep(0.01 * refused)

    headers = {"Authorization": f"Bearer {KEY}"}
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(caller(session) for _ in range(CALLERS)))
    return statuses


async def test_two_hundred_callers_cannot_overspend_and_can_spend(run_service, config, http, tmp_path):
    """Of 1 USD at least 0.95 is spent and never more than 1, and the ledger is the sum of the outcomes."""
    with run_service(config, tmp_path) as service:
        statuses = await spend(service)
        assert statuses[402] >= CALLERS
        budget = await ledger_usd(service, http)
        assert 0.95 * LIMIT_USD <= spent_usd(service) <= LIMIT_USD
        assert str(budget["name"]) == "one"
        assert _only(budget)["spent"] == pytest.approx(spent_usd(service), abs=1e-9)
        assert _only(budget)["reserved"] == 0
        headers = {"Authorization": f"Bearer {ADMIN}"}
        async with http.patch(f"{service.url}/admin/budgets/one", json={"usd": 2}, headers=headers) as response:
            assert response.status == 200
        body = {"model": "auto", "messages": MESSAGES, "max_tokens": 200}
        own = {"Authorization": f"Bearer {KEY}"}
        async with http.post(f"{service.url}/v1/chat/completions", json=body, headers=own) as response:
            assert response.status == 200
            assert 0.9 < float(response.headers["x-pointsman-budget-remaining-usd"]) < 1.1


async def test_after_a_crash_the_ledger_is_the_sum_of_the_outcomes(run_service, config, http, wait_until, tmp_path):
    with run_service(config, tmp_path) as service:
        stop = asyncio.Event()
        task = asyncio.create_task(spend(service, stop=stop))
        await wait_until(lambda: spent_usd(service) > 0.1 * LIMIT_USD)
        await asyncio.to_thread(service.kill)
        stop.set()
        with contextlib.suppress(aiohttp.ClientError):
            await task
    with run_service(config, tmp_path) as service:
        before = spent_usd(service)
        assert 0.0 < before < LIMIT_USD
        assert _only(await ledger_usd(service, http))["spent"] == pytest.approx(before, abs=1e-9)
        await spend(service)
        assert 0.95 * LIMIT_USD <= spent_usd(service) <= LIMIT_USD
        assert _only(await ledger_usd(service, http))["spent"] == pytest.approx(spent_usd(service), abs=1e-9)


def _only(budget):
    (counter,) = budget["counters"]
    return counter
