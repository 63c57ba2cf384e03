"""A good configuration: its defaults, its conversions, its secrets, and what it is warned about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import bandit.filters
from bandit.baselines import (
    UCB1,
    BestFeasible,
    EpsilonGreedy,
    Fixed,
    LinUCB,
    LogisticThompson,
    RoundRobin,
    SquareCB,
    Uniform,
    Weighted,
)
from bandit.newcomers import Newcomers
from bandit.thompson import Thompson
from bandit.types import Arm, Constraints, Objective, Price
from serving.config_problems import _section_in
from serving.pools import _policy, build_pool
from serving.settings import Settings, load_settings

EXAMPLE = Path(__file__).parents[2] / "deploy" / "pointsman.example.yaml"
SECRETS = {
    "POINTSMAN_ADMIN_KEY": "s3cr3t-admin",
    "ACME_KEY": "s3cr3t-acme",
    "INTERN_KEY": "s3cr3t-intern",
    "OPENAI_API_KEY": "s3cr3t-openai",
}

README = """
server: {host: 127.0.0.1, port: 8080, data_dir: ./pointsman-data}
auth:
  admin_key: ${POINTSMAN_ADMIN_KEY}
  keys:
    - {key: ${ACME_KEY}, user: acme-bot, team: search, tier: paid}
models:
  - name: gpt-4o-mini
    endpoint: https://api.openai.com/v1
    upstream_model: gpt-4o-mini          # default: name
    api_key: ${OPENAI_API_KEY}
    price: {input_per_million: 0.15, output_per_million: 0.60}   # USD per million tokens
    timeout_s: 60
  - {name: gpt-4o, endpoint: https://api.openai.com/v1/}
  - {name: claude-sonnet, endpoint: "http://[::1]:9/prefix/v1/"}
pools:
  - name: auto
    models: [gpt-4o-mini, gpt-4o, claude-sonnet]
    objective: {quality: 1.0, cost: 0.2, latency: 0.1, cost_reference_usd: 0.002, latency_reference_s: 2.0}
    constraints: {p95_latency_s: 2.0, min_accuracy: 0.80, on_infeasible: least_violation}   # or: fail
    budget: {usd_per_request: 0.0005}
    policy: {kind: thompson, half_life_requests: 5000, exploration_floor: 0.01}
"""


def good() -> dict[str, Any]:
    """The smallest configuration, as plain values."""
    return {
        "models": [
            {"name": "one", "endpoint": "https://one.test/v1"},
            {"name": "two", "endpoint": "https://two.test/v1"},
        ],
        "pools": [{"name": "auto", "models": ["one", "two"]}],
    }


# --- good configurations


def test_the_smallest_configuration_has_the_documented_defaults() -> None:
    """Everything but models and pools may be left out."""
    settings = Settings.parse(good())
    server, store, log = settings.server, settings.store, settings.log
    assert (server.host, server.port, server.data_dir) == ("127.0.0.1", 8080, Path("pointsman-data"))
    assert (server.max_body_bytes, server.max_messages, server.shutdown_grace_s) == (10_485_760, 2048, 10.0)
    assert (server.feedback_horizon_s, server.metrics_public) == (604_800.0, False)
    assert settings.auth is None
    assert (store.synchronous, store.queue_limit) == ("full", 10_000)
    assert (store.snapshot_every_events, store.cache_decisions) == (20_000, 2_000)
    assert (log.flush_interval_s, log.batch_rows, log.retention_days) == (10.0, 50_000, None)
    model = settings.model("one")
    assert (model.upstream_model, model.api_key, model.price, model.headers) == ("one", None, None, {})
    assert (model.timeout_s, model.max_connections) == (60.0, 100)
    policy = settings.pools[0].policy
    assert (policy.kind, policy.half_life_requests, policy.exploration_floor) == ("thompson", 10_000.0, 0.01)
    assert (policy.slope_prior_precision, policy.epsilon, policy.seed, policy.model) == (75.0, 0.1, None, None)
    assert (policy.alpha, policy.gamma_scale, policy.gamma_exponent, policy.weights) == (1.0, 10.0, 0.5, None)


def test_a_pools_defaults_are_the_librarys() -> None:
    """Objective, constraints and filters left out are what the library takes by itself."""
    pool = Settings.parse(good()).pools[0]
    assert pool.to_objective() == Objective()
    assert pool.to_constraints() == Constraints()
    assert pool.to_filter_settings() == bandit.filters.FilterSettings()
    newcomers = pool.to_newcomers()
    assert (newcomers.share, newcomers.samples) == (Newcomers().share, Newcomers().samples) == (0.25, 30)


def test_a_pools_settings_reach_the_library() -> None:
    """Features, newcomers and tempering are those of the configuration."""
    features = {"text": "none", "vector": 3, "categories": ["a", "b"]}
    policy = {"exploration_scale": 1.0, "slope_prior_precision": 20.0}
    data = good()
    data["pools"][0] |= {"features": features, "newcomers": {"share": 0.1, "samples": 5}, "policy": policy}
    settings = Settings.parse(data)
    pool = build_pool(settings.pools[0], settings)
    assert (pool.features.text, pool.features.vector, pool.features.categories) == (None, 3, ("a", "b"))
    assert (pool.newcomers.share, pool.newcomers.samples) == (0.1, 5)
    assert pool.policy == Thompson(0.01, exploration_scale=1.0)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, Thompson(0.01)),
        ({"exploration_scale": 0.7}, Thompson(0.01, exploration_scale=0.7)),
        ({"kind": "thompson_context_free", "exploration_floor": 0.1}, Thompson(0.1, contextual=False)),
        ({"kind": "logistic_thompson"}, LogisticThompson(0.01)),
        ({"kind": "linucb", "alpha": 0.5, "exploration_floor": 0.0}, LinUCB(0.5, 0.0)),
        ({"kind": "squarecb", "gamma_scale": 5.0, "gamma_exponent": 0.25}, SquareCB(5.0, 0.25, 0.01)),
        ({"kind": "best_feasible"}, BestFeasible(0.01)),
        ({"kind": "weighted", "weights": {"two": 90}}, Weighted((0.0, 90.0))),  # the pool's order; left out: 0
        ({"kind": "epsilon_greedy", "epsilon": 0.2}, EpsilonGreedy(0.2)),
        ({"kind": "fixed", "model": "two"}, Fixed(1)),
        ({"kind": "uniform"}, Uniform()),
        ({"kind": "round_robin"}, RoundRobin()),
        ({"kind": "ucb1"}, UCB1()),
    ],
)
def test_each_kind_of_policy_is_made_with_its_settings(policy: dict[str, object], expected: object) -> None:
    """What the configuration says is what chooses."""
    data = good()
    data["pools"][0]["policy"] = policy
    assert _policy(Settings.parse(data).pools[0]) == expected


def test_the_readmes_example_loads(tmp_path: Path) -> None:
    """The example everyone copies loads with its variables set, references in braces and all."""
    (tmp_path / "c.yaml").write_text(README)
    settings = load_settings(tmp_path / "c.yaml", SECRETS)
    pool = settings.pools[0]
    assert pool.arms(settings.models) == (
        Arm("gpt-4o-mini", Price(0.15, 0.60)),
        Arm("gpt-4o"),
        Arm("claude-sonnet"),
    )
    assert pool.to_objective().weights == pytest.approx((1 / 1.3, 0.2 / 1.3, 0.1 / 1.3))
    assert pool.to_constraints() == Constraints(p95_latency_s=2.0, min_accuracy=0.8)
    assert pool.budget is not None
    assert pool.budget.usd_per_request == 0.0005
    assert [m.endpoint for m in settings.models][1:] == ["https://api.openai.com/v1", "http://[::1]:9/prefix/v1"]
    assert settings.auth is not None
    assert (settings.auth.keys[0].user, settings.auth.keys[0].team, settings.auth.keys[0].tier) == (
        "acme-bot",
        "search",
        "paid",
    )


def test_the_example_file_names_every_setting() -> None:
    """The commented example loads, has nothing to warn about, and leaves no setting out."""
    settings = load_settings(EXAMPLE, SECRETS)
    assert settings.warnings == ()
    text = EXAMPLE.read_text()
    for path, _ in fields(Settings):
        name = path.rsplit(".", 1)[-1]
        assert re.search(rf"\b{name}:", text), f"{path} is not in the example"


def test_no_secret_is_in_any_text_of_the_settings() -> None:
    """repr, str and JSON of loaded settings are masked."""
    settings = load_settings(EXAMPLE, SECRETS)
    assert settings.auth is not None
    assert settings.auth.keys[0].key.get_secret_value() == "s3cr3t-acme"
    for text in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "s3cr3t" not in text
        assert "search" in text


def test_settings_cannot_be_changed() -> None:
    """Settings are frozen, at every depth."""
    settings = Settings.parse(good())
    with pytest.raises(ValidationError, match="frozen"):
        settings.server.port = 1
    with pytest.raises(KeyError):
        settings.model("three")


def fields(section: type[BaseModel], at: str = "") -> list[tuple[str, str | None]]:
    found = []
    for name, field in section.model_fields.items():
        found.append((f"{at}{name}", field.description))
        inner = _section_in(field.annotation)
        if inner is not None:
            found += fields(inner, f"{at}{name}.")
    return found


def test_every_setting_is_described_in_one_sentence() -> None:
    """The reference is made from descriptions: each starts with a word and ends with its only full stop."""
    for path, description in fields(Settings):
        assert description, path
        assert re.fullmatch(r"[^\n]+[^.]\.", description), path
        assert ". " not in description, path


# --- warnings


def warned(data: dict[str, Any]) -> dict[str, str]:
    return {problem.path: problem.message for problem in Settings.parse(data).warnings}


def with_pool(**pool: Any) -> dict[str, Any]:
    data = good()
    data["pools"][0] |= {"objective": {"latency": 1}} | pool
    return data


def test_nothing_to_warn_about() -> None:
    """A pool that weighs latency and has no cost in play gives no warning."""
    assert warned(with_pool()) == {}


def test_an_unknown_price_is_a_warning_where_cost_counts() -> None:
    """A pool that weighs cost, or has a budget, names each of its models without a price; free is a price."""
    for data in (with_pool(objective={"cost": 1}), with_pool(budget={"usd_per_request": 1})):
        data["models"][0]["price"] = {"input_per_million": 0, "output_per_million": 0}
        found = warned(data)
        assert list(found) == ["pools[0].models[1]"]
        assert "never as zero" in found["pools[0].models[1]"]


def test_an_accuracy_limit_that_nothing_can_test_is_a_warning() -> None:
    """min_accuracy on benchmarks alone warns; with live feedback it does not."""
    found = warned(with_pool(constraints={"min_accuracy": 0.8}))
    assert "nothing can test" in found["pools[0].constraints.min_accuracy"]
    for evidence in ("feedback", "both"):
        assert warned(with_pool(constraints={"min_accuracy": 0.8, "accuracy_evidence": evidence})) == {}


def test_a_log_that_forgets_before_it_may_is_a_warning(tmp_path: Path) -> None:
    """Sooner than feedback may come, or than a suite is due again."""
    (suite := tmp_path / "s.jsonl").touch()
    weekly = {"benchmarks": [{"suite": str(suite), "every_hours": 168}], "auth": {"admin_key": "abcdefgh"}}
    for days, words in ((7, ["more often"]), (6.9, ["more often"]), (7.1, []), (None, [])):
        data = with_pool() | weekly | {"log": {"retention_days": days}, "server": {"feedback_horizon_s": 86_400}}
        assert [word for word in words if word not in warned(data).get("log.retention_days", "")] == []
        assert bool(words) == ("log.retention_days" in warned(data))
    found = warned(with_pool() | {"log": {"retention_days": 6.9}})
    assert "feedback may come" in found["log.retention_days"]
    assert warned(with_pool() | {"log": {"retention_days": 7}}) == {}


def test_quality_alone_and_a_single_model_are_warnings() -> None:
    """An objective of quality alone and a pool of one model are probably not meant."""
    assert list(warned(with_pool(objective={"quality": 2}))) == ["pools[0].objective"]
    assert list(warned(with_pool(models=["one"]))) == ["pools[0].models"]


def test_a_scheduled_suite_that_asks_the_pools_models_can_test_its_accuracy(tmp_path: Path) -> None:
    """One that leaves a model out cannot; and a suite that is not there is a warning of its own."""
    suite = tmp_path / "s.jsonl"
    suite.touch()
    limited = with_pool(constraints={"min_accuracy": 0.8})
    for entry in ({}, {"pool": "auto"}, {"models": ["two", "one"]}):
        assert warned(limited | {"benchmarks": [{"suite": str(suite)} | entry]}) == {}
    assert list(warned(limited | {"benchmarks": [{"suite": str(suite), "models": ["one"]}]})) == [
        "pools[0].constraints.min_accuracy"
    ]
    found = warned(limited | {"benchmarks": [{"suite": str(tmp_path / "missing.jsonl")}]})
    assert list(found) == ["benchmarks[0].suite"]
    assert "missing.jsonl" in found["benchmarks[0].suite"]
