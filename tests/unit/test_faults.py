"""Faults on purpose: which attempts they are drawn for, what each does, and when they end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from serving.errors import Conflict, InvalidFields, UnknownModel, UpstreamError
from serving.traffic.fault_settings import FaultRule, FaultSettings
from serving.traffic.faults import Faults, UnknownFault

CHUNKS = (b"data: one\n", b"\ndata: two\n\nda", b"ta: three\n\n")


class Log:
    """What logs change rows; all of them are durable at once."""

    def __init__(self) -> None:
        self.rows = []

    def change(self, rows):
        self.rows += rows
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


class Endpoint:
    """An endpoint that answers, and counts."""

    model, name = "a", "1"

    def __init__(self) -> None:
        self.under_way = self.sent = 0

    def begin(self):
        self.under_way += 1

    def end(self):
        self.under_way -= 1

    async def send(self, _call, body):
        self.sent += 1
        return {"answer": body}

    @asynccontextmanager
    async def stream(self, _call, _body):
        async def chunks():
            for chunk in CHUNKS:
                yield chunk

        self.sent += 1
        yield chunks()


@pytest.fixture
def made():
    """Makes faults of settings, with a clock to be set and what was counted."""

    def made(*rules, **more):
        settings = FaultSettings.model_validate({"enabled": True, "seed": 1, "inject": rules} | more)
        counted, clock, log = Counter(), SimpleNamespace(now=0.0), Log()
        count = lambda model, kind: counted.update([(model, kind)])  # noqa: E731
        faults = Faults(settings, log, count=count, clock=lambda: clock.now, now=1_000.0)
        return SimpleNamespace(faults=faults, counted=counted, clock=clock, log=log)

    return made


def test_the_share_is_kept_and_the_draws_repeat(made):
    """3,000 draws at a share of 0.2: 600 ± 4 standard deviations of 21.9; the same seed draws the same."""
    rule = {"kind": "error", "share": 0.2}
    one, two = (made(rule).faults for _ in range(2))
    hits = [one.draw("a", "1") is not None for _ in range(3_000)]
    assert hits == [two.draw("a", "1") is not None for _ in range(3_000)]
    assert abs(sum(hits) - 600) < 88


def test_a_rule_is_about_its_model_and_endpoint_alone(made):
    faults = made({"kind": "stall", "model": "a", "endpoint": "eu"}).faults
    assert faults.draw("a", "eu") is not None
    assert faults.draw("a", "1") is None
    assert faults.draw("b", "eu") is None


def test_a_rule_ends_by_itself(made):
    """Also the second of two; the one without an end stays."""
    m = made({"kind": "error", "for_s": 60}, {"kind": "stall", "model": "b"})
    m.clock.now = 59.9
    assert m.faults.draw("a", "1") is not None
    assert [entry["ends_at"] for entry in m.faults.listed(1_059.9)] == [pytest.approx(1_060.0), None]
    second = m.faults.listed(1_059.9)[1]["id"]
    m.clock.now = 60.0
    assert m.faults.draw("a", "1") is None
    assert [entry["id"] for entry in m.faults.listed(1_060.0)] == [second]


def test_where_it_is_not_enabled_nothing_stands(made):
    m = made({"kind": "error"}, enabled=False)
    assert m.faults.draw("a", "1") is None
    with pytest.raises(Conflict, match=r"faults\.enabled"):
        m.faults.listed(0.0)


async def test_an_error_takes_the_place_of_the_call(made):
    m, endpoint = made({"kind": "error", "status": 429}), Endpoint()
    fault = m.faults.draw("a", "1")
    with pytest.raises(UpstreamError, match="answered 429") as caught:
        await fault.send(endpoint, None, b"x")
    assert (caught.value.http_status, caught.value.code, caught.value.model) == (429, "upstream_error", "a")
    assert (endpoint.sent, endpoint.under_way, m.counted) == (0, 0, {("a", "error"): 1})
    assert fault.told("error", "upstream_error") == "injected_error"
    assert m.faults.listed(0.0)[0]["injected"] == 1


async def test_a_stall_occupies_its_endpoint_until_it_is_given_up(made):
    endpoint, fault = Endpoint(), made({"kind": "stall"}).faults.draw("a", "1")
    task = asyncio.create_task(fault.send(endpoint, None, b"x"))
    await asyncio.sleep(0)
    assert endpoint.under_way == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (endpoint.under_way, endpoint.sent) == (0, 0)
    assert fault.told("timeout", "upstream_timeout") == "injected_stall"
    assert fault.told("cancelled", "caller_went_away") == "caller_went_away"


async def test_a_latency_is_followed_by_the_call(made):
    endpoint, fault = Endpoint(), made({"kind": "latency", "latency_s": 0.001}).faults.draw("a", "1")
    assert await fault.send(endpoint, None, b"x") == {"answer": b"x"}
    assert fault.told("ok", None) == fault.told("timeout", "upstream_timeout") == "injected_latency"
    assert fault.told("error", "upstream_error") == "upstream_error"  # the endpoint's own


async def test_a_disconnect_fails_a_call_and_breaks_a_stream_off_after_its_first_event(made):
    m = made({"kind": "disconnect"})
    with pytest.raises(UpstreamError) as caught:
        await m.faults.draw("a", "1").send(Endpoint(), None, b"x")
    assert caught.value.code == "upstream_unreachable"
    endpoint, came, fault = Endpoint(), [], m.faults.draw("a", "1")

    async def read():
        async with fault.stream(endpoint, None, b"x") as chunks:
            async for chunk in chunks:
                came.append(chunk)  # noqa: PERF401 - it ends by an error

    with pytest.raises(UpstreamError) as caught:
        await read()
    assert (b"".join(came), endpoint.sent) == (b"data: one\n\ndata: two\n\n", 1)
    assert caught.value.code == "upstream_disconnected"
    assert m.counted == {("a", "disconnect"): 2}


async def test_changes_are_logged_and_names_must_be_known(made):
    m = made(limit=2)
    m.faults.upstreams = {"a": SimpleNamespace(endpoints=[Endpoint()])}
    first = await m.faults.add(FaultRule(kind="error", model="a", endpoint="1"), "ada", 5.0)
    second = await m.faults.add(FaultRule(kind="stall"), "ada", 6.0)
    with pytest.raises(UnknownModel):
        await m.faults.add(FaultRule(kind="stall", model="b"), "ada", 7.0)
    with pytest.raises(InvalidFields, match="has no endpoint"):
        await m.faults.add(FaultRule(kind="stall", model="a", endpoint="2"), "ada", 7.0)
    with pytest.raises(Conflict, match=r"faults\.limit"):
        await m.faults.add(FaultRule(kind="stall"), "ada", 7.0)
    with pytest.raises(UnknownFault):
        await m.faults.remove("f9", "ada", 8.0)
    assert [entry["id"] for entry in await m.faults.remove(first["id"], "eve", 8.0)] == [first["id"]]
    assert [entry["id"] for entry in await m.faults.remove(None, "eve", 9.0)] == [second["id"]]
    told = [(row["subject"], row["what"], row["model"], row["by"], row["ts"]) for row in m.log.rows]
    assert told == [
        ("faults", "injected", "a", "ada", 5.0),
        ("faults", "injected", None, "ada", 6.0),
        ("faults", "removed", "a", "eve", 8.0),
        ("faults", "removed", None, "eve", 9.0),
    ]
    assert (m.log.rows[0]["before"], m.log.rows[0]["after"]) == (None, first)


async def test_what_one_process_is_told_another_does_too(made):
    """Rows go as JSON. The one that hears of them logs nothing itself, and its time is its own clock's."""
    rule = {"kind": "error", "model": "a"}
    one, other = made(rule, limit=3), made(rule, limit=3)
    other.clock.now = 500.0
    (of_both,) = one.faults.listed(0.0)
    assert other.faults.listed(0.0) == [of_both]  # of one configuration: the same id
    added = await one.faults.add(FaultRule(kind="stall", for_s=60), "ada", 7.0)
    await one.faults.remove(of_both["id"], "ada", 8.0)
    for row in json.loads(json.dumps(one.log.rows)):
        other.faults.heard(row)
    assert other.faults.listed(7.0) == [added]
    other.clock.now = 560.0
    assert other.faults.listed(67.0) == []
    assert other.log.rows == []


async def test_what_cannot_stand_here_is_not_taken_from_another_process(made):
    one = made(limit=3)
    for _ in range(2):
        await one.faults.add(FaultRule(kind="stall"), "ada", 7.0)
    bounded, disabled = made(limit=1), made(enabled=False)
    for row in (*one.log.rows, one.log.rows[0] | {"after": {"id": "f1", "kind": "of another version"}}):
        bounded.faults.heard(row)
        disabled.faults.heard(row)
    assert [entry["id"] for entry in bounded.faults.listed(7.0)] == [one.faults.listed(7.0)[0]["id"]]
    assert disabled.faults.draw("a", "1") is None


@pytest.mark.parametrize(
    ("rule", "at"),
    [
        ({"kind": "latency"}, "latency_s"),
        ({"kind": "error", "latency_s": 1}, "latency_s"),
        ({"kind": "stall", "status": 503}, "status"),
        ({"kind": "error", "status": 400}, "status"),
        ({"kind": "error", "share": 0}, "share"),
        ({"kind": "typo"}, "kind"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule, at):
    with pytest.raises(ValidationError) as caught:
        FaultRule.model_validate(rule)
    (problem,) = caught.value.errors()
    assert at in (*problem["loc"], *problem.get("ctx", {}).get("at", ()))
