"""What outlives a reload goes by new settings at once, and loses nothing that it has counted or promised."""

from __future__ import annotations

import asyncio
import random

import pytest
from metered_calls import at_once

from serving.access.budget_settings import BudgetEntry, LimitEntry
from serving.access.keys import KeyRing, digest_of
from serving.access.ledger import Ledger
from serving.access.principal import Principal
from serving.access.rates import Rates
from serving.access.settings import KeySettings
from serving.config_source import ConfigSource, changed_settings, unchangeable
from serving.errors import BudgetExhausted, RateLimited
from serving.settings import ModelSettings, Settings
from serving.traffic.gate import Gate
from serving.traffic.overload_settings import OverloadSettings
from serving.upstream import Upstreams

ADA = Principal(user="ada", team="search")
PER_USER = BudgetEntry(scope="user", usd=10.0, per="total", kind="hard", name="each")


def test_what_is_set_aside_in_a_budget_stays_so_whatever_stands_before_it():
    """Else the calls under way could spend it again; the budget's new limit holds for what is left."""
    ledger = Ledger([PER_USER])
    held = at_once(ledger.reserve(ADA, 4.0, 10, 1.0))
    other = BudgetEntry(scope="team", usd=100.0, per="total", kind="hard", name="team")
    ledger.configure([other, PER_USER.model_copy(update={"usd": 6.0})], max_counters=100)
    assert [line["limit"] for line in ledger.listed(1.0)] == [100.0, 6.0]
    with pytest.raises(BudgetExhausted):
        at_once(ledger.reserve(ADA, 2.5, 10, 1.0))
    second = at_once(ledger.reserve(ADA, 2.0, 10, 1.0))
    ledger.release(held)
    ledger.release(second)
    assert [line["counters"][0]["reserved"] for line in ledger.listed(1.0)] == [0.0, 0.0]


def test_a_configured_ledger_is_one_that_was_started_so():
    ledger = Ledger([PER_USER, BudgetEntry(scope="all", tokens=5, per="day", name="day")])
    ledger.changed({"what": "limit", "after": {"budget": "each", "limit": 3.0}})
    at_once(ledger.reserve(ADA, 1.0, 1, 1.0))
    state, entries = ledger.state(), [BudgetEntry(scope="all", usd=5, name="new"), PER_USER]
    started = Ledger(entries)
    started.load(state)
    ledger.configure(entries, max_counters=100)
    assert ledger.state() == started.state()
    assert ledger.limit("each") == started.limit("each") == 3.0


def test_a_limit_that_stays_keeps_its_buckets_and_another_begins_full():
    minute = LimitEntry(scope="user", requests_per_minute=1)
    rates = Rates([minute])
    at_once(rates.take(ADA, 0, 0.0))
    rates.configure([LimitEntry(scope="all", requests_per_minute=100), minute], max_counters=100)
    with pytest.raises(RateLimited):
        at_once(rates.take(ADA, 0, 0.0))
    rates.configure([LimitEntry(scope="user", requests_per_minute=2)], max_counters=100)
    at_once(rates.take(ADA, 0, 0.0))


def test_keys_of_the_configuration_come_and_go():
    one, two = (KeySettings(key=f"key-number-{n}", user=f"u{n}") for n in "12")
    ring = KeyRing([one])
    assert ring.find(digest_of("key-number-1"), 1.0).user == "u1"
    ring.configure([two])
    assert ring.find(digest_of("key-number-1"), 1.0) is None
    assert ring.find(digest_of("key-number-2"), 1.0).user == "u2"


async def test_a_gate_that_opens_wider_lets_those_in_who_wait():
    gate = Gate(OverloadSettings(max_concurrent=1), clock=lambda: 0.0, rng=random.Random(1), shed=lambda *_: None)
    async with gate.entered(0):
        entering = asyncio.create_task(gate.entered(0).__aenter__())
        await asyncio.sleep(0)
        assert (gate.in_use, gate.waiting) == (1, 1)
        gate.configure(OverloadSettings(max_concurrent=2))
        await entering
        assert (gate.in_use, gate.waiting) == (2, 0)
        gate.configure(OverloadSettings(max_concurrent=1))
        assert gate.limit == 1
        gate.left()
    assert gate.in_use == 0


async def test_a_model_that_stays_as_it_is_keeps_its_endpoints():
    """They are closed by the last that shares them; a model that changed has others."""
    models = [ModelSettings(name=name, endpoint="http://127.0.0.1:1/v1") for name in "ab"]
    before = Upstreams(models, 1_000)
    after = Upstreams([models[0], models[1].model_copy(update={"timeout_s": 5.0})], 1_000, before=before)
    assert after["a"] is before["a"]
    assert after["b"] is not before["b"]
    mine, gone = after["a"].endpoints[0], before["b"].endpoints[0]
    with before.in_use():
        closing = asyncio.create_task(before.close(when_unused=True))
        await asyncio.sleep(0.01)
        assert not closing.done()
    await closing
    assert (mine._session.closed, gone._session.closed) == (False, True)
    await after.close()
    assert mine._session.closed


def _settings(**more):
    models = [{"name": name, "endpoint": "http://127.0.0.1:1/v1"} for name in "ab"]
    return Settings.parse({"models": models, "pools": [{"name": "auto", "models": ["a", "b"]}]} | more)


def test_changes_are_told_by_the_names_of_settings():
    one = {"name": "a", "endpoint": "http://127.0.0.1:1/v1", "timeout_s": 7, "api_key": "secret-0451"}
    two, three = ({"name": name, "endpoint": "http://127.0.0.1:1/v1"} for name in "bc")
    before = _settings(auth={"keys": [{"key": "secret-0451", "user": "ada"}]})
    after = _settings(models=[one, two, three], server={"max_messages": 9}, auth={"admin_key": "secret-0452"})
    changed = changed_settings(before, after)
    assert changed == [
        *("server.max_messages", "auth.admin_key", "auth.keys"),
        *("models[a].api_key", "models[a].timeout_s", "models[c]"),
    ]
    assert changed_settings(after, after) == []
    assert changed_settings(before, _settings(auth={"keys": [{"key": "secret-0459", "user": "ada"}]})) == ["auth.keys"]


def test_what_needs_a_restart_is_named_with_its_line(tmp_path):
    path = tmp_path / "pointsman.yaml"
    path.write_text("server:\n  port: 81\n  body_timeout_s: 3\n")
    source = ConfigSource(path, {}, {})
    (problem,) = unchangeable(["server.port", "server.body_timeout_s", "models[a]"], source)
    assert (problem.path, problem.line) == ("server.port", 2)
    assert "restart" in str(problem)
