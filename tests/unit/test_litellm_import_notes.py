"""What a LiteLLM configuration says in vain is named with its place, and no secret of it is ever shown."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from serving.cli import main
from serving.commands.litellm_import import convert
from serving.settings import load_settings

GPT = {"model_name": "gpt", "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/OPENAI_API_KEY"}}


@pytest.fixture
def notes(tmp_path):
    """The notes on a configuration, and what is written."""

    def notes(model_list, **sections):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"model_list": model_list} | sections, sort_keys=False))
        text, made = convert(path)
        return [str(note) for note in made], text

    return notes


@pytest.fixture
def run(tmp_path):
    def run(text, *arguments):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return CliRunner().invoke(main, ["import", "litellm", str(path), *arguments], env={"COLUMNS": "200"})

    return run


def deployment(model, **params):
    return {"model_name": "m", "litellm_params": {"model": model} | params}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (deployment("azure/gpt-4o", api_base="https://r.openai.azure.com"), "api-version"),
        (deployment("bedrock/anthropic.claude", aws_region_name="eu"), "signed with AWS credentials"),
        (deployment("vertex_ai/gemini-pro", vertex_project="p"), "Google credentials"),
        (deployment("openai/*"), "a wildcard"),
        ({"model_name": "*", "litellm_params": {"model": "openai/x"}}, "a wildcard"),
        (deployment("replicate/x"), "no OpenAI-compatible API that is known"),
        (deployment("llama-3"), "names no provider"),
        (deployment("hosted_vllm/x"), "no api_base"),
        (deployment("gemini/x", api_base="https://own"), "own protocol"),
        (deployment("openai/x", api_base="ftp://h/v1"), "no http or https URL"),
        (deployment("openai/x", api_base="https://u:hunter2@h/v1"), "credentials or a query"),
        (deployment("openai/x", api_base="https://h/v1?key=hunter2"), "credentials or a query"),
        (deployment("openai/x") | {"model_info": {"mode": "image_generation"}}, "its mode"),
        ({"model_name": "m"}, "no model_name, or no litellm_params.model"),
    ],
)
def test_a_deployment_that_cannot_be_carried_is_left_out_of_its_pool(notes, entry, why):
    told, text = notes([entry, GPT, deployment("groq/g", temperature=0)])
    (note,) = [each for each in told if each.startswith("model_list[0] (line 2): is left out: ")]
    assert why in note
    assert {each["name"] for each in yaml.safe_load(text)["models"]} == {"gpt", "m"}
    assert "hunter2" not in text + "".join(told)


def test_unknown_and_useless_keys_are_named_with_their_place_in_the_files_order(notes):
    entry = deployment("openai/x", frob=1, temperature=0.2) | {"model_info": {"knob": 1, "supports_vision": True}}
    told, text = notes(
        [entry | {"odd": 1}],
        router_settings={"retry_policy": {}, "twist": 1},
        litellm_settings={"success_callback": ["x"], "spin": 1},
        general_settings={"database_url": "postgres://u:hunter2@h/d", "turn": 1},
        environment_variables={"REDIS_PASSWORD": "hunter2"},
        guardrails=[],
        nonsense=True,
    )
    places = [each.partition(" (line")[0] for each in told if "(line" in each]
    assert (
        places
        == [
            "model_list[0]",
            "model_list[0].litellm_params.frob",
            "model_list[0].litellm_params.temperature",
            "model_list[0].model_info.knob",
            "model_list[0].odd",
            "router_settings.retry_policy",
            "router_settings.twist",
            "litellm_settings.success_callback",
            "litellm_settings.spin",
            "general_settings.database_url",
            "general_settings.turn",
            "environment_variables.REDIS_PASSWORD",
            "guardrails",
            "nonsense",
        ][1:]
    )
    header = text[: text.index("\n\n")].replace("\n#   ", " ").splitlines()
    assert [line.removeprefix("# - ") for line in header[2:]] == told
    assert "hunter2" not in text + "".join(told)


def test_literal_secrets_become_variables_that_no_other_secret_has(notes, tmp_path):
    entries = [
        {"model_name": name, "litellm_params": {"model": "openai/x", "api_key": f"sk-hunter2-{key}"}}
        for name, key in (("a", 1), ("b", 2), ("c", 1))
    ]
    entries[0]["litellm_params"] |= {"extra_headers": {"x-token": "hunter2-3"}, "organization": "org-hunter2"}
    told, text = notes([GPT, *entries], general_settings={"master_key": "hunter2-master"})
    data = yaml.safe_load(text)
    keys = {each["name"]: each["api_key"] for each in data["models"]}
    assert keys["gpt"] == "${OPENAI_API_KEY}"
    assert keys["a"] == keys["c"] == "${OPENAI_API_KEY_2}"
    assert keys["b"] == "${OPENAI_API_KEY_3}"
    headers = {"x-token": "${A_X_TOKEN}", "OpenAI-Organization": "${OPENAI_ORGANIZATION}"}
    assert next(each for each in data["models"] if each["name"] == "a")["headers"] == headers
    assert data["auth"] == {"admin_key": "${POINTSMAN_ADMIN_KEY}"}
    assert "hunter2" not in text + "".join(told)
    for name in ("OPENAI_API_KEY_2", "OPENAI_API_KEY_3", "A_X_TOKEN", "OPENAI_ORGANIZATION", "POINTSMAN_ADMIN_KEY"):
        assert any(f"set {name} to" in each for each in told)
    (tmp_path / "ours.yaml").write_text(text)
    load_settings(tmp_path / "ours.yaml", {}, offline=True)


def test_a_default_key_is_not_given_to_a_literal_secret(notes):
    """A deployment without a key is called with OPENAI_API_KEY, as in LiteLLM: no other secret may have that name."""
    _, text = notes(
        [deployment("openai/x", api_key="sk-literal"), {"model_name": "n", "litellm_params": {"model": "gpt-4o"}}]
    )
    assert {each["name"]: each["api_key"] for each in yaml.safe_load(text)["models"]} == {
        "m": "${OPENAI_API_KEY_2}",
        "n": "${OPENAI_API_KEY}",
    }


def test_included_files_are_followed_and_named(tmp_path):
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"model_list": [deployment("groq/g", frob=1)]}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"include": ["models.yaml"], "model_list": [GPT]}))
    text, notes = convert(tmp_path / "config.yaml")
    assert [each["name"] for each in yaml.safe_load(text)["models"]] == ["gpt", "m"]
    assert any(str(note).startswith("models.yaml: model_list[0].litellm_params.frob (line") for note in notes)


def test_what_makes_a_file_unreadable_is_told_with_its_place(run, tmp_path):
    for text, told in (
        ("model_list: [\n  {a: b\n", "line"),
        ("a: 1\na: 2\nmodel_list: []\n", "line 2"),
        ("router_settings: {}\n", "model_list"),
        ("- 1\n", "line 1"),
        ("include: gone.yaml\nmodel_list: []\n", "gone.yaml"),
    ):
        result = run(text, "--out", str(tmp_path / "ours.yaml"))
        assert (result.exit_code, told in result.stderr) == (2, True), text
    assert not (tmp_path / "ours.yaml").exists()


def test_nothing_is_written_where_nothing_can_be_carried(run):
    result = run(yaml.safe_dump({"model_list": [deployment("bedrock/x")]}))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "provider bedrock" in result.stderr


def test_the_result_goes_to_standard_output_and_notes_do_not(run):
    result = run(yaml.safe_dump({"model_list": [GPT], "nonsense": 1}))
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["models"][0]["name"] == "gpt"
    assert "nonsense (line" in result.stderr


def test_what_only_a_person_can_mend_is_told(run):
    """A pool may have at most 256 models."""
    result = run(yaml.safe_dump({"model_list": [deployment(f"openai/x{i}") for i in range(257)]}))
    assert result.exit_code == 1
    assert "to be mended by hand: pools[0].models" in result.stderr
