"""What a run may spend, in small sums done by hand."""

from __future__ import annotations

from evaluation.benchmark_budget import Budget


def test_without_a_limit_everything_is_admitted():
    budget = Budget(None)
    for _ in range(100):
        assert budget.admits("a")
        budget.start("a")
    budget.end("a", 5.0)
    assert budget.spent_usd == 5.0


def test_the_first_call_of_all_runs_alone():
    budget = Budget(10.0)
    assert budget.admits("a")
    budget.start("a")
    assert not budget.admits("a")
    assert not budget.admits("b")
    budget.end("a", 1.0)
    assert budget.admits("b")


def test_calls_under_way_count_as_the_dearest_of_their_model():
    """4 spent, one under way at its worst of 3: 3 more fit into 10, and no fourth dollar."""
    budget = Budget(10.0)
    budget.add("a", 3.0)
    budget.add("a", 1.0)
    budget.start("a")
    assert budget.admits("a")
    budget.start("a")
    assert not budget.admits("a")  # 4 + 3 + 3 + 3
    budget.end("a", 0.0)
    assert budget.admits("a")  # 4 + 0 + 3 + 3


def test_a_model_without_a_cost_so_far_counts_as_the_dearest_of_all_and_goes_one_at_a_time():
    budget = Budget(10.0)
    budget.add("a", 4.0)
    assert budget.admits("b")
    budget.start("b")
    assert not budget.admits("b")
    budget.end("b", None)
    budget.add("a", 3.0)  # 7 spent: 4 more do not fit
    assert not budget.admits("b")
    budget.add("b", 1.0)
    assert budget.admits("b")  # 8 + 1


def test_what_fits_exactly_fits():
    budget = Budget(0.3)
    budget.add("a", 0.1)
    budget.add("a", 0.1)
    assert budget.admits("a")
