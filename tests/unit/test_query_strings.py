"""How times are written in query strings."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest
from serving.query_strings import moment_of

DAY = 1_795_564_800.0


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1795564800", DAY),
        ("1795564800.5", DAY + 0.5),
        ("0", 0.0),
        ("2026-11-25", DAY),
        ("20261125", DAY),  # and not a day of August 1970
        ("2026-11-25T06:00:00Z", DAY + 21_600),
        ("2026-11-25T06:00:00+01:00", DAY + 18_000),
    ],
)
def test_a_time_is_unix_seconds_or_iso_8601(text, moment):
    assert moment_of({"since": text}, "since") == moment


def test_a_time_that_is_not_given_is_none():
    assert moment_of({}, "since") is None


@pytest.mark.parametrize("text", ["", "yesterday", "20261399", "inf", "nan", "1e400"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InvalidRequest) as refused:
        moment_of({"since": text}, "since")
    assert refused.value.param == "since"
