"""A small configuration, changed at one place, and what is said about it then."""

from __future__ import annotations

import re
from typing import Any

import pytest

from serving.settings import ConfigError, Settings


def good() -> dict[str, Any]:
    """The smallest configuration, as plain values."""
    return {
        "models": [
            {"name": "one", "endpoint": "https://one.test/v1"},
            {"name": "two", "endpoint": "https://two.test/v1"},
        ],
        "pools": [{"name": "auto", "models": ["one", "two"]}],
    }


def changed(at: str, value: Any) -> dict[str, Any]:
    """`good()` with `value` at a path such as `pools[0].policy.kind`."""
    data = good()
    place: Any = data
    parts = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", at)]
    for part in parts[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    if isinstance(place, list) and parts[-1] == len(place):
        place.append(value)
    else:
        place[parts[-1]] = value
    return data


def problems(data: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        Settings.parse(data)
    found = {problem.path: (problem.message, problem.hint) for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem a place"
    return found
