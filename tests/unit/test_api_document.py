"""The OpenAPI document and what it is made of: every route is told, and bodies are told as they are checked."""

from __future__ import annotations

import re

import pytest
from api_document import parsed
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from serving.api.bodies import ChatRequest, CompletionRequest, EmbeddingRequest
from serving.api.document import ROUTES
from serving.errors import InvalidRequest
from serving.request_headers import Hints
from serving.wire import parse_call


def test_every_route_is_told_and_no_other():
    from serving.handlers import Handlers

    routes = Handlers.routes(Handlers.__new__(Handlers))
    served = sorted((route.method, re.sub(r":[^}]+}", "}", route.path)) for route in routes)
    assert sorted((route.method, route.path) for route in ROUTES) == served
    document = parsed()
    told = sorted((method.upper(), path) for path, item in document["paths"].items() for method in item)
    assert told == served
    assert document["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere_and_every_schema_is_sound():
    document = parsed()
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        Draft202012Validator.check_schema(schema)
        assert not name.startswith("_"), name
    references = set(re.findall(r"'#/components/schemas/([^']+)'", str(document)))
    assert references == set(schemas)
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)


def test_ranges_are_told_wherever_they_are():
    schemas = parsed()["components"]["schemas"]
    assert schemas["PriceSettings"]["properties"]["per_call"]["maximum"] == 1e6
    (samples, _) = schemas["ModelAddition"]["properties"]["samples"]["anyOf"]
    assert samples == {"type": "integer", "minimum": 1, "maximum": 1_000_000}
    assert re.findall(r"'(ge|gt|le|lt)':", str(schemas)) == []


def test_what_wants_a_key_is_told_so():
    for route in ROUTES:
        operation = parsed()["paths"][route.path][route.method.lower()]
        assert operation["security"] == ([] if route.access == "page" else [{"key": []}])
        statuses = set(operation["responses"])
        assert ("401" in statuses) == (route.access != "page")
        assert ("403" in statuses) == (route.access != "page")
        assert "500" in statuses


CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
BODIES = [
    ("chat/completions", ChatRequest, CHAT, True),
    ("chat/completions", ChatRequest, CHAT | {"messages": []}, False),
    ("chat/completions", ChatRequest, CHAT | {"messages": "hello"}, False),
    ("chat/completions", ChatRequest, CHAT | {"messages": [{"content": "x"}]}, False),
    ("chat/completions", ChatRequest, CHAT | {"messages": [{"role": ""}]}, False),
    ("chat/completions", ChatRequest, CHAT | {"messages": [{"role": "user", "content": 5}]}, False),
    ("chat/completions", ChatRequest, CHAT | {"messages": [{"role": "user", "content": [{"text": 5}]}]}, True),
    ("chat/completions", ChatRequest, CHAT | {"messages": [{"role": "user", "content": ["x"]}]}, False),
    ("chat/completions", ChatRequest, CHAT | {"messages": [{"role": "user", "content": None, "more": 1}]}, True),
    ("chat/completions", ChatRequest, CHAT | {"stream": 1}, False),
    ("chat/completions", ChatRequest, CHAT | {"stream": None, "stream_options": None, "tools": None}, True),
    ("chat/completions", ChatRequest, CHAT | {"stream_options": []}, False),
    ("chat/completions", ChatRequest, CHAT | {"tools": {"a": 1}}, False),
    ("chat/completions", ChatRequest, CHAT | {"response_format": "json"}, False),
    ("chat/completions", ChatRequest, CHAT | {"model": ""}, False),
    ("chat/completions", ChatRequest, CHAT | {"model": "x" * 257}, False),
    ("chat/completions", ChatRequest, CHAT | {"temperature": "hot", "n": [1]}, True),
    ("completions", CompletionRequest, {"model": "auto", "prompt": "x"}, True),
    ("completions", CompletionRequest, {"model": "auto", "prompt": ["x", "y"]}, True),
    ("completions", CompletionRequest, {"model": "auto", "prompt": [1, 2]}, True),
    ("completions", CompletionRequest, {"model": "auto", "prompt": [[1, 2]]}, True),
    ("completions", CompletionRequest, {"model": "auto", "prompt": []}, False),
    ("completions", CompletionRequest, {"model": "auto", "prompt": 7}, False),
    ("completions", CompletionRequest, {"model": "auto", "prompt": [True]}, False),
    ("completions", CompletionRequest, {"model": "auto", "prompt": [None]}, False),
    ("completions", CompletionRequest, {"model": "auto"}, False),
    ("embeddings", EmbeddingRequest, {"model": "auto", "input": "x"}, True),
    ("embeddings", EmbeddingRequest, {"model": "auto", "input": "x", "stream": "yes"}, False),
]


@pytest.mark.parametrize(("kind", "model", "body", "sound"), BODIES)
def test_a_body_is_told_as_it_is_checked(kind, model, body, sound):
    def checked():
        parse_call(kind, dict(body), Hints(), 2_000)

    schema = {"$ref": f"#/components/schemas/{model.__name__}", "components": parsed()["components"]}
    assert Draft202012Validator(schema).is_valid(body) == sound
    if sound:
        checked()
        model.model_validate(body)
    else:
        with pytest.raises(InvalidRequest):
            checked()
        with pytest.raises(ValidationError):
            model.model_validate(body)
