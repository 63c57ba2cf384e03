"""What is set beside the file: it finds its place by name, is checked as the file is, and wins over what is there."""

from __future__ import annotations

import pytest

from serving.settings import ConfigError, load_settings

FILE = """
server: {port: 9000}
models:
  - name: small
    endpoint: https://one.test/v1
    api_key: ${NOT_SET}
    price: {input_per_million: 1, output_per_million: 2}
  - {name: gpt-4.1, endpoint: "${BASE_URL}", headers: {x-key: "Bearer ${ALSO_NOT_SET}"}}
pools:
  - name: auto
    models: [small, gpt-4.1]
    constraints: {p95_latency_s: 4.0}
  - {name: auto.eu, models: [small]}
"""
ENV = {"NOT_SET": "k" * 8, "BASE_URL": "https://two.test/v1", "ALSO_NOT_SET": "x"}


def load(tmp_path, *overrides, env=ENV, **more):
    path = tmp_path / "pointsman.yaml"
    path.write_text(FILE)
    return load_settings(path, env, overrides=overrides, **more)


def problems(tmp_path, *overrides, **more):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overrides, **more)
    return [str(problem) for problem in caught.value.problems]


def test_a_setting_of_a_pool_or_model_is_found_by_name(tmp_path):
    settings = load(
        tmp_path,
        "pool.auto.constraints.p95_latency_s=1.5",
        "pool.auto.budget.usd_per_request=2e-3",
        "model.small.price.output_per_million=20",
        "server.port=9001",
        "log.flush_interval_s=5",
    )
    assert settings.pools[0].constraints.p95_latency_s == 1.5
    assert settings.pools[0].budget.usd_per_request == 0.002
    assert settings.model("small").price.output_per_million == 20
    assert settings.model("small").price.input_per_million == 1
    assert (settings.server.port, settings.log.flush_interval_s) == (9001, 5)
    assert settings.pools[1].constraints.p95_latency_s is None


def test_names_may_have_dots(tmp_path):
    """The longest name that fits is meant; a weight's name may have dots, too."""
    settings = load(
        tmp_path,
        "model.gpt-4.1.timeout_s=7",
        "pool.auto.eu.constraints.p95_latency_s=3",
        "pool.auto.policy.kind=weighted",
        "pool.auto.policy.weights.gpt-4.1=3",
        "pool.auto.policy.weights.small=1",
    )
    assert settings.model("gpt-4.1").timeout_s == 7
    assert [pool.constraints.p95_latency_s for pool in settings.pools] == [4.0, 3.0]
    assert settings.pools[0].policy.weights == {"gpt-4.1": 3, "small": 1}


def test_the_last_of_two_counts(tmp_path):
    path = "pool.auto.constraints.p95_latency_s"
    assert load(tmp_path, f"{path}=1", f"{path}=2").pools[0].constraints.p95_latency_s == 2


@pytest.mark.parametrize("value", ["null", ""])
def test_nothing_takes_a_limit_away(tmp_path, value):
    settings = load(tmp_path, f"pool.auto.constraints.p95_latency_s={value}")
    assert settings.pools[0].constraints.p95_latency_s is None


def test_a_value_may_be_a_whole_section(tmp_path):
    settings = load(tmp_path, "pool.auto.policy={kind: epsilon_greedy, epsilon: 0.5}", "pool.auto.models=[small]")
    assert (settings.pools[0].policy.kind, settings.pools[0].policy.epsilon) == ("epsilon_greedy", 0.5)
    assert settings.pools[0].models == ("small",)


def test_a_value_may_come_from_the_environment(tmp_path):
    settings = load(tmp_path, "pool.auto.constraints.p95_latency_s=${LIMIT}", env=ENV | {"LIMIT": "2.5"})
    assert settings.pools[0].constraints.p95_latency_s == 2.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pool.auto.constraints.p95_latency=1",
            "pools[0].constraints.p95_latency: unknown key; did you mean p95_latency_s?",
        ),
        ("pool.auto.p95_latency_s=1", "pools[0].p95_latency_s: unknown key; it belongs in pools[0].constraints"),
        ("pol.auto.models=1", "pol: unknown key; did you mean pools?"),
        (
            "pool.auto.policy.kind=tompson",
            "pools[0].policy.kind: must be one of thompson, thompson_context_free",
        ),
        (
            "pool.auto.constraints.min_accuracy=80",
            "pools[0].constraints.min_accuracy: must be at most 0.999999, not 80",
        ),
        ("pool.auto.models=[small, big]", "pools[0].models[1]: no model is called 'big'"),
    ],
)
def test_a_value_is_checked_as_if_it_stood_in_the_file(tmp_path, override, message):
    """And no line is named, since it stands on none."""
    (found,) = problems(tmp_path, override)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pool.outo.models=1", "pool.outo.models: names none of the pools; did you mean pool.auto?"),
        ("model.nobody.timeout_s=1", "model.nobody.timeout_s: names none of the models; there are small, gpt-4.1"),
        ("pool.auto=1", "pool.auto: names no setting; write pool.auto.SETTING=VALUE"),
        ("pool.auto.constraints", "is no PATH=VALUE; write pool.auto.constraints.p95_latency_s=1.5"),
        ("=3", "is no PATH=VALUE"),
        ("pool..models=3", "is no PATH=VALUE"),
        ("pool.auto.name.x=1", "leads through pools[0].name, which is no section"),
        ("pool.auto.models=[a, b", "pool.auto.models: is not valid YAML"),
        ("pool.auto.models=${NOBODY}", "needs NOBODY from the environment, which is not set"),
    ],
)
def test_what_is_no_override_is_said_plainly(tmp_path, override, message):
    (found,) = problems(tmp_path, override)
    assert message in found


def test_an_override_mends_what_the_file_lacks(tmp_path):
    env = {name: value for name, value in ENV.items() if name != "NOT_SET"}
    assert len(problems(tmp_path, env=env)) == 1
    assert load(tmp_path, "model.small.api_key=abcdefgh", env=env).model("small").api_key is not None


def test_offline_needs_no_keys_headers_or_endpoints(tmp_path):
    """What only a call would need gets a placeholder; a setting that counts still needs its variable."""
    assert len(problems(tmp_path, env={})) == 3
    settings = load(tmp_path, env={}, offline=True)
    assert settings.model("gpt-4.1").endpoint == "http://not-set.invalid/v1"
    (found,) = problems(tmp_path, "pool.auto.constraints.p95_latency_s=${LIMIT}", env={}, offline=True)
    assert "needs LIMIT from the environment" in found
