"""Models beyond the configuration: the same pools again from events or from a state, whatever changed meanwhile."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import Arm, Pool, Price
from bandit.baselines import Fixed
from serving.config_file import ConfigError
from serving.records import model_event
from serving.roster import ADDED, REMOVED, Roster, parse_definition
from serving.settings import ModelSettings

ENV = {"KEY": "sk-secret"}
URL = "http://127.0.0.1:9/v1"
CONFIGURED = [ModelSettings.model_validate({"name": name, "endpoint": URL}) for name in "abc"]


def definition(name, **more):
    price = {"input_per_million": 1.0, "output_per_million": 2.0}
    return {"name": name, "endpoint": URL, "price": price, "api_key": "${KEY}"} | more


def pools(members=("a", "b"), **more):
    return {"auto": Pool([Arm(name) for name in members], name="auto", **more)}


def roster(members=("a", "b"), env=ENV, models=CONFIGURED):
    return Roster(models, {"auto": members}, env)


def apply(target, chosen, *events):
    for event in events:
        target.apply(event.kind, orjson.loads(event.payload), chosen)


def came(name, **more):
    return [model_event(ADDED, None, name, definition=definition(name)), model_event(ADDED, "auto", name, **more)]


def restarted(state, members=("a", "b"), **more):
    """The names in the pool after a start from a state."""
    chosen, again = pools(members), roster(members, **more)
    again.load(orjson.loads(orjson.dumps(state)), chosen)
    return chosen["auto"].names, again


def test_a_model_comes_and_goes():
    target, chosen = roster(), pools()
    apply(target, chosen, *came("new", accuracy=0.75, samples=8))
    pool = chosen["auto"]
    assert (pool.names, pool.arms[2].price) == (("a", "b", "new"), Price(1.0, 2.0))
    assert pool.heads.weight[0].tolist() == [0.0, 0.0, 8.0]
    assert target.model("new").api_key.get_secret_value() == "sk-secret"
    assert (target.names, target.configured("new")) == (["a", "b", "c", "new"], False)
    apply(target, chosen, model_event(REMOVED, "auto", "new"), model_event(REMOVED, None, "new"))
    assert (pool.names, target.names, target.model("new")) == (("a", "b"), ["a", "b", "c"], None)


def test_no_key_is_in_a_state():
    target, chosen = roster(), pools()
    apply(target, chosen, *came("new"))
    assert b"sk-secret" not in orjson.dumps(target.state())
    assert b"${KEY}" in orjson.dumps(target.state())


@settings(max_examples=60)
@given(st.lists(st.sampled_from("abcde"), max_size=12))
def test_a_state_makes_the_same_pool(toggled):
    """Each name comes or goes in turn, the last one stays. A state is what sets the pool apart: it does not grow."""
    target, chosen = roster(), pools()
    for name in toggled:
        pool = chosen["auto"]
        if name not in pool.names:
            defined = [] if target.model(name) else [model_event(ADDED, None, name, definition=definition(name))]
            apply(target, chosen, *defined, model_event(ADDED, "auto", name))
        elif len(pool.names) > 1:
            apply(target, chosen, model_event(REMOVED, "auto", name))
    state = target.state()
    names, again = restarted(state)
    assert sorted(names) == sorted(chosen["auto"].names)
    assert again.state() == state
    assert set(state["changes"].get("auto", {})) == set(names) ^ {"a", "b"}


def test_without_its_variable_a_model_is_out_and_back_with_it(caplog):
    target, chosen = roster(), pools()
    apply(target, chosen, *came("new"))
    names, without = restarted(target.state(), env={})
    assert names == ("a", "b")
    assert without.names == ["a", "b", "c", "new"]
    assert without.model("new") is None
    assert without.problems["new"].startswith("model.api_key: needs KEY from the service's environment")
    assert caplog.text.count("stays out") == 1
    assert restarted(without.state())[0] == ("a", "b", "new")


def test_one_that_is_out_can_be_forgotten():
    target, chosen = roster(env={}), pools()
    apply(target, chosen, *came("new"), model_event(REMOVED, None, "new"))
    assert target.state() == {"definitions": {}, "changes": {}}
    assert target.problems == {}


def test_the_configuration_wins():
    """Its definition, its pool's members, and its pools' names."""
    target, chosen = roster(), pools()
    apply(target, chosen, *came("new"))
    models = [*CONFIGURED, ModelSettings.model_validate({"name": "new", "endpoint": "http://127.0.0.1:8/v1"})]
    names, again = restarted(target.state(), ("new", "a", "b"), models=models)
    assert names == ("new", "a", "b")
    assert (again.model("new").endpoint, again.configured("new")) == ("http://127.0.0.1:8/v1", True)
    assert again.state()["definitions"] == {}
    chosen = pools()
    another = Roster(CONFIGURED, {"auto": ("a", "b"), "new": ("a",)}, ENV)
    another.load(target.state(), chosen)
    assert (chosen["auto"].names, another.problems) == (("a", "b"), {"new": "a pool has its name now"})


def test_what_the_configuration_does_not_allow_any_more_is_logged_and_left(caplog):
    """The last model of a pool, the one a policy takes, a model nobody defines, a pool that is gone."""
    state = {"definitions": {}, "changes": {"auto": {"a": REMOVED, "gone": ADDED}, "elsewhere": {"a": ADDED}}}
    assert restarted(state, ("a",))[0] == ("a",)
    assert "is the pool's last model" in caplog.text
    assert "nothing defines it any more" in caplog.text
    chosen = pools(policy=Fixed(0))
    roster().load({"definitions": {}, "changes": {"auto": {"a": REMOVED}}}, chosen)
    assert chosen["auto"].names == ("a", "b")
    assert caplog.text.count("cannot be made again") == 2


@pytest.mark.parametrize(
    "value", ["sk-literal", "${KEY", "x ${KEY}", "${KEY} ", "${KEY}${KEY}", "$KEY", "${KEY:-x}", ""]
)
def test_a_key_is_a_reference_and_nothing_else(value):
    with pytest.raises(ConfigError) as caught:
        parse_definition(definition("new", api_key=value), ENV | {"KEY": "k"})
    (problem,) = caught.value.problems
    assert (problem.path, problem.message.partition(" such as")[0]) == ("model.api_key", "must be a reference")


def test_a_headers_value_may_have_a_word_before_the_reference():
    model = parse_definition(
        definition("new", api_key=None, headers={"Authorization": "Token ${KEY}", "x-a": "${KEY}"}), ENV
    )
    assert {name: value.get_secret_value() for name, value in model.headers.items()} == {
        "Authorization": "Token sk-secret",
        "x-a": "sk-secret",
    }


def test_a_variables_value_is_never_shown():
    """Not where it is wrong either: a line break at its end is a common mistake."""
    with pytest.raises(ConfigError) as caught:
        parse_definition(definition("new"), {"KEY": "sk-secret\n"})
    assert "sk-secret" not in str(caught.value)
    assert "${KEY}" in str(caught.value) or "line break" in str(caught.value)


def test_what_is_given_is_not_changed():
    given = definition("new", headers={"x-a": "${KEY}"})
    before = orjson.dumps(given)
    parse_definition(given, ENV)
    assert orjson.dumps(given) == before
