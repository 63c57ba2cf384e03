"""A LiteLLM configuration, imported by the real program, is served: every name answers, and fallbacks take over."""

from __future__ import annotations

import os
import subprocess
import sys

import openai
import pytest
import yaml
from scripted_upstream import Scripted

MASTER_KEY = "sk-master-of-everything"
THEIRS = """
model_list:
  - model_name: small
    litellm_params: {{model: openai/tiny, api_base: "{url}/east/v1", api_key: sk-literal-east, rpm: 100}}
  - model_name: small
    litellm_params: {{model: openai/tiny, api_base: "{url}/west/v1", api_key: os.environ/WEST_KEY, rpm: 100}}
  - model_name: pair
    litellm_params: {{model: openai/one, api_base: "{url}/one/v1"}}
    model_info: {{id: number-one, input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}}
  - model_name: pair
    litellm_params: {{model: hosted_vllm/two, api_base: "{url}/two/v1"}}
  - model_name: pair
    litellm_params: {{model: bedrock/three}}
  - model_name: frail
    litellm_params: {{model: openai/frail, api_base: "{url}/frail/v1"}}
  - model_name: short
    litellm_params: {{model: openai/short, api_base: "{url}/short/v1"}}
  - model_name: vector
    litellm_params: {{model: openai/vector, api_base: "{url}/vector/v1"}}
router_settings:
  num_retries: 1
  timeout: 5
  model_group_alias: {{tiny: small}}
  fallbacks: [{{frail: [small]}}]
  context_window_fallbacks: [{{short: [number-one]}}]
general_settings: {{master_key: os.environ/THEIR_MASTER_KEY}}
"""
SERVED_BY = {
    "small": {"east", "west"},
    "tiny": {"east", "west"},
    "pair": {"one", "two"},
    "frail": {"frail"},
    "short": {"short"},
    "vector": {"vector"},
}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def imported(scripted, tmp_path_factory):
    """What the program says, and the configuration it writes."""
    folder = tmp_path_factory.mktemp("import")
    theirs, ours = folder / "config.yaml", folder / "pointsman.yaml"
    theirs.write_text(THEIRS.format(url=scripted.url))
    command = [sys.executable, "-m", "serving", "import", "litellm", str(theirs), "--out", str(ours)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr, ours.read_text()


@pytest.fixture(scope="module")
def service(run_service, imported, tmp_path_factory):
    secrets = {"THEIR_MASTER_KEY": MASTER_KEY, "WEST_KEY": "west", "SMALL_API_KEY": "east"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        with run_service(yaml.safe_load(imported[1]), tmp_path_factory.mktemp("imported")) as service:
            yield service


@pytest.fixture
def ask(service):
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=MASTER_KEY, max_retries=0) as client:
        yield lambda model: client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])


def said(answer):
    return answer.choices[0].message.content.removeprefix("from ")


def test_what_is_left_out_is_told_and_no_key_is(imported):
    told, written = imported
    assert "model_list[4] (line 12): is left out: provider bedrock" in told
    assert "set SMALL_API_KEY to the key that stands here" in told
    assert "sk-literal-east" not in told + written


@pytest.mark.parametrize("name", SERVED_BY)
def test_every_name_answers(ask, name):
    assert {said(ask(name)) for _ in range(12)} <= SERVED_BY[name]


def test_deployments_share_the_calls(ask):
    """Of 60 calls on two endpoints of equal weight all go to one with probability 2⁻⁵⁹."""
    assert {said(ask("small")) for _ in range(60)} == {"east", "west"}


def test_only_who_has_their_master_key_may_call(service):
    with (
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk-another-key", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "hello"}])


def test_a_fallback_takes_over(ask, scripted):
    scripted.rest["frail"] = "500"
    try:
        assert said(ask("frail")) in SERVED_BY["small"]
    finally:
        del scripted.rest["frail"]


def test_a_fallback_for_long_prompts_takes_over_from_nothing_else(ask, scripted):
    scripted.plans["short"].append("too-long")
    assert said(ask("short")) == "one"
    scripted.plans["short"].extend(["500", "500"])
    with pytest.raises(openai.InternalServerError):
        ask("short")
    assert not scripted.plans["short"]


def test_an_existing_file_is_not_written_over(imported, tmp_path):
    theirs, ours = tmp_path / "config.yaml", tmp_path / "mine.yaml"
    theirs.write_text(THEIRS.format(url="http://127.0.0.1:1"))
    ours.write_text("mine")
    command = [sys.executable, "-m", "serving", "import", "litellm", str(theirs), "--out", str(ours)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert (done.returncode, ours.read_text()) == (2, "mine")
