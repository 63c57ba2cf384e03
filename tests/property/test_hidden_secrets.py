"""No form that a configuration takes, and nothing said of a wrong one, shows a secret: markers, and a search."""

from __future__ import annotations

import copy
import json
import traceback
from dataclasses import fields, is_dataclass

import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from serving.bodies import Body
from serving.config_file import ConfigError, Document, EnvText, read_document
from serving.roster import parse_definition
from serving.settings import Settings, load_settings

MARK = "MaRkEr"
PLACES = {  # where secrets stand; each has its own marker
    ("auth", "admin_key"): f"{MARK}-admin-0001",
    ("auth", "keys", 0, "key"): f"{MARK}-caller-0002",
    ("auth", "jwt", "jwks_url"): f"https://login.example.com/{MARK}/set?t={MARK}-0003",
    ("budgets", 0, "webhook"): f"https://hooks.example.com/{MARK}-0004",
    ("tracing", "headers", "x-key"): f"{MARK}-0005",
    ("models", 0, "api_key"): f"{MARK}-0006",
    ("models", 0, "headers", "x-key"): f"Bearer {MARK}-0007",
    ("models", 1, "endpoints", 0, "api_key"): f"{MARK}-0008",
    ("models", 1, "endpoints", 0, "headers", "x-key"): f"{MARK}-0009",
}
PLAIN = {
    "auth": {"keys": [{"user": "ada"}], "jwt": {"algorithms": ["RS256"]}},
    "budgets": [{"scope": "user", "usd": 1}],
    "tracing": {"endpoint": "http://127.0.0.1:4318", "headers": {}},
    "models": [
        {"name": "a", "endpoint": "https://a.example.com/v1", "headers": {}},
        {"name": "b", "endpoints": [{"url": "https://b.example.com/v1", "headers": {}}]},
    ],
    "pools": [{"name": "auto", "models": ["a", "b"]}],
}


def put(data, path, value):
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value


def full():
    data = copy.deepcopy(PLAIN)
    for path, secret in PLACES.items():
        put(data, path, secret)
    return data


def shown(value, depth=0):
    """Every text that printing, dumping or logging a value could make, and those of the values in it."""
    yield repr(value)
    yield str(value)
    yield f"{value!a} {value:}" if type(value).__format__ is object.__format__ else ""
    if isinstance(value, BaseModel):
        yield repr(value.model_dump())
        yield value.model_dump_json()
        yield json.dumps(value.model_dump(), default=str)
        inner = [getattr(value, name) for name in type(value).model_fields]
    elif is_dataclass(value):
        inner = [] if isinstance(value, Document) else [getattr(value, f.name) for f in fields(value)]
    else:
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, tuple) else []
    for each in inner if depth < 12 else ():
        yield from shown(each, depth + 1)


def hidden(texts):
    found = [text for text in texts if MARK in text]
    assert not found, found[:1]


def told(error):
    """What an error says wherever it is caught, and its traceback as a log has it."""
    yield from (str(error), repr(error), *map(str, error.args), "".join(traceback.format_exception(error)))
    for problem in getattr(error, "problems", ()):
        yield from (str(problem), repr(problem))


def test_settings_show_none():
    settings = Settings.parse(full())
    assert settings.models[0].api_key.get_secret_value() == PLACES["models", 0, "api_key"]
    hidden(shown(settings))
    hidden(map(str, settings.warnings))


def test_a_file_and_its_variables_show_none(tmp_path):
    data, env = full(), {}
    for number, (path, secret) in enumerate(PLACES.items()):
        env[f"SECRET_{number}"] = secret
        put(data, path, f"${{SECRET_{number}}}")
    (file := tmp_path / "p.yaml").write_text(yaml.safe_dump(data))
    document = read_document(file, env)
    hidden([repr(document), str(document)])
    text = document.data["models"][0]["api_key"]
    assert isinstance(text, EnvText)
    assert (repr(text), text) == ("'${SECRET_5}'", PLACES["models", 0, "api_key"])
    hidden([repr(document.data)])
    hidden(shown(load_settings(file, env)))


wrong = st.one_of(
    st.sampled_from([f"{MARK} \n", f"{MARK}\0", f"ftp://{MARK}", f"http://u:{MARK}@h", "", f"{MARK}-é" * 1_000]),
    st.sampled_from([[MARK], {MARK: 1}, {"x": MARK}, (MARK,), None, True, 5, 1.5, float("nan")]),
)
anywhere = st.sampled_from(
    [path[:end] for path in PLACES for end in range(1, len(path) + 1)]
    + [
        ("models", 0, "endpoint"),
        ("models", 1, "endpoints", 0, "url"),
        ("tracing", "endpoint"),
        ("auth", "jwt", "secret"),
    ]
)


@given(st.lists(st.tuples(anywhere, wrong), min_size=1, max_size=3), st.booleans())
def test_errors_show_none_whatever_is_wrong_and_wherever(changes, misspelt):
    """Also pydantic's own errors, which quote their input unless told not to, and ours, which are made of them."""
    data = full()
    for path, value in changes:
        if value == {MARK: 1} and path not in PLACES:
            continue  # the name of a setting or header is no secret, but for one that stands in a secret's place
        try:
            put(data, path, copy.deepcopy(value))
        except (TypeError, KeyError, IndexError):  # what is around it is no mapping any more
            continue
    if misspelt and isinstance(data.get("auth"), dict):
        data["auth"]["admin_keey"] = MARK
    try:
        hidden(shown(Settings.parse(data)))
    except ConfigError as error:
        hidden(told(error))
    try:
        Settings.model_validate(data)
    except ValidationError as error:
        if not any(value == {MARK: 1} for _, value in changes):  # it names keys; ours does not beside secrets
            hidden(told(error))


@given(st.sampled_from([p[2:] for p in PLACES if p[0] == "models"]), wrong)
def test_a_model_that_is_added_shows_none(path, value):
    definition = copy.deepcopy(full()["models"][1 if path[0] == "endpoints" else 0])
    for env in ({}, {"NAME": MARK}):
        put(definition, path, "${NAME}" if env else value)
        try:
            hidden(shown(parse_definition(copy.deepcopy(definition), env)))
        except ConfigError as error:
            hidden(told(error))


def test_a_body_that_is_wrong_is_not_quoted():
    class Order(Body):
        amount: int

    try:
        TypeAdapter(Order).validate_python({"amount": MARK, MARK.lower(): MARK})
    except ValidationError as error:
        hidden(told(error))
    else:
        raise AssertionError


def test_the_search_finds_what_is_not_hidden():
    assert any(MARK in text for text in shown({"a": (MARK,)}))
    assert not any(MARK in text for text in shown(SecretStr(MARK)))
