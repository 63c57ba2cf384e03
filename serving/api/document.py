"""The OpenAPI document, made of the tables of routes and of the pydantic models that they name.

What every route of a kind answers (no key, no such path, an unexpected error) is added here, with the codes that
`http_errors` knows. It must never know a particular route.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from openapi_pydantic import (
    Components,
    Header,
    Info,
    MediaType,
    OpenAPI,
    PathItem,
    Reference,
    RequestBody,
    Response,
    Schema,
    SecurityScheme,
    Tag,
)
from openapi_pydantic import Operation as Described
from openapi_pydantic import Parameter as DescribedParameter
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class

from serving.api.admin_routes import ADMIN_ROUTES
from serving.api.answers import ErrorBody
from serving.api.caller_routes import CALLER_ROUTES
from serving.api.operation import JSON, Answer, Binary, Operation, Parameter, Text
from serving.http_errors import codes_by_status

__all__ = ["ROUTES", "document"]

ROUTES: Final = (*CALLER_ROUTES, *ADMIN_ROUTES)
_ABOUT: Final = """
An adaptive router for inference traffic. Every error has OpenAI's body. Bodies are read as JSON whatever Content-Type
says, and must not be compressed. What takes query parameters refuses unknown ones (400); other routes ignore them.
HEAD answers as GET does, without the body, but for /admin/live; any other method of a path that exists is 405 with
Allow. A service without an `auth` section asks for no key, and takes /admin from its own machine alone.
"""
_TAGS: Final = {
    "Inference": "OpenAI's shapes, and any other model.",
    "Feedback": "Decisions only, outcomes, quality.",
    "Watching": "Open on loopback, else as configured; the pages' files.",
    "Models": "Models and how good they are. With the admin key.",
    "Keys and budgets": "Who may call, and what it costs. With the admin key.",
    "Traffic": "Pools, canaries, experiments, the cache. With the admin key.",
    "Operating": "Configuration, events, decisions, snapshot, drain. With the admin key.",
}
_MEANING: Final = {
    400: "The request breaks the contract; `param` says where.",
    401: "No key, or one that is not known.",
    402: "A hard budget has no room for the call.",
    403: "Not for this caller.",
    404: "There is nothing of this name or id.",
    405: "The path has other methods; see Allow.",
    409: "Something else was recorded, or the state does not allow it; or the endpoint's own refusal.",
    410: "Feedback came after its horizon.",
    413: "The body, or what was asked for, is too large.",
    415: "The endpoint's own refusal.",
    422: "Fields are wrong: `problems` has each with its path; or limits that cannot be met.",
    429: "Too many requests or tokens, here or at the endpoint.",
    500: "Nobody foresaw this; the service's log says more.",
    502: "The endpoint failed.",
    503: "Not now; try again after Retry-After.",
    504: "No answer in time, or none in the cache.",
}
_BOUNDS: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_EVENTS: Final = "Server-sent events; of completions each one's data is a chunk as JSON, and the last is [DONE]."
_IN_PATH: Final = re.compile(r"{(\w+)}")
_EXAMPLES: Final = {"name": "auto", "pool": "auto", "file": "index.css"}


def document(version: str) -> bytes:
    """The document as JSON; takes tenths of a second, so make it once."""
    paths: dict[str, PathItem] = {}
    for operation in ROUTES:
        item = paths.setdefault(operation.path, PathItem())
        setattr(item, operation.method.lower(), _described(operation))
    key = SecurityScheme(type="http", scheme="bearer", description="A caller's key or token, or the admin key.")
    api = OpenAPI(
        openapi="3.1.1",
        info=Info(title="Pointsman", version=version, description=" ".join(_ABOUT.split())),
        paths=paths,
        components=Components(securitySchemes={"key": key}),
        tags=[Tag(name=name, description=text) for name, text in _TAGS.items()],
    )
    made = construct_open_api_with_schema_class(api).model_dump(mode="json", by_alias=True, exclude_none=True)
    made["components"]["schemas"] = _in_json_schemas_words(made["components"]["schemas"])
    return orjson.dumps(made)


def _in_json_schemas_words(value: Any) -> Any:
    """Bounds of a part of a union, which pydantic calls by its own names where a validator stands before them."""
    if isinstance(value, list):
        return [_in_json_schemas_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    bounded = isinstance(value.get("type"), str)
    return {_BOUNDS.get(name, name) if bounded else name: _in_json_schemas_words(item) for name, item in value.items()}


def _described(operation: Operation) -> Described:
    responses: dict[str, Response | Reference] = {str(a.status): _answer(a) for a in operation.answers}
    responses |= {str(status): _error(status) for status in sorted(_errors_of(operation))}
    name = re.sub(r"\W+", "_", f"{operation.method.lower()} {operation.path}").strip("_")
    in_path = [_in_path(found) for found in _IN_PATH.findall(operation.path)]
    body = operation.body
    return Described(
        operationId=name,
        summary=operation.summary,
        description=operation.description or None,
        tags=[operation.tag],
        parameters=[*in_path, *map(_parameter, operation.parameters)] or None,
        requestBody=None
        if body is None
        else RequestBody(content={JSON: MediaType(schema=_of(body))}, required=operation.body_required),
        responses=responses,
        security=[] if operation.access == "page" else [{"key": []}],
    )


def _errors_of(operation: Operation) -> set[int]:
    statuses = {*operation.errors, 500}
    if operation.access != "page":
        statuses |= {401, 403, 503}  # 403: pages of other sites; 503: the keys of tokens cannot be read
    if operation.body is not None:
        statuses |= {400, 413}
    if "{" in operation.path:
        statuses |= {404, 405}
    return statuses


def _answer(answer: Answer) -> Response:
    content = {JSON if isinstance(body, type) else body.media: MediaType(schema=_of(body)) for body in answer.body}
    return Response(description=answer.description, content=content or None, headers=_headers(answer.headers))


def _error(status: int) -> Response:
    codes = ", ".join(f"`{code}`" for code in codes_by_status().get(status, ()))
    headers = {401: {"WWW-Authenticate": "Bearer."}, 405: {"Allow": "The path's methods."}}.get(status, {})
    if status in (429, 503):
        headers = {"Retry-After": "Seconds to wait."}
    return Response(
        description=_MEANING[status] + (f" Codes: {codes}." if codes else ""),
        content={JSON: MediaType(schema=_of(ErrorBody))},
        headers=_headers(headers),
    )


def _headers(named: Mapping[str, str]) -> dict[str, Any] | None:
    return {name: Header(description=text, schema=_text()) for name, text in named.items()} or None


def _parameter(given: Parameter) -> DescribedParameter:
    schema = {"type": "array", "items": given.schema} if given.many else given.schema
    return DescribedParameter.model_validate(
        {
            "name": given.name,
            "in": given.place,
            "description": given.description,
            "required": given.required,
            "schema": schema,
        }
    )


def _in_path(name: str) -> DescribedParameter:
    example = _EXAMPLES.get(name)
    shown = {} if example is None else {"example": example}
    return DescribedParameter.model_validate(
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} | shown
    )


def _of(body: type[Any] | Text | Binary) -> Any:
    if isinstance(body, Text):
        # Whether a stream's schema is that of its text or of one event is a matter of taste: it says neither.
        return Schema.model_validate({"description": _EVENTS}) if body.media == "text/event-stream" else _text()
    if isinstance(body, Binary):
        return _text(contentMediaType=body.media)
    return PydanticSchema.model_validate({"schema_class": body})


def _text(**more: str) -> Schema:
    return Schema.model_validate({"type": "string", **more})
