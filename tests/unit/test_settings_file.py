"""The form of the file: YAML, duplicate keys, aliases, the environment. Values never reach a message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.config_file import MAX_FILE_BYTES, EnvText
from serving.settings import ConfigError, Problem, Settings, load_settings

MODELS_AND_POOLS = """
models:
  - {name: one, endpoint: https://one.test/v1}
  - {name: two, endpoint: https://two.test/v1}
pools:
  - {name: auto, models: [one, two]}
"""


def load(tmp_path: Path, text: str | bytes, env: Mapping[str, str] | None = None, **kwargs: Any) -> Settings:
    path = tmp_path / "pointsman.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(path, env or {}, **kwargs)


def problems(tmp_path: Path, text: str | bytes, env: Mapping[str, str] | None = None, **kwargs: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, env, **kwargs)
    assert caught.value.source == str(tmp_path / "pointsman.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "is empty", None),
        ("# only a comment\n", "is empty", None),
        ("\n- a\n- b\n", "must be a mapping of sections", 2),
        ("just text", "must be a mapping of sections", 1),
        ("a: 1\nb: [1, 2\nc: 3\n", "is not valid YAML at column 2: expected ',' or ']', but got ':'", 3),
        ("a: 1\n\tb: 2\n", "is not valid YAML at column 1", 2),
        ("a: 1\n---\nb: 2\n", "is not valid YAML at column 1", 2),
        ("a: *nowhere\n", "is not valid YAML at column 4", 1),
        ("a: 1\nb: '\x01'\n", "has a character that YAML does not allow (U+0001)", 2),
        (b"a: 1\nb: \xff\n", "is not UTF-8", 2),
        ("a: \uf8f0\n", "private-use character", None),
        ("a: " + "[" * 5000, "is nested too deeply", 1),
        ("a: &a [*a]\n", "aliases that grow without bound", 1),
        ("a: &a {<<: *a}\n", "aliases that grow without bound", 1),
        (b"#" * (MAX_FILE_BYTES + 1), "is larger than 1,000,000 bytes", None),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(
    tmp_path: Path, text: str | bytes, message: str, line: int | None
) -> None:
    """What cannot be parsed is reported with its line, and nothing else is said."""
    (problem,) = problems(tmp_path, text)
    assert problem.path == ""
    assert message in problem.message
    assert problem.line == line


def test_an_alias_bomb_is_refused(tmp_path: Path) -> None:
    """Nested aliases that would expand to 9^9 values are refused."""
    lines = ["a0: &a0 x"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (problem,) = problems(tmp_path, "\n".join(lines))
    assert "grow without bound" in problem.message


def test_a_missing_file_and_a_folder_are_problems(tmp_path: Path) -> None:
    """A path that cannot be opened is a problem, not a traceback."""
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_settings(path, {})


def test_syntax_errors_show_nothing_of_the_file(tmp_path: Path) -> None:
    """A syntax error beside a secret quotes neither the line nor an alias's name."""
    for text in ("key: *s3cr3t-value\n", "key: 's3cr3t-value\n", "key: [s3cr3t-value\nb: 1", "key: !s3cr3t!value x\n"):
        (problem,) = problems(tmp_path, text)
        assert "s3cr3t" not in str(problem)


def test_duplicate_keys_are_problems_at_every_depth(tmp_path: Path) -> None:
    """A key given twice is reported where it stands the second time, with the line of the first."""
    text = MODELS_AND_POOLS + "log:\n  batch_rows: 10\n  batch_rows: 20\nlog: {}\n"
    found = problems(tmp_path, text)
    assert [(p.path, p.line) for p in found] == [("log.batch_rows", 9), ("log", 10)]
    assert found[0].message == "is given twice, first on line 8"


def test_keys_that_are_not_text_are_problems(tmp_path: Path) -> None:
    """A number, a null, a list and a reference are no keys."""
    text = MODELS_AND_POOLS + "1: a\nnull: b\n[x]: c\n${KEY}: d\n"
    found = problems(tmp_path, text, {"KEY": "log"})
    assert [p.line for p in found] == [7, 8, 9, 10]


def test_tags_are_refused(tmp_path: Path) -> None:
    """No tag constructs anything, and a known tag that its value does not fit is a problem too."""
    text = MODELS_AND_POOLS + "server:\n  host: !!python/name:os.system x\n  port: !!int abc\n  data_dir: !here x\n"
    found = problems(tmp_path, text)
    assert [(p.path, p.line) for p in found] == [("server.host", 8), ("server.port", 9), ("server.data_dir", 10)]


def test_anchors_and_merges_share_values(tmp_path: Path) -> None:
    """`<<` brings in what a mapping does not say itself; its problems carry the anchor's line."""
    text = """
models:
  - &base {name: one, endpoint: https://one.test/v1, timeout_s: 5}
  - {<<: *base, name: two}
  - {name: three, <<: [{timeout_s: 7}, *base]}
pools: [{name: auto, models: [one, two, three]}]
"""
    settings = load(tmp_path, text)
    assert [(m.name, m.timeout_s) for m in settings.models] == [("one", 5), ("two", 5), ("three", 7)]
    found = problems(tmp_path, text.replace("timeout_s: 5", "timeout_s: -5"))
    assert [(p.path, p.line) for p in found] == [("models[0].timeout_s", 3), ("models[1].timeout_s", 3)]
    found = problems(tmp_path, text.replace("<<: *base", "<<: base"))
    assert found[0].message == "has << without a mapping"


def test_plain_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """`no`, dates and `1:30` are names; `1e-3` and `1_000` are numbers."""
    text = """
models:
  - {name: no, endpoint: https://one.test/v1}
  - {name: 2024-08-11, endpoint: https://one.test/v1}
  - {name: 1:30, endpoint: https://one.test/v1, timeout_s: 1e3}
pools: [{name: on, models: [no, 2024-08-11, 1:30], filters: {alpha: 1e-3}}]
log: {batch_rows: 1_000}
"""
    settings = load(tmp_path, text)
    assert [m.name for m in settings.models] == ["no", "2024-08-11", "1:30"]
    assert (settings.pools[0].filters.alpha, settings.models[2].timeout_s, settings.log.batch_rows) == (1e-3, 1e3, 1000)


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    """A section whose lines are all commented out is as if it were left out."""
    settings = load(tmp_path, MODELS_AND_POOLS + "server:\nstore:\nlog:\nauth:\n")
    assert settings == load(tmp_path, MODELS_AND_POOLS)


# --- the environment


def test_references_are_filled_in_anywhere_in_a_string(tmp_path: Path) -> None:
    """A reference may be part of a string, stand in braces without quotes, have a default, and spell a number."""
    text = """
server: {port: ${PORT}, max_messages: "${NOT_SET:-50}", metrics_public: ${PUBLIC}}
models:
  - {name: one, endpoint: "https://${HOST}/${PATH_PREFIX:-v1}", api_key: ${KEY}, timeout_s: ${EMPTY:-2.5}}
  - {name: two, endpoint: https://two.test, upstream_model: "$${HOST} costs $5"}
pools: [{name: auto, models: [one, "${TWO:-two}"], quality_metrics: {good: ${WEIGHT}}}]
"""
    env = {"PORT": "9000", "PUBLIC": "true", "HOST": "h.test", "KEY": "12345678", "EMPTY": "", "WEIGHT": "2"}
    settings = load(tmp_path, text, env)
    assert (settings.server.port, settings.server.max_messages, settings.server.metrics_public) == (9000, 50, True)
    first, second = settings.models
    assert first.endpoint == "https://h.test/v1"
    assert first.api_key is not None
    assert first.api_key.get_secret_value() == "12345678"  # a key of digits stays text
    assert first.timeout_s == 2.5
    assert second.upstream_model == "${HOST} costs $5"
    assert settings.pools[0].quality_metrics == {"good": 2.0}
    assert type(settings.pools[0].models[1]) is str


def test_what_the_environment_holds_is_never_read_as_yaml_or_as_a_reference(tmp_path: Path) -> None:
    """A value with braces, quotes, colons or `${` goes in as it is."""
    value = "a${HOME}{x: 1}'\"#b"
    text = MODELS_AND_POOLS.replace("v1}", "v1, upstream_model: ${VALUE}}", 1)
    assert load(tmp_path, text, {"VALUE": value, "HOME": "no"}).models[0].upstream_model == value


def test_missing_variables_are_all_reported_with_their_paths(tmp_path: Path) -> None:
    """Each missing variable is a problem at its place, and nothing else is said about that place."""
    text = """
server: {port: ${PORT}}
auth: {keys: [{key: ${A}${B}, user: u}]}
models: [{name: ${NAME}, endpoint: ${URL}}]
pools: [{name: auto, models: [one]}]
"""
    found = problems(tmp_path, text)
    assert [(p.path, p.line) for p in found] == [
        ("server.port", 2),
        ("auth.keys[0].key", 3),
        ("models[0].name", 4),
        ("models[0].endpoint", 4),
    ]
    assert found[1].message == "needs A, B from the environment, which is not set"
    assert found[0].hint == "set it, or write ${PORT:-default}"


@pytest.mark.parametrize("value", ['"${"', '"${1A}"', '"${A"', '"a ${A B} c"', '"${A:-{}}"'])
def test_malformed_references_are_problems(tmp_path: Path, value: str) -> None:
    """`${` that begins no reference is not passed on silently."""
    found = problems(tmp_path, MODELS_AND_POOLS + f"server: {{host: {value}}}\n", {"A": "127.0.0.1"})
    assert [p.path for p in found] == ["server.host"]
    assert "has ${ without a name" in found[0].message


@pytest.mark.parametrize(
    "place",
    [
        "server: {port: ${SECRET}}",
        "server: {host: ${SECRET}}",
        "server: {metrics_public: ${SECRET}}",
        "store: {synchronous: ${SECRET}}",
        "store: {queue_limit: ${SECRET}}",
        "log: ${SECRET}",
        "auth: {keys: [{key: 12345678, user: ${SECRET}}]}",
        "auth: {keys: ['${SECRET}']}",
        "auth: {keys: [{sk-S3cr3t-99: bob}]}",
        "auth: {keys: {sk-S3cr3t-99: bob}}",
        "auth: {keys: [{key: 'sk-S3cr3t 99', user: bob}]}",
        "auth: {keys: [{key: S3cr3t, user: bob}]}",
        "auth: {admin_key: [sk-S3cr3t-99], keys: [{key: abcdefgh, user: bob}]}",
        "auth: {keys: [{key: sk-S3cr3t-99, user: a}, {key: sk-S3cr3t-99, user: b}]}",
        "models: [{name: a, endpoint: 'https://u:S3cr3t@host/v1'}]",
        "models: [{name: a, endpoint: 'https://host/v1?key=S3cr3t'}]",
        "models: [{name: a, endpoint: '${SECRET}'}]",
        "models: [{name: a, endpoint: 'https://h', api_key: 'S3cr3t\\n'}]",
        "models: [{name: a, endpoint: 'https://h', headers: {x-key: ' S3cr3t'}}]",
        "models: [{name: a, endpoint: 'https://h', headers: [S3cr3t]}]",
        "models: [{name: a, endpoint: 'https://h', timeout_s: S3cr3t}]",
        "models: [{name: a, endpoint: 'https://h', price: S3cr3t}]",
        "pools: [{name: '${SECRET}', models: ['${SECRET}', '${SECRET}'], policy: {kind: fixed, model: '${SECRET}'}}]",
        "models: [{name: '${SECRET}', endpoint: ''}, {name: '${SECRET}', endpoint: ''}]\npools: [{name: '${SECRET}'}]",
    ],
)
def test_no_message_shows_a_secret(tmp_path: Path, place: str) -> None:
    """Wherever a secret is put by mistake, no problem shows it: not its path, message, hint, text or repr."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, place, {"SECRET": "sk-S3cr3t-99"})
    assert "S3cr3t" not in repr(caught.value.problems) + repr(caught.value) + str(caught.value)
    assert caught.value.__cause__ is None


def test_values_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    """An override is checked like the file's value, with no line, and mends what the file has wrong."""
    text = "server: {host: 0.0.0.0, port: 99999}\n" + MODELS_AND_POOLS
    settings = load(tmp_path, text, server={"host": "localhost", "port": 0})
    assert (settings.server.host, settings.server.port) == ("localhost", 0)
    found = problems(tmp_path, MODELS_AND_POOLS, server={"host": "0.0.0.0", "port": 70_000})  # noqa: S104
    assert [(p.path, p.line) for p in found] == [("server.port", None), ("server.host", None)]


def test_text_from_the_environment_resolves_like_yaml() -> None:
    """`resolved` is the number or boolean a text spells, or the text."""
    texts = ["12", "-1.5", "1e3", "true", "False", "1" * 100, "abc", "0x10"]
    assert [EnvText.of(text, "${X}").resolved for text in texts] == [
        *(12, -1.5, 1000.0, True, False),
        *("1" * 100, "abc", "0x10"),
    ]
