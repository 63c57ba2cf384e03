"""The bill: sums of outcomes to the last digit, whole or by column; what a spreadsheet must not take for a formula."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from decimal import Decimal

import pytest
from metered_calls import ALICE, BOB, NOON, outcome, record

from serving.access.principal import Principal
from serving.access.usage import Usage, UsageQuery
from serving.analytics import AnalyticalLog
from serving.errors import InvalidRequest
from serving.records import Labels, decision_event, outcome_event
from serving.sqlite_store import SqliteStore

EVE = Principal("=cmd|' /C calc'!A0", "ads")
# who, mode, model, cost in USD, saved, hours after noon
CALLS = [
    *[(ALICE, "bandit", "a", 0.1, None, 0)] * 3,
    (BOB, "bandit", "b", 0.2, None, 1),
    (EVE, "pinned", "b", None, None, 13),
    (BOB, "cached", "b", 0.0, 0.2, 1),
    (ALICE, "shadow", "b", 0.7, None, 0),
]


@pytest.fixture
async def usage(tmp_path):
    store = SqliteStore(tmp_path / "router.sqlite")
    log = AnalyticalLog(tmp_path / "log.duckdb", store)
    for i, (who, mode, model, cost, saved, hours) in enumerate(CALLS):
        name = f"pm-{i}"
        made = replace(record(who, mode).decision, decision_id=name)
        more = {"decision_id": name, "model": model, "saved_usd": saved, "input_tokens": 10, "output_tokens": 2}
        await store.append([decision_event(made, Labels(who))])
        store.append_nowait([outcome_event(outcome(cost, NOON + 3600 * hours, **more))])  # nobody waits for it
    yield Usage(log, store, most_rows=4)
    await log.close()
    await store.close()


async def test_a_bill_is_the_sum_of_all_that_was_recorded(usage):
    """3 · 0.1 is 0.3 here, not 0.30000000000000004; a shadow is nobody's."""
    bill = await usage.of(UsageQuery())
    costs = {(row["team"], row["model"]): row["cost_usd"] for row in bill.rows}
    cents = {key: Decimal(text) for key, text in [((None, "b"), "0.7"), (("search", "a"), "0.3")]}
    assert costs == cents | {("ads", "b"): Decimal(0), ("search", "b"): Decimal("0.2")}
    assert bill.total["cost_usd"] == sum(costs.values()) == Decimal("1.2")
    total = bill.to_json()["total"]
    assert total == {
        "calls": 7,
        "attempts": 7,
        "failed": 0,
        "input_tokens": 70,
        "output_tokens": 14,
        "cached_tokens": 0,
        "cost_usd": 1.2,
        "saved_usd": 0.2,
        "unpriced_calls": 1,
    }


async def test_a_bill_is_of_a_stretch_of_time_by_day_and_hour(usage):
    bill = await usage.of(UsageQuery(("day", "hour"), NOON + 3600, NOON + 86_400))
    assert [(row["day"], row["hour"], row["attempts"]) for row in bill.rows] == [
        ("2025-11-25", "2025-11-25T13:00Z", 2),
        ("2025-11-26", "2025-11-26T01:00Z", 1),
    ]


async def test_no_name_is_taken_for_a_formula(usage):
    rows = list(csv.DictReader(io.StringIO((await usage.of(UsageQuery(("user",)))).to_csv())))
    assert {row["user"]: row["cost_usd"] for row in rows} == {
        "'=cmd|' /C calc'!A0": "0.000000000000",
        "alice": "0.300000000000",
        "bob": "0.200000000000",
        "": "0.700000000000",
    }


async def test_a_bill_has_a_bounded_number_of_rows(usage):
    with pytest.raises(InvalidRequest, match="more than 4"):
        await usage.of(UsageQuery(("user", "model", "mode", "hour")))


@pytest.mark.parametrize("wrong", [{"by": ("team; DROP",)}, {"by": ("team", "team")}, {"since": 2.0, "until": 1.0}])
def test_what_cannot_be_asked_is_refused(wrong):
    with pytest.raises(InvalidRequest):
        UsageQuery(**wrong)
