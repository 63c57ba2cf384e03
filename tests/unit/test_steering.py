"""What stands above a pool's policy: which of it applies, with what probabilities, and what is logged."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from steered_pools import Steered

from bandit.posterior import QUALITY
from serving.errors import NotAllowed, NothingAvailable, UnknownModel


@pytest.fixture
async def steered(held_store):
    return lambda **more: Steered(held_store, **more)


def _p(decision):
    return dict(zip(decision.arms, decision.probabilities.tolist(), strict=True))


async def test_weights_are_the_probabilities_and_the_mode_says_so(steered):
    service = steered(weights={"a": 70, "b": 30})
    decision, labels = service.decide()
    assert _p(decision) == pytest.approx({"a": 0.7, "b": 0.3, "c": 0.0})
    assert (decision.mode, decision.propensity) == ("weighted", pytest.approx(_p(decision)[decision.chosen]))
    assert (labels.session, labels.experiment) == (None, None)


async def test_a_live_change_acts_on_the_next_call_and_null_gives_the_policy_back(steered):
    service = steered()
    assert service.decide()[0].mode == "bandit"
    service.change("weights", {"c": 1})
    assert _p(service.decide()[0]) == {"a": 0.0, "b": 0.0, "c": 1.0}
    service.change("weights", None)
    assert service.decide()[0].mode == "bandit"


async def test_a_disabled_model_and_one_that_is_down_get_nothing(steered):
    service = steered(weights={"a": 70, "b": 30})
    service.change("disabled", ["a"])
    assert _p(service.decide()[0]) == {"a": 0.0, "b": 1.0, "c": 0.0}
    service.endpoints.down.add("b")
    assert _p(service.decide()[0])["c"] == 1.0  # it has no weight, but it is all there is
    service.endpoints.down.add("c")
    with pytest.raises(NothingAvailable):
        service.decide()


async def test_a_model_whose_protocol_cannot_say_a_call_has_no_part_in_it(steered):
    """Where none can, one is chosen all the same: it says what is wrong. Where the others are down, that is what is."""
    service = steered(weights={"a": 70, "b": 30})
    service.endpoints.mute.add("a")
    decision, _ = service.decide()
    assert (_p(decision), list(decision.feasible)) == ({"a": 0.0, "b": 1.0, "c": 0.0}, [False, True, True])
    service.endpoints.down |= {"b", "c"}
    with pytest.raises(NothingAvailable):
        service.decide()
    service.endpoints.down.clear()
    service.endpoints.mute |= {"b", "c"}
    assert _p(service.decide()[0]) == pytest.approx({"a": 0.7, "b": 0.3, "c": 0.0})


async def test_a_model_disabled_everywhere_is_refused_by_its_name_too(steered):
    service = steered()
    service.learner.change([service.traffic.row("a", disabled=True, by=None, ts=1.0)])
    assert _p(service.decide()[0])["a"] == 0.0
    with pytest.raises(NotAllowed, match="disabled"):
        service.decide(model="a")
    assert service.decide(model="b")[0].mode == "pinned"
    with pytest.raises(UnknownModel):
        service.decide(model="d")


async def test_observe_takes_the_first_and_goes_on_learning(steered):
    service = steered(learning="observe")
    decision, _ = service.decide()
    assert (_p(decision), decision.mode) == ({"a": 1.0, "b": 0.0, "c": 0.0}, "weighted")
    step = service.pool.step
    service.outcome()
    service.feedback(1.0)
    assert service.pool.step == step > 0
    assert service.pool.heads.counts(QUALITY, service.pool.step)[0] == pytest.approx(1.0, abs=1e-3)  # discounted a step
    service.change("disabled", ["a"])
    assert service.decide()[0].chosen == "b"


async def test_bypass_decides_without_the_learner_and_teaches_nothing(steered, held_store):
    service = steered(weights={"a": 1, "b": 3})
    service.change("learning", "bypass")

    class Broken:
        version, slopes = "broken", "never"

        def probabilities(self, *_):
            raise FloatingPointError

    service.pool.policy = Broken()
    decision, _ = service.decide()
    assert (_p(decision), decision.mode) == ({"a": 0.25, "b": 0.75, "c": 0.0}, "weighted")
    assert decision.context.version == "none"
    service.outcome()
    service.feedback(1.0)
    assert service.pool.step == 0
    assert service.pool.heads.counts(QUALITY, 0).sum() == 0.0
    service.change("learning", "apply")
    service.change("weights", None)
    with pytest.raises(FloatingPointError):
        service.decide()


async def test_a_session_keeps_its_model_and_the_log_its_hash(steered):
    service = steered(policy={"kind": "uniform"})
    first, labels = service.decide("chat-1")
    assert first.mode == "bandit"
    for _ in range(20):
        decision, again = service.decide("chat-1")
        assert (decision.chosen, decision.mode, decision.propensity) == (first.chosen, "sticky", 1.0)
        assert again.session == labels.session != "chat-1"
    assert len(service.own.sessions) == 1


async def test_sessions_of_the_same_name_in_two_teams_are_two(steered):
    service = steered(policy={"kind": "uniform"})
    hashes = {service.decide("chat-1", team=f"team-{i}")[1].session for i in range(5)}
    assert len(hashes) == 5
    assert {service.decide("chat-1", team="team-0")[1].session} < hashes


async def test_a_session_leaves_a_model_that_is_disabled_and_follows_a_fallback(steered):
    service = steered(policy={"kind": "uniform"})
    first, _ = service.decide("s")
    service.outcome(next(n for n in service.names if n != first.chosen), attempt=1)
    moved, _ = service.decide("s")
    assert moved.mode == "sticky"
    assert moved.chosen == service.record.decision.chosen != first.chosen
    service.change("disabled", [moved.chosen])
    again, _ = service.decide("s")
    assert (again.mode, again.chosen == moved.chosen) == ("bandit", False)


async def test_a_session_moves_for_a_gain_above_the_margin_and_not_in_a_tool_loop(steered):
    """After 200 grades of 1 and 0, the good model's mean utility is higher by far more than 0.05."""
    service = steered(names=("a", "b"))
    service.change("weights", {"a": 1})
    service.decide("s")
    for model, quality in (("a", 0.0), ("b", 1.0)):
        service.change("weights", {model: 1})
        for _ in range(200):
            service.decide()
            service.outcome()
            service.feedback(quality)
    assert service.decide("s")[0].chosen == "a"  # an operator's weights are no gain
    service.change("weights", None)
    assert [service.decide("s", loop=True)[0].chosen for _ in range(3)] == ["a"] * 3
    decision, _ = service.decide("s")
    assert (decision.chosen, decision.mode) == ("b", "sticky")
    assert {service.decide(loop=True)[0].chosen for _ in range(50)} == {"b"}
    assert service.decide(loop=True)[0].mode == "sticky"


async def test_a_tool_loop_without_a_session_takes_the_largest_weight(steered):
    service = steered(weights={"a": 40, "b": 60})
    assert {service.decide(loop=True)[0].chosen for _ in range(30)} == {"b"}


TWO = [{"name": "x", "share": 0.5, "model": "a"}, {"name": "y", "share": 0.25, "weights": {"b": 1, "c": 3}}]


async def test_a_user_sees_one_variant_and_the_log_the_probability_of_what_was_drawn(steered):
    """Given that a unit is in it (3/4 are): a with 2/3, b with 1/3 · 1/4, c with 1/3 · 3/4."""
    service = steered(experiments=[{"name": "e", "variants": TWO}])
    seen = {}
    for user in (f"u{i}" for i in range(60)):
        for _ in range(3):
            decision, labels = service.decide(user=user)
            seen.setdefault(user, set()).add(labels.experiment)
            if labels.experiment is not None:
                assert decision.mode == "weighted"
                assert _p(decision) == pytest.approx({"a": 2 / 3, "b": 1 / 12, "c": 1 / 4})
                assert (decision.chosen == "a") == (labels.experiment == "e/x")
            else:
                assert decision.mode == "bandit"
    assert all(len(variants) == 1 for variants in seen.values())
    assert {v for variants in seen.values() for v in variants} == {"e/x", "e/y", None}
    assert service.decide()[1].experiment is None  # nobody's call is no unit's


async def test_a_session_of_an_experiment_stays_in_it_and_one_from_before_stays_out(steered):
    service = steered(policy={"kind": "uniform"})
    for i in range(20):
        service.decide(f"old-{i}")
    variants = [{"name": "x", "share": 0.5, "model": "a"}, {"name": "y", "share": 0.5, "model": "b"}]
    entry = {"name": "e", "unit": "session", "variants": variants}
    service.change("experiments", [entry])
    for i in range(20):
        assert service.decide(f"old-{i}")[1].experiment is None
        _, first = service.decide(f"new-{i}")
        decision, again = service.decide(f"new-{i}")
        assert again.experiment == first.experiment in ("e/x", "e/y")
        assert decision.mode == "sticky"


async def test_an_experiment_finds_the_better_variant(steered):
    """200 users a variant, qualities 1 and 0: an effect 20 times the resolution; and calls of one user count once."""
    variants = [{"name": "x", "share": 0.5, "model": "a"}, {"name": "y", "share": 0.5, "model": "b"}]
    service = steered(experiments=[{"name": "e", "variants": variants}])
    for i in range(400):
        for _ in range(2):
            decision, _ = service.decide(user=f"u{i}")
            service.outcome()
            service.feedback(float(decision.chosen == "b"))
    status = service.own.experiments["e"].status()
    (pair,) = status["comparisons"]
    assert status["units"] == pair["treated"]["count"] + pair["control"]["count"] == 400
    assert sum(variant["calls"] for variant in status["variants"]) == 800
    assert (pair["verdict"], pair["estimate"]) == ("better", pytest.approx(1.0))


async def test_users_of_one_name_in_two_teams_are_two_units(steered):
    service = steered(experiments=[{"name": "e", "variants": [TWO[0], TWO[1] | {"share": 0.5}]}])
    for i in range(20):
        for team in ("search", "ads", None):
            service.decide(user=f"u{i}", team=team)
            service.outcome()
            service.feedback(1.0)
    assert service.own.experiments["e"].status()["units"] == 60


async def test_a_canary_takes_its_share_of_the_weights(steered):
    service = steered(weights={"a": 60, "b": 40}, canary={"model": "c", "share": 0.1, "steps": [0.1, 1.0]})
    for row in service.traffic.tick(1.0):
        service.learner.change([row])
    decision, _ = service.decide()
    assert (_p(decision), decision.mode) == (pytest.approx({"a": 0.54, "b": 0.36, "c": 0.1}), "canary")
    sessions = {f"s{i}": service.decide(f"s{i}")[0].chosen for i in range(60)}
    assert "c" in sessions.values()
    for name, model in sessions.items():
        kept, _ = service.decide(name)
        assert (kept.chosen, kept.mode) == (model, "sticky")
    service.learner.change([service.own.canary.abort(2.0, "admin")])
    for name in sessions:
        assert service.decide(name)[0].chosen != "c"


async def test_everything_is_as_it_was_after_a_restart(steered, held_store):
    service = steered(policy={"kind": "uniform"})
    service.change("weights", {"b": 1})
    service.change("learning", "observe")
    service.learner.change([service.traffic.row("c", disabled=True, by=None, ts=1.0)])
    kept, _ = service.decide("s")
    held_store.commit()
    replayed = steered(policy={"kind": "uniform"})
    assert replayed.traffic.state() == service.traffic.state()
    assert replayed.own.sessions.state() == service.own.sessions.state() != []
    await asyncio.wait_for(service.learner.snapshot(), 1)
    restored = steered(policy={"kind": "uniform"})
    assert restored.traffic.state() == service.traffic.state()
    assert restored.decide("s")[0].chosen == kept.chosen
    assert restored.own.weights == {"b": 1}


@pytest.mark.parametrize("snapshot", [False, True])
async def test_a_setting_that_the_configuration_changed_since_wins_over_an_older_live_change(
    steered, held_store, snapshot
):
    service = steered(weights={"a": 1})
    service.change("weights", {"b": 1})
    service.change("learning", "bypass")
    held_store.commit()
    if snapshot:
        await service.learner.snapshot()
    assert steered(weights={"a": 1}).own.weights == {"b": 1}
    changed = steered(weights={"c": 1})
    assert (changed.own.weights, changed.own.learning) == ({"c": 1}, "bypass")


async def test_the_draw_follows_the_probabilities(steered):
    """N = 4,000 draws of p = 0.7: the standard deviation is 0.0072, and 5 of those 0.036."""
    service = steered(weights={"a": 70, "b": 30}, learning="bypass")
    drawn = np.mean([service.decide()[0].chosen == "a" for _ in range(4_000)])
    assert drawn == pytest.approx(0.7, abs=0.036)
