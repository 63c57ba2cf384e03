"""Which requests are one, and what `Cache-Control` allows."""

from __future__ import annotations

import pytest

from serving.access.principal import Principal
from serving.errors import InvalidRequest
from serving.request_headers import Hints
from serving.traffic.cache_key import CacheControl, cache_key, deterministic, read_cache_control
from serving.wire import parse_call

SECRET = b"s" * 32
ADA = Principal(user="ada", team="search", tier="paid", key_id="k1")


def call(kind="chat/completions", hints=None, **more):
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "temperature": 0} | more
    return parse_call(kind, body, hints or Hints(), 10)


def key(who=ADA, scope="tenant", models=b"a,b", secret=SECRET, **more):
    return cache_key(secret, call(**more), who, scope, models)


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "u1"},
        {"who": Principal(user="bob", team="search", tier="paid", key_id="k2")},
    ],
)
def test_how_it_is_sent_and_who_of_the_tenant_asks_changes_nothing(more):
    assert key(**more) == key()


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hello "}]},
        {"temperature": 0.1},
        {"seed": 1},
        {"max_tokens": 5},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"some_new_parameter": 1},
        {"model": "other"},
        {"models": b"a"},
        {"hints": Hints(category="code")},
        {"hints": Hints(vector=(1.0,))},
        {"who": Principal(user="ada", team="ads", tier="paid", key_id="k1")},
        {"who": Principal(user="ada", team="search", tier="free", key_id="k1")},
        {"who": Principal(user="search", tier="paid")},
        {"who": Principal()},
        {"secret": b"t" * 32},
    ],
)
def test_whatever_changes_an_answer_or_who_may_see_it_is_in_the_key(more):
    assert key(**more) != key()


def test_a_user_or_everybody_can_be_the_scope():
    bob = Principal(user="bob", team="search", tier="paid")
    assert key(scope="user") != key(scope="user", who=bob)
    unnamed = [key(scope="user", who=Principal(team="search", tier="paid", key_id=name)) for name in ("k1", "k2")]
    assert unnamed[0] != unnamed[1]
    other = Principal(user="eve", team="ads", tier="paid")
    assert key(scope="all") == key(scope="all", who=other)
    assert key(scope="all") != key(scope="all", who=Principal(user="eve", team="ads", tier="free"))


def test_the_order_of_a_schemas_fields_counts_and_that_of_the_bodys_does_not():
    one, two = {"a": {}, "b": {}}, {"b": {}, "a": {}}
    assert key(response_format={"type": "json_schema", "p": one}) != key(
        response_format={"type": "json_schema", "p": two}
    )
    assert key(seed=1, max_tokens=2) == key(max_tokens=2, seed=1)


def test_what_the_upstream_is_to_store_has_no_key():
    assert key(store=True) is None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.7}, False),
        ({"temperature": False}, False),
        ({"temperature": None}, False),
        ({"temperature": 1, "seed": 7}, True),
    ],
)
def test_one_answer_is_asked_for_by_temperature_0_or_a_seed(more, expected):
    assert deterministic(call(**more)) is expected


def test_embeddings_ask_for_one_answer():
    assert deterministic(parse_call("embeddings", {"model": "auto", "input": "x"}, Hints(), 10))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, CacheControl()),
        ("", CacheControl()),
        ("something-new=3", CacheControl()),
        ("no-store", CacheControl(read=False, keep=False)),
        ("No-Cache", CacheControl(read=False)),
        ("max-age=0", CacheControl(read=False, max_age_s=0.0)),
        ("max-age=60, only-if-cached", CacheControl(only_if_cached=True, max_age_s=60.0)),
    ],
)
def test_the_directives_that_are_known(header, expected):
    assert read_cache_control(header) == expected


@pytest.mark.parametrize(
    "header", ["max-age", "max-age=", "max-age=-1", "max-age=1.5", "max-age=²", "max-age=" + "9" * 11]
)
def test_an_age_that_is_no_number_of_seconds_is_refused(header):
    with pytest.raises(InvalidRequest) as caught:
        read_cache_control(header)
    assert (caught.value.param, caught.value.code) == ("cache-control", "invalid_header")
