"""The W3C's trace context (Recommendation of 2021-11-23): a caller's `traceparent` and `tracestate`, read and checked.

Pure. What is not well-formed counts as absent, as the recommendation asks; it must never be passed on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from multidict import CIMultiDictProxy

__all__ = ["TraceContext", "read_trace_context"]

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_STATE = re.compile(r"[\x20-\x7e\t]{1,512}")  # as much as everyone has to pass on
_MAX_MEMBERS = 32


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The caller's trace, the span of it that called us, and whether it is recorded."""

    trace_id: str
    span_id: str
    flags: str
    state: str | None = None

    @property
    def sampled(self) -> bool:
        """Whether the caller records its part."""
        return bool(int(self.flags, 16) & 1)

    def headers(self, span_id: str | None = None) -> dict[str, str]:
        """What goes upstream: the caller's own context, or the span of it that calls there."""
        passed = {"traceparent": f"00-{self.trace_id}-{span_id or self.span_id}-{self.flags}"}
        return passed if self.state is None else {**passed, "tracestate": self.state}


def read_trace_context(headers: CIMultiDictProxy[str]) -> TraceContext | None:
    """The caller's context; None where there is none, or no sound one."""
    if "traceparent" not in headers:
        return None
    given = headers.getall("traceparent")
    found = _PARENT.fullmatch(given[0].strip()) if len(given) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    if version != "00":  # of later versions this one's flags are known, no others
        flags = f"{int(flags, 16) & 1:02x}"
    state = ",".join(headers.getall("tracestate", ())).strip()
    sound = _STATE.fullmatch(state) is not None and state.count(",") < _MAX_MEMBERS
    return TraceContext(trace_id, span_id, flags, state if sound else None)
