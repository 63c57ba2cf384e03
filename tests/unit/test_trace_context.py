"""The W3C's trace context: what is sound is read, and everything else counts as absent."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from serving.telemetry.trace_context import read_trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def read(*parents, state=()):
    pairs = [("Traceparent", parent) for parent in parents] + [("tracestate", part) for part in state]
    return read_trace_context(CIMultiDictProxy(CIMultiDict(pairs)))


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-０1",
    ],
)
def test_what_is_not_well_formed_is_absent(parent):
    found = read(parent)
    assert found is None or parent.endswith("\n"), "aiohttp takes no line breaks in headers; blanks around count not"


def test_none_and_two_are_none():
    assert read() is None
    assert read(f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01") is None


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_the_callers_own_context_goes_on_as_it_came(flags, sampled):
    found = read(f"00-{TRACE}-{SPAN}-{flags}", state=("a=1", "b=2"))
    assert (found.trace_id, found.span_id, found.sampled) == (TRACE, SPAN, sampled)
    assert found.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-{flags}", "tracestate": "a=1,b=2"}
    assert found.headers("00000000000000ff")["traceparent"] == f"00-{TRACE}-00000000000000ff-{flags}"


def test_a_later_version_is_read_as_far_as_this_one_goes():
    found = read(f"cc-{TRACE}-{SPAN}-09-what-comes-later")
    assert found.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.mark.parametrize("state", ["", "x" * 513, ",".join(f"k{i}=1" for i in range(33)), "a=é"])
def test_an_unsound_state_is_left_out_and_spoils_nothing(state):
    assert read(f"00-{TRACE}-{SPAN}-01", state=(state,)).state is None
