"""Windows of UTC's calendar, against dates by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serving.access.scopes import window_of


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "moment", "start", "end"),
    [
        ("minute", "2026-11-25T11:59:59.9", "2026-11-25T11:59:00", "2026-11-25T12:00:00"),
        ("day", "2026-11-25T00:00:00", "2026-11-25", "2026-11-26"),
        ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        ("month", "2026-01-01T00:00:00", "2026-01-01", "2026-02-01"),
    ],
)
def test_a_window_is_the_calendars(period, moment, start, end):
    assert window_of(period, at(moment)) == (at(start), at(end))


def test_a_total_never_ends():
    assert window_of("total", 1e9) == (0.0, None)
