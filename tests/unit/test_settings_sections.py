"""What is said about bad values, section by section, and what is still allowed at the edges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from bad_pools import POOLS
from small_settings import changed, good, problems

from serving.config_rules import is_loopback
from serving.settings import ConfigError, Settings, load_settings


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("server.port", 0),
        ("server.host", "::1"),
        ("server.host", "localhost"),
        ("server.host", "127.8.9.1"),
        ("server.shutdown_grace_s", 0),
        ("pools[0].policy.half_life_requests", None),
        ("pools[0].policy.exploration_floor", 0),
        ("pools[0].policy", {"kind": "fixed", "model": "two"}),
        ("pools[0].policy", {"kind": "uniform", "seed": 3}),
        ("pools[0].policy", {"kind": "epsilon_greedy", "epsilon": 1}),
        ("pools[0].policy", {"kind": "logistic_thompson", "slope_prior_precision": 20, "exploration_floor": 0}),
        ("pools[0].policy", {"kind": "linucb", "alpha": 0}),
        ("pools[0].policy", {"kind": "squarecb", "gamma_scale": 1, "gamma_exponent": 0}),
        ("pools[0].policy", {"kind": "best_feasible", "exploration_floor": 0}),
        ("pools[0].policy", {"kind": "weighted", "weights": {"two": 1}}),
        ("pools[0].objective", {"quality": 0, "latency": 1}),
        ("pools[0].constraints", None),
        ("pools[0].features", {"text": "none", "categories": ["a", "b"], "vector": 32}),
        ("pools[0].features.categories", [f"c{i}" for i in range(24)]),
        ("pools[0].features.categories", []),
        ("pools[0].feedback", None),
        ("pools[0].feedback", {"missing": "ignore", "wait_s": 1}),
        ("pools[0].feedback.missing", 0),
        ("pools[0].feedback.missing", 1),
        ("pools[0].newcomers", {"share": 1, "samples": 0}),
        ("models[0].headers", {"X-Team": "search me", "authorization": "Basic abc"}),
        ("models[0].api_key", None),
    ],
)
def test_edges_of_the_ranges_are_allowed(at: str, value: Any) -> None:
    """What the reference allows is accepted."""
    Settings.parse(changed(at, value))


# --- bad configurations, section by section: (path to change, bad value, path reported, in the message, in the hint)

KEY = {"key": "abcdefgh", "user": "u"}
PRICE = {"input_per_million": 1, "output_per_million": 1}
SERVER = [
    ("server", "x", "server", "must be a mapping, not text", None),
    ("server", [], "server", "must be a mapping, not a list", None),
    ("server.host", "0.0.0.0", "server.host", "without auth", "add an auth section"),  # noqa: S104
    ("server.host", "example.com", "server.host", "without auth", "127.0.0.1"),
    ("server.host", "", "server.host", "must not be empty", None),
    ("server.host", "a b", "server.host", "no spaces", None),
    ("server.port", "8080", "server.port", "must be a whole number, not text", None),
    ("server.port", True, "server.port", "must be a whole number, not true or false", None),
    ("server.port", 80.5, "server.port", "must be a whole number", None),
    ("server.port", -1, "server.port", "must be at least 0, not -1", None),
    ("server.port", 65_536, "server.port", "must be at most 65,535, not 65,536", None),
    ("server.data_dir", "", "server.data_dir", "path of a folder", None),
    ("server.data_dir", 5, "server.data_dir", "path of a folder", None),
    ("server.data_dir", "~no-such-user-here/x", "server.data_dir", "home folder", None),
    ("server.max_body_bytes", 0, "server.max_body_bytes", "at least 1,024", None),
    ("server.max_messages", 0, "server.max_messages", "at least 1", None),
    ("server.shutdown_grace_s", -1, "server.shutdown_grace_s", "at least 0", None),
    ("server.feedback_horizon_s", math.inf, "server.feedback_horizon_s", "finite", None),
    ("server.metrics_public", "yes", "server.metrics_public", "true or false, not text", "write true"),
    ("server.metrics_public", 1, "server.metrics_public", "true or false, not a number", None),
    ("server.prot", 1, "server.prot", "unknown key", "did you mean port?"),
    ("server.PORT", 1, "server.PORT", "unknown key", "did you mean port?"),
    ("server.synchronous", "full", "server.synchronous", "unknown key", "it belongs in store"),
    ("server.zzz", 1, "server.zzz", "unknown key", "known keys: host, port"),
    ("sever", {}, "sever", "unknown key", "did you mean server?"),
    ("port", 1, "port", "unknown key", "it belongs in server"),
    ("api_key", "x", "api_key", "unknown key", "it belongs in models[]"),
]
AUTH = [
    ("auth", {}, "auth.keys", "is required", "add one"),
    ("auth", {"keys": []}, "auth.keys", "nobody could call", "add one"),
    ("auth", {"keys": {"a": "b"}}, "auth.keys", "must be a list, not a mapping", None),
    ("auth", {"keys": ["abcdefgh"]}, "auth.keys[0]", "must be a mapping, not text", None),
    ("auth", {"keys": [{"key": "abcdefgh"}]}, "auth.keys[0].user", "is required", None),
    ("auth", {"keys": [{"user": "u"}]}, "auth.keys[0].key", "is required", None),
    ("auth", {"keys": [KEY | {"key": "abcdefg"}]}, "auth.keys[0].key", "at least 8 characters", None),
    ("auth", {"keys": [KEY | {"key": ""}]}, "auth.keys[0].key", "at least 8 characters", None),
    ("auth", {"keys": [KEY | {"key": "abcd efgh"}]}, "auth.keys[0].key", "no spaces", "line break"),
    ("auth", {"keys": [KEY | {"key": 12345678}]}, "auth.keys[0].key", "must be text, not a number", "quotes"),
    ("auth", {"keys": [KEY | {"user": ""}]}, "auth.keys[0].user", "must not be empty", None),
    ("auth", {"keys": [KEY | {"user": "a\x1bb"}]}, "auth.keys[0].user", "no control characters", None),
    ("auth", {"keys": [KEY | {"tier": 1}]}, "auth.keys[0].tier", "must be text, not a number", "quotes"),
    ("auth", {"keys": [KEY | {"team": "a" * 201}]}, "auth.keys[0].team", "at most 200 characters", None),
    ("auth", {"keys": [KEY | {"teir": "a"}]}, "auth.keys[0].teir", "unknown key", "did you mean tier?"),
    ("auth", {"keys": [KEY, KEY]}, "auth.keys[1].key", "the same key as auth.keys[0].key", "own key"),
    ("auth", {"keys": [KEY], "admin_key": "short"}, "auth.admin_key", "at least 8 characters", None),
    ("auth", {"keys": [KEY], "admin_key": "abcdefgh"}, "auth.keys[0].key", "same key as auth.admin_key", None),
    ("auth", {"keys": [{"sk-1": "u"} | KEY]}, "auth.keys[0].?", "may be a secret", "known keys: key, user"),
    ("auth", {"keys": [KEY], "user": "u"}, "auth.user", "unknown key", "it belongs in auth.keys[]"),
]
STORE_AND_LOG = [
    ("store.synchronous", "off", "store.synchronous", "must be one of full, normal", None),
    ("store.synchronous", "Normal", "store.synchronous", "must be one of", "did you mean normal?"),
    ("store.queue_limit", 0, "store.queue_limit", "at least 1", None),
    ("store.snapshot_every_events", "20", "store.snapshot_every_events", "whole number", None),
    ("store.cache_decisions", 999, "store.cache_decisions", "at least 1,000", None),
    ("store.queue_limits", 1, "store.queue_limits", "unknown key", "did you mean queue_limit?"),
    ("log.flush_interval_s", 0, "log.flush_interval_s", "at least 0.05", None),
    ("log.flush_interval_s", None, "log.flush_interval_s", "must be a number, not nothing", None),
    ("log.batch_rows", 0, "log.batch_rows", "at least 1", None),
    ("log.retention_days", 0, "log.retention_days", "above 0", None),
    ("log.flush_s", 2, "log.flush_s", "unknown key", "did you mean flush_interval_s?"),
]
MODELS = [
    ("models", [], "models", "must not be empty", None),
    ("models", None, "models", "must be a list, not nothing", None),
    ("models", {"name": "a"}, "models", "must be a list, not a mapping", None),
    ("models[2]", "three", "models[2]", "must be a mapping, not text", None),
    ("models[2]", {"endpoint": "https://h"}, "models[2].name", "is required", None),
    ("models[2]", {"name": "three"}, "models[2].endpoint", "is required", None),
    ("models[1].name", "one", "models[1].name", "already the name of models[0]", "rename"),
    ("models[2]", {"name": "a b", "endpoint": "https://h"}, "models[2].name", "no spaces", None),
    ("models[2]", {"name": "a\u200bb", "endpoint": "https://h"}, "models[2].name", "control characters", None),
    ("models[2]", {"name": 7, "endpoint": "https://h"}, "models[2].name", "must be text", "quotes"),
    ("models[0].endpoint", "one.test/v1", "models[0].endpoint", "http or https URL", "for example"),
    ("models[0].endpoint", "ftp://one.test", "models[0].endpoint", "http or https URL", None),
    ("models[0].endpoint", "https://", "models[0].endpoint", "http or https URL", None),
    ("models[0].endpoint", "https://h:99999", "models[0].endpoint", "http or https URL", None),
    ("models[0].endpoint", "https://h /v1", "models[0].endpoint", "http or https URL", None),
    ("models[0].endpoint", "https://[::1/v1", "models[0].endpoint", "http or https URL", None),
    ("models[0].endpoint", "https://u:p@h/v1", "models[0].endpoint", "no credentials", "api_key"),
    ("models[0].endpoint", "https://h/v1?a=b", "models[0].endpoint", "no query", "headers"),
    ("models[0].endpoint", "https://h/v1#", "models[0].endpoint", "no query or fragment", None),
    ("models[0].endpoint", "https://h/v1/chat/completions/", "models[0].endpoint", "base", "leave out"),
    ("models[0].upstream_model", 4, "models[0].upstream_model", "must be text", "quotes"),
    ("models[0].api_key", "", "models[0].api_key", "must not be empty", None),
    ("models[0].api_key", "abc\n", "models[0].api_key", "line breaks", "line break?"),
    ("models[0].price", 0.15, "models[0].price", "must be a mapping, not a number", None),
    ("models[0].price", {"input_per_million": 1}, "models[0].price.output_per_million", "is required", None),
    ("models[0].price", PRICE | {"input_per_million": -1}, "models[0].price.input_per_million", "at least 0", None),
    ("models[0].price", PRICE | {"input_per_million": math.nan}, "models[0].price.input_per_million", "finite", None),
    (
        "models[0].price",
        PRICE | {"input_per_million": "1"},
        "models[0].price.input_per_million",
        "must be a number, not",
        None,
    ),
    (
        "models[0].price",
        PRICE | {"input": 1},
        "models[0].price.input",
        "unknown key",
        "did you mean input_per_million?",
    ),
    ("models[0].timeout_s", 0, "models[0].timeout_s", "above 0, not 0", None),
    ("models[0].timeout_s", 3601, "models[0].timeout_s", "at most 3,600", None),
    ("models[0].timeout", 5, "models[0].timeout", "unknown key", "did you mean timeout_s?"),
    ("models[0].max_connections", 0, "models[0].max_connections", "at least 1", None),
    ("models[0].headers", ["a"], "models[0].headers", "must be a mapping, not a list", None),
    ("models[0].headers", {"a b": "c"}, "models[0].headers.a b", "not a header's name", None),
    ("models[0].headers", {"x-a": 1}, "models[0].headers.x-a", "must be text", "quotes"),
    ("models[0].headers", {"x-a": "b\r\nc: d"}, "models[0].headers.x-a", "printable ASCII", None),
    ("models[0].headers", {"Content-Length": "1"}, "models[0].headers.Content-Length", "set by the service", None),
    ("models[0].headers", {"x-a": "b", "X-A": "c"}, "models[0].headers.X-A", "given twice", None),
    ("models[0].usd_per_request", 1, "models[0].usd_per_request", "unknown key", None),
    ("models[0].input_per_million", 1, "models[0].input_per_million", "unknown key", "it belongs in models[0].price"),
]


@pytest.mark.parametrize(("at", "value", "path", "message", "hint"), SERVER + AUTH + STORE_AND_LOG + MODELS + POOLS)
def test_bad_input_is_reported_with_its_path(at: str, value: Any, path: str, message: str, hint: str | None) -> None:
    """A bad value in any section is reported at its own path, in words that say what to change."""
    found = problems(changed(at, value))
    assert path in found
    assert message in found[path][0]
    if hint is not None:
        assert hint in str(found[path][1])
    expected = {path} if value not in ([], None, {"name": "a"}) else set(found)  # without models, pools cannot be right
    extra = {p for p in found if not p.startswith(("pools[0].models", *expected))}
    assert not extra


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    """One mistake in each section gives one problem each, in the file's order, with its line."""
    (tmp_path / "c.yaml").write_text("""server:
  prot: 1
auth:
  keys: [{key: short, user: u}]
store: {synchronous: maybe}
log: {batch_rows: 0}
models:
  - {name: one, endpoint: nowhere}
  - name: two
    endpoint: https://two.test
    timeout_s: 0
pools:
  - name: one
    models: [one, tow]
    constraints:
      p95_latency_s: "2"
    policy: {epsilon: 0.1}
""")
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "c.yaml", {})
    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        ("server.prot", 2),
        ("auth.keys[0].key", 4),
        ("store.synchronous", 5),
        ("log.batch_rows", 6),
        ("models[0].endpoint", 8),
        ("models[1].timeout_s", 11),
        ("pools[0].name", 13),
        ("pools[0].models[1]", 14),
        ("pools[0].constraints.p95_latency_s", 16),
        ("pools[0].policy.epsilon", 17),
    ]
    assert str(caught.value).count("\n") == 9


def test_both_authorization_and_api_key_is_a_problem() -> None:
    """Two sources of one header are not left to chance."""
    data = changed("models[0].headers", {"Authorization": "Basic abc"})
    data["models"][0]["api_key"] = "abc"
    assert list(problems(data)) == ["models[0].headers.Authorization"]


def test_a_broken_model_does_not_make_its_pools_wrong() -> None:
    """While some model's name cannot be read, no name in a pool is called unknown."""
    data = good()
    data["models"][1] = {"name": "two"}
    assert list(problems(data)) == ["models[1].endpoint"]
    data["models"][1] = {"endpoint": "https://two.test"}
    assert list(problems(data)) == ["models[1].name"]


def test_with_auth_any_address_is_allowed() -> None:
    """Only an open service is bound to loopback addresses."""
    data = changed("server.host", "0.0.0.0") | {"auth": {"keys": [KEY]}}  # noqa: S104
    assert not Settings.parse(data).server.loopback


def test_loopback_addresses() -> None:
    """Only addresses that no other machine can reach are loopback."""
    assert all(map(is_loopback, ("localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1")))
    hosts = ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com")  # noqa: S104
    assert not any(map(is_loopback, hosts))


def test_embeddings_without_their_extra_are_a_problem_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for them is told what to install, by `check` and by `serve`, before anything starts."""
    monkeypatch.setattr("serving.config_rules.find_spec", lambda name: None if name == "wordllama" else object())
    message, hint = problems(changed("pools[0].features.text", "embeddings"))["pools[0].features.text"]
    assert "embeddings need wordllama" in message
    assert hint is not None
    assert "pip install 'pointsman[embeddings]'" in hint
    Settings.parse(changed("pools[0].features.text", "trigrams"))


def test_waiting_for_feedback_beyond_the_horizon_is_allowed_where_missing_feedback_is_ignored() -> None:
    data = changed("server.feedback_horizon_s", 60)
    data["pools"][0]["feedback"] = {"wait_s": 3600}
    Settings.parse(data)
    data["pools"][0]["feedback"] = {"missing": 0.5}
    assert list(problems(data)) == ["pools[0].feedback.wait_s"]
