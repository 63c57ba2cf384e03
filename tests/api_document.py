"""The service's own OpenAPI document, for tests that hold real answers to it."""

from __future__ import annotations

import re
from functools import cache

import orjson
from jsonschema import Draft202012Validator

from serving.api.document import ROUTES, document


@cache
def parsed():
    return orjson.loads(document("test"))


def told(method, path, status, body=None, content_type="application/json"):
    """What the document says against an answer; nothing where it is as told."""
    found = _route(method, path.partition("?")[0])
    if found is None:
        return [f"{method} {path} is no route"]
    responses = parsed()["paths"][found][method.lower()]["responses"]
    if str(status) not in responses:
        return [f"{method} {found} does not tell of {status}"]
    content = responses[str(status)].get("content", {})
    if content_type not in content:
        return [f"{method} {found} does not tell of {content_type} with {status}"]
    if content_type != "application/json":
        return []
    schema = content[content_type]["schema"] | {"components": parsed()["components"]}
    errors = Draft202012Validator(schema).iter_errors(body)
    return [f"{method} {found}: {'/'.join(map(str, error.path))}: {error.message[:300]}" for error in errors]


def _route(method, path):
    """The path of the table that fits; where several do, the one with most of it spelled out."""
    fits = [
        route.path
        for route in ROUTES
        if route.method == method and re.fullmatch(re.sub(r"{\w+}", ".+", route.path), path)
    ]
    return max(fits, key=lambda fit: len(re.sub(r"{\w+}", "", fit)), default=None)
