"""Tiers: what a name means for a caller, what it may use, and that a slip opens nothing."""

from __future__ import annotations

import pytest

from serving.access.principal import OPERATOR, Principal
from serving.access.settings import TierSettings
from serving.access.tiers import Tiers
from serving.errors import NotAllowed, UnknownModel

KNOWN = ("auto", "cheap", "best", "small", "large")
TIERS = [
    {"name": "free", "pools": {"auto": "cheap"}, "allow": ["small"]},
    {"name": "paid", "pools": {"auto": "best", "fast": "small"}, "priority": 5},
    {"name": "enterprise", "allow": ["auto", "large"], "priority": 9},
]
KEYS = {"k1": ("auto", "large"), "k2": (), "k3": None}
FREE, PAID, ENTERPRISE = (Principal("u", tier=tier) for tier in ("free", "paid", "enterprise"))


def tiers(*more, default=None):
    entries = [TierSettings.model_validate(entry | {"default": entry["name"] == default}) for entry in (*TIERS, *more)]
    return Tiers(entries, KEYS.get)


@pytest.mark.parametrize(
    ("principal", "name", "actual"),
    [
        (FREE, "auto", "cheap"),
        (FREE, "small", "small"),
        (PAID, "auto", "best"),
        (PAID, "fast", "small"),
        (PAID, "cheap", "cheap"),
        (ENTERPRISE, "auto", "auto"),
        (OPERATOR, "auto", "auto"),
        (Principal("u"), "large", "large"),
    ],
)
def test_a_name_means_what_the_tier_says(principal, name, actual):
    assert tiers().entitled(principal, name, KNOWN) == actual


@pytest.mark.parametrize(
    ("principal", "name", "listed"),
    [
        (FREE, "best", "it may use auto, small"),
        (FREE, "cheap", "it may use auto, small"),
        (ENTERPRISE, "small", "it may use auto, large"),
        (Principal("u", tier="free", key_id="k1"), "small", "it may use auto"),
        (Principal("u", tier="paid", key_id="k2"), "auto", "it may use nothing that is there"),
        (Principal("u", tier="typo"), "auto", "it may use nothing that is there"),
    ],
)
def test_what_is_not_the_callers_is_refused_with_what_is(principal, name, listed):
    with pytest.raises(NotAllowed, match=listed):
        tiers().entitled(principal, name, KNOWN)


def test_an_unknown_name_is_told_with_the_callers_own_names_only():
    with pytest.raises(UnknownModel) as refused:
        tiers().entitled(FREE, "nothing-like-it", KNOWN)
    assert "auto, small" in str(refused.value)
    assert not any(name in str(refused.value) for name in ("best", "large"))


@pytest.mark.parametrize(
    ("principal", "names"),
    [
        (FREE, ["auto", "small"]),
        (PAID, ["auto", "fast", "cheap", "best", "small", "large"]),
        (ENTERPRISE, ["auto", "large"]),
        (Principal("u", tier="paid", key_id="k1"), ["auto", "large"]),
        (OPERATOR, list(KNOWN)),
        (Principal("u", tier="typo"), []),
    ],
)
def test_a_caller_sees_what_it_may_use(principal, names):
    seen = tiers().visible(principal, KNOWN)
    assert seen == names
    for name in seen:
        tiers().entitled(principal, name, KNOWN)


def test_a_mapping_to_what_has_gone_is_not_seen():
    assert "fast" not in tiers().visible(PAID, ("auto", "best"))


@pytest.mark.parametrize("tier", [None, "typo"])
def test_callers_without_a_known_tier_are_in_the_default_one(tier):
    """Everything that asks for a tier later finds the default one's name."""
    settled = tiers(default="free").settled(Principal("u", "t", tier, "k3"))
    assert settled == Principal("u", "t", "free", "k3")
    assert tiers(default="free").settled(OPERATOR) == OPERATOR
    assert tiers(default="free").entitled(Principal("u", tier=tier), "auto", KNOWN) == "cheap"
    assert tiers().settled(Principal("u", tier="typo")).tier == "typo"


def test_a_key_narrows_also_without_tiers():
    alone = Tiers((), KEYS.get)
    assert alone.visible(Principal("u", tier="any", key_id="k1"), KNOWN) == ["auto", "large"]
    assert alone.visible(Principal("u", tier="any"), KNOWN) == list(KNOWN)


def test_priorities():
    assert [tiers().priority(p) for p in (FREE, PAID, ENTERPRISE, Principal("u"), OPERATOR)] == [0, 5, 9, 0, 0]
