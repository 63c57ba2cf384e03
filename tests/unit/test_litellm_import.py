"""What a LiteLLM configuration becomes: models, endpoints, prices, pools, chains; each as its documentation says."""

from __future__ import annotations

import pytest
import yaml

from serving.commands.litellm_import import convert
from serving.model_settings import ModelSettings
from serving.settings import load_settings

GPT = {"model_name": "gpt", "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/OPENAI_API_KEY"}}


def deployment(name, model, info=None, **params):
    return {"model_name": name, "litellm_params": {"model": model} | params} | ({"model_info": info} if info else {})


@pytest.fixture
def imported(tmp_path):
    """The configuration made of one, which passes `check`, and the notes as text."""

    def imported(model_list, *, check=True, **sections):
        path, ours = tmp_path / "config.yaml", tmp_path / "pointsman.yaml"
        path.write_text(yaml.safe_dump({"model_list": model_list} | sections, sort_keys=False))
        text, notes = convert(path)
        ours.write_text(text)
        if check:
            load_settings(ours, {"LIMIT_S": "7"}, offline=True)
        return yaml.safe_load(text), [str(note) for note in notes]

    return imported


def only(values):
    (value,) = values
    return value


def model(data, name):
    return only(each for each in data["models"] if each["name"] == name)


def pool(data, name):
    return only(each for each in data["pools"] if each["name"] == name)


def test_one_deployment_is_a_model_of_its_public_name(imported):
    data, _ = imported([GPT])
    entry = {"name": "gpt", "endpoint": "https://api.openai.com/v1", "upstream_model": "gpt-4o"}
    assert only(data["models"]) == entry | {"api_key": "${OPENAI_API_KEY}"}
    assert only(data["pools"]) == {"name": "auto", "models": ["gpt"]}


def test_deployments_of_one_underlying_model_are_its_endpoints(imported):
    east = deployment("llama", "hosted_vllm/llama", api_base="http://east:8000/v1/", api_key="os.environ/EAST")
    west = deployment("llama", "hosted_vllm/llama", api_base="os.environ/WEST_URL")
    data, _ = imported([east, west])
    endpoints = [{"url": "http://east:8000/v1", "api_key": "${EAST}"}, {"url": "${WEST_URL}"}]
    assert model(data, "llama") == {"name": "llama", "endpoints": endpoints, "upstream_model": "llama"}


def test_several_underlying_models_are_a_pool_that_learns(imported):
    data, notes = imported([GPT, deployment("gpt", "groq/llama-3.1-8b-instant")])
    assert only(data["pools"]) == {"name": "gpt", "models": ["openai/gpt-4o", "groq/llama-3.1-8b-instant"]}
    assert model(data, "groq/llama-3.1-8b-instant")["api_key"] == "${GROQ_API_KEY}"
    assert any("the pool learns which one to take" in note for note in notes)


def test_one_model_at_two_prices_is_two_models(imported):
    prices = [{"input_cost_per_token": cost, "output_cost_per_token": cost} for cost in (1e-6, 2e-6)]
    data, _ = imported([deployment("m", "openai/x", prices[0]), deployment("m", "openai/x", prices[1])])
    assert only(data["pools"])["models"] == ["openai/x", "openai/x-2"]


@pytest.mark.parametrize(
    ("name", "params", "endpoint", "upstream", "key"),
    [
        ("gpt-4o", {}, "https://api.openai.com/v1", "gpt-4o", "${OPENAI_API_KEY}"),
        ("openai/m", {"api_base": "http://h/v1/chat/completions"}, "http://h/v1", "m", None),
        ("mistral/mistral-small", {}, "https://api.mistral.ai/v1", "mistral-small", "${MISTRAL_API_KEY}"),
        ("together_ai/org/m", {}, "https://api.together.xyz/v1", "org/m", "${TOGETHERAI_API_KEY}"),
        ("deepseek/deepseek-chat", {}, "https://api.deepseek.com/v1", "deepseek-chat", "${DEEPSEEK_API_KEY}"),
        (
            "fireworks_ai/llama",
            {},
            "https://api.fireworks.ai/inference/v1",
            "accounts/fireworks/models/llama",
            "${FIREWORKS_AI_API_KEY}",
        ),
        (
            "gemini/gemini-2.0-flash",
            {},
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "gemini-2.0-flash",
            "${GEMINI_API_KEY}",
        ),
        ("ollama/llama3", {}, "http://localhost:11434/v1", "llama3", None),
        ("ollama_chat/llama3", {"api_base": "http://h:1"}, "http://h:1/v1", "llama3", None),
        ("org/m", {"custom_llm_provider": "openai", "api_base": "http://h/v1"}, "http://h/v1", "org/m", None),
    ],
)
def test_providers(imported, name, params, endpoint, upstream, key):  # noqa: PLR0917 - a row's columns
    entry = only(imported([deployment("m", name, **params)])[0]["models"])
    assert (entry["endpoint"], entry["upstream_model"], entry.get("api_key")) == (endpoint, upstream, key)


@pytest.mark.parametrize("base", [None, "https://api.anthropic.com", "https://api.anthropic.com/v1/messages"])
def test_anthropics_own_protocol_is_a_kind(imported, base):
    params = {} if base is None else {"api_base": base}
    known = "kind" in ModelSettings.model_fields
    data, _ = imported([deployment("c", "anthropic/claude-3-5-sonnet", **params)], check=known)
    entry = only(data["models"])
    assert (entry["kind"], entry["endpoint"]) == ("anthropic", "https://api.anthropic.com/v1")
    assert entry["api_key"] == "${ANTHROPIC_API_KEY}"


def test_prices_are_by_the_million_and_limits_by_model(imported):
    info = {"input_cost_per_token": 1.5e-7, "output_cost_per_token": "6e-7", "cache_read_input_token_cost": 7.5e-8}
    info |= {"max_output_tokens": 16_384}
    data, _ = imported([deployment("m", "openai/m", info, timeout="os.environ/LIMIT_S", max_parallel_requests=9)])
    entry = only(data["models"])
    price = {"input_per_million": 0.15, "output_per_million": 0.6, "cached_input_per_million": 0.075}
    assert entry["price"] == price
    assert (entry["max_output_tokens"], entry["max_concurrent"], entry["timeout_s"]) == (16_384, 9, "${LIMIT_S}")


def test_an_embedding_model_needs_no_price_of_output(imported):
    entry = only(
        imported([deployment("e", "openai/e", {"mode": "embedding", "input_cost_per_token": 2e-8})])[0]["models"]
    )
    assert entry["price"] == {"input_per_million": 0.02, "output_per_million": 0}


def test_credentials_by_name(imported):
    values = {"api_key": "os.environ/SHARED_KEY", "api_base": "http://shared/v1"}
    credentials = [{"credential_name": "shared", "credential_values": values, "credential_info": {}}]
    data, notes = imported([deployment("m", "openai/m", litellm_credential_name="shared")], credential_list=credentials)
    entry = only(data["models"])
    assert (entry["endpoint"], entry["api_key"]) == ("http://shared/v1", "${SHARED_KEY}")
    assert not [note for note in notes if "credential" in note]


# --- shares


def test_weights_of_endpoints_and_of_pools(imported):
    """By the first deployment's weight, else rpm, else tpm; of one underlying model the sum is its pool's share."""
    one = [deployment("m", "openai/m", api_key=f"os.environ/K{i}", rpm=rpm) for i, rpm in enumerate((900, 100))]
    entry = only(imported(one)[0]["models"])
    assert ([each["weight"] for each in entry["endpoints"]], entry["balance"]) == ([900, 100], "weights")
    two = [*one, deployment("m", "groq/g", rpm=500)]
    assert only(imported(two)[0]["pools"])["weights"] == {"openai/m": 1000, "groq/g": 500}


def test_a_higher_order_is_for_when_the_lower_cannot(imported):
    first = deployment("m", "openai/m", api_key="os.environ/A", order=1)
    data, _ = imported([deployment("m", "openai/m", api_key="os.environ/B", order=2), first])
    assert [each["weight"] for each in model(data, "m")["endpoints"]] == [1e-6, 1]
    data, _ = imported([first, deployment("m", "groq/g", order=2)])
    assert pool(data, "m")["weights"] == {"openai/m": 1, "groq/g": 0}


@pytest.mark.parametrize(
    ("strategy", "objective"),
    [
        ("latency-based-routing", {"quality": 0, "latency": 1}),
        ("cost-based-routing", {"quality": 0, "cost": 1}),
        ("least-busy", None),
        ("usage-based-routing-v2", None),
    ],
)
def test_other_strategies_are_objectives_or_left(imported, strategy, objective):
    entries = [deployment("m", "openai/m", weight=3), deployment("m", "groq/g", weight=1)]
    data, notes = imported(entries, router_settings={"routing_strategy": strategy})
    assert pool(data, "m").get("objective") == objective
    assert "weights" not in pool(data, "m")
    assert any("router_settings.routing_strategy" in note for note in notes) == (strategy != "least-busy")


# --- failures

LLAMA = deployment("llama", "groq/llama", id="x")
HUGE = deployment("huge", "openai/huge", {"id": "the-huge-one"})


def failures(data, name):
    return pool(data, name).get("failures")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fallbacks": [{"gpt": ["llama"]}]}, {"fallbacks": ["llama"]}),
        ({"default_fallbacks": ["llama"]}, {"fallbacks": ["llama"]}),
        ({"fallbacks": [{"*": ["llama", "huge"]}]}, {"fallbacks": ["llama", "huge"]}),
        ({"fallbacks": [{"gpt": ["the-huge-one"]}]}, {"fallbacks": ["huge"]}),
        ({"context_window_fallbacks": [{"gpt": ["huge"]}]}, {"fallbacks": ["huge"], "on": ["context_window"]}),
        ({"content_policy_fallbacks": [{"gpt": ["huge"]}]}, {"fallbacks": ["huge"], "on": ["content_policy"]}),
        (
            {"fallbacks": [{"gpt": ["llama"]}], "context_window_fallbacks": [{"gpt": ["huge"]}]},
            {"fallbacks": ["llama", "huge"]},
        ),
        (
            {"fallbacks": [{"gpt": ["llama"]}], "context_window_fallbacks": [{"other": ["huge"]}]},
            {"fallbacks": ["llama"], "on": ["errors", "content_policy"]},
        ),
    ],
)
def test_fallbacks(imported, settings, expected):
    """Without a list for long prompts LiteLLM takes the general one; with one, a group it does not name has none."""
    for section in ("router_settings", "litellm_settings"):
        data, _ = imported([GPT, LLAMA, HUGE], **{section: settings})
        written = failures(data, "gpt")
        names = {entry["upstream_model"]: entry["name"] for entry in data["models"]}
        assert written == expected | {"fallbacks": [names[name] for name in expected["fallbacks"]]}


def test_a_pools_own_models_come_before_its_fallbacks(imported):
    data, _ = imported([GPT, deployment("gpt", "groq/g"), HUGE], router_settings={"fallbacks": [{"gpt": ["huge"]}]})
    assert failures(data, "gpt")["fallbacks"] == ["openai/gpt-4o", "groq/g", "huge"]


def test_retries_time_limits_and_cooldowns(imported):
    settings = {"num_retries": 2, "timeout": 600, "allowed_fails": 3, "cooldown_time": 30}
    settings |= {"fallbacks": [{"gpt": ["huge"]}]}
    data, notes = imported([GPT, HUGE], router_settings=settings, litellm_settings={"num_retries": 9})
    assert data["failures"] == {"retries": {"max_attempts": 3, "per_model": 3}, "deadline_s": 600}
    assert failures(data, "gpt")["retries"] == {"max_attempts": 6, "per_model": 3}
    breaker = {"min_calls": 4, "window_s": 60, "open_s": 30, "max_open_s": 30}
    assert [(each["timeout_s"], each["breaker"]) for each in data["models"]] == [(600, breaker)] * 2
    assert any("one deadline here, set to 600 s" in note for note in notes)


def test_an_alias_is_another_pool_over_the_same(imported):
    settings = {"model_group_alias": {"old": "gpt", "hidden": {"model": "gpt", "hidden": True}, "lost": "nobody"}}
    data, notes = imported([GPT], router_settings=settings)
    assert [(each["name"], each["models"]) for each in data["pools"]] == [("old", ["gpt"]), ("hidden", ["gpt"])]
    assert any("'hidden' is not hidden" in note for note in notes)
    assert any("'lost' is left out" in note for note in notes)


# --- the service


@pytest.mark.parametrize(
    ("duration", "per"),
    [("30d", "month"), ("1d", "day"), ("24h", "day"), ("1mo", "month"), (None, "total"), ("7d", None)],
)
def test_a_budget_of_all(imported, duration, per):
    data, notes = imported([GPT], litellm_settings={"max_budget": 50, "budget_duration": duration})
    assert data.get("budgets") == (None if per is None else [{"scope": "all", "usd": 50, "per": per}])
    assert any("the budget is left out" in note for note in notes) == (per is None)


def test_the_master_key_is_the_admin_key(imported):
    settings = {"master_key": "os.environ/MASTER", "global_max_parallel_requests": 50, "max_request_size_mb": 2}
    data, _ = imported([GPT], general_settings=settings)
    assert data["auth"] == {"admin_key": "${MASTER}"}
    assert (data["overload"], data["server"]) == ({"max_concurrent": 50}, {"max_body_bytes": 2 * 2**20})
