"""Whatever stands in a LiteLLM configuration: what is made of it passes `check`, and no secret of it is shown."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.commands.litellm_import import _problems, convert
from serving.settings import ConfigError

SECRET = "hunter2"
GOOD = {
    "model_list": [
        {"model_name": "gpt", "litellm_params": {"model": "openai/gpt-4o", "api_key": SECRET, "rpm": 600, "order": 1}},
        {"model_name": "gpt", "litellm_params": {"model": "gpt-4o", "api_key": "os.environ/A", "organization": SECRET}},
        {
            "model_name": "mixed",
            "litellm_params": {"model": "groq/llama", "weight": 3, "timeout": 9, "extra_headers": {"x-key": SECRET}},
            "model_info": {"id": "one", "input_cost_per_token": 5e-8, "output_cost_per_token": 8e-8, "mode": "chat"},
        },
        {"model_name": "mixed", "litellm_params": {"model": "hosted_vllm/m", "api_base": "http://h/v1", "weight": 1}},
        {"model_name": "local", "litellm_params": {"model": "ollama/m", "api_base": "os.environ/OLLAMA"}},
    ],
    "router_settings": {
        "routing_strategy": "simple-shuffle",
        "num_retries": 2,
        "timeout": 300,
        "fallbacks": [{"gpt": ["mixed"]}],
        "context_window_fallbacks": [{"gpt": ["one"]}],
        "model_group_alias": {"old": "gpt", "older": {"model": "gpt", "hidden": True}},
        "allowed_fails": 3,
        "cooldown_time": 30,
    },
    "litellm_settings": {
        "max_budget": 100,
        "budget_duration": "30d",
        "request_timeout": 60,
        "cache_params": {"password": SECRET},
    },
    "general_settings": {"master_key": SECRET, "database_url": SECRET, "max_parallel_requests": 9},
    "environment_variables": {"REDIS_PASSWORD": SECRET},
}


def places(value, at=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(place for key, each in inner for place in places(each, (*at, key)))]


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 10**7)
    | st.floats()
    | st.sampled_from(["", "x", "a b", "os.environ/A", "os.environ/a-b", "${X}", "http://[", "gpt", "openai/x"])
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Co")), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["gpt", "a", "model"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(places(GOOD)), JUNK), max_size=3))
def test_what_is_made_is_usable_and_tells_no_secret(changes):
    data = copy.deepcopy(GOOD)
    for at, value in changes:
        place = data
        for key in at[:-1]:
            place = place[key] if _has(place, key) else None
        if _has(place, at[-1]):
            place[at[-1]] = copy.deepcopy(value)
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / "config.yaml"
        theirs.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
        text, told = None, ""
        try:
            text, notes = convert(theirs)
            told = "".join(map(str, notes))
        except ConfigError as error:
            told = str(error)
    assert SECRET not in told
    if text is not None:
        assert SECRET not in text
        assert _problems(text) == ()


def _has(place, key):
    return key in place if isinstance(place, dict) else isinstance(place, list) and key in range(len(place))
