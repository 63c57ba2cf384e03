"""The price on spending: its steps by hand and its direction."""

from __future__ import annotations

import pytest

from bandit.errors import InvalidInput
from bandit.pacing import Pacer


def test_the_multiplier_steps_by_the_relative_gap():
    """η = 0.05: after c/B = 3, λ = 0.1; after c/B = 0, λ = 0.05; never below 0."""
    pacer = Pacer(0.01)
    seen = []
    for cost in (0.03, 0.0, 0.01, 0.0, 0.0):
        pacer.spend(cost)
        seen.append(pacer.multiplier)
    assert seen == pytest.approx([0.1, 0.05, 0.05, 0.0, 0.0])


def test_one_very_dear_call_counts_as_four_budgets_over():
    pacer = Pacer(0.01)
    pacer.spend(100.0)
    assert pacer.multiplier == pytest.approx(0.2)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_must_be_positive(budget):
    with pytest.raises(InvalidInput, match="usd_per_request"):
        Pacer(budget)
