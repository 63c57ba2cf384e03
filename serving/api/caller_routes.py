"""What is said of the routes for callers and of those that watch the service: the table, beside their handlers.

Values alone; every route of `handlers.Handlers` has an entry here or in `admin_routes`, and a test says so.
"""

from __future__ import annotations

from typing import Final

from serving.api.answers import (
    AnyAnswer,
    CompletionAnswer,
    Health,
    ModelList,
    OutcomeReceipt,
    RewardReceipt,
    RoutedAnswer,
)
from serving.api.bodies import AnyBody, ChatRequest, CompletionRequest, EmbeddingRequest, Rewards, RouteRequest
from serving.api.operation import Answer, Operation, Parameter, Text
from serving.feedback import OutcomeItem

__all__ = ["CALLER_ROUTES"]


def _header(name: str, description: str, **schema: object) -> Parameter:
    return Parameter(name, description, {"type": "string", **schema}, place="header")


_PAIRS: Final = r"^[^=,]+=[^=,]+(,[^=,]+=[^=,]+){0,9}$"
_NUMBER: Final = {"type": "number", "exclusiveMinimum": 0}
_NUMBERS: Final = {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 64}
_CALL_HEADERS: Final = (
    _header("x-pointsman-category", "A task label: the best feature there is.", minLength=1, maxLength=64),
    _header("x-pointsman-tags", "Up to 10 pairs name=value with commas between them; they are logged.", pattern=_PAIRS),
    _header("x-pointsman-max-cost-usd", "What this call may cost, with 95 % confidence.", **_NUMBER),
    _header("x-pointsman-max-latency-s", "What this call may take, with 95 % confidence.", **_NUMBER),
    _header("x-pointsman-context", "Features of your own, for pools that have columns for them.", **_NUMBERS),
    _header("x-pointsman-session", "Keeps a conversation on its model.", minLength=1, maxLength=256),
    _header("x-pointsman-timeout-s", "Shortens the call's deadline, in seconds.", **_NUMBER, maximum=3600),
)
_CACHE: Final = _header("Cache-Control", "no-store, no-cache, max-age=…, only-if-cached: see the cache.")
_DECISION: Final = {
    "x-pointsman-decision-id": "The decision's id, which feedback refers to.",
    "x-pointsman-model": "The model that answered.",
    "x-pointsman-mode": "bandit, weighted, canary, sticky, pinned or cached.",
    "x-pointsman-limits": "least-violation, where no model met the limits.",
}
_CALL: Final = _DECISION | {
    "x-pointsman-attempts": "How many attempts it took.",
    "x-pointsman-cost-usd": "What it cost; absent when unknown, and with a stream.",
    "x-pointsman-overhead-ms": "Time not spent waiting for the endpoint; absent with a stream.",
    "x-pointsman-saved-usd": "What an answer from the cache had cost.",
    "x-pointsman-shadow-id": "The decision of a shadow that accompanies this call.",
    "x-pointsman-budget-remaining-usd": "The least that is left in the caller's hard budgets.",
    "x-pointsman-budget-warning": "Budgets of the caller that are nearly spent.",
    "x-ratelimit-limit-requests": "Requests allowed in a minute; there are the same headers of tokens.",
    "x-ratelimit-remaining-requests": "Requests left of them.",
    "x-ratelimit-reset-requests": "When all of them are there again.",
    "Age": "Seconds since an answer from the cache was made.",
}
_REFUSALS: Final = (402, 403, 404, 409, 413, 415, 422, 429, 502, 503, 504)
_ALSO_A_STREAM: Final = (CompletionAnswer, Text("text/event-stream"))


def _inference(path: str, summary: str, body: type, answer: Answer) -> Operation:
    headers = (*_CALL_HEADERS, _CACHE)
    return Operation(
        "POST", path, summary, (answer,), "Inference", "caller", body, parameters=headers, errors=_REFUSALS
    )


CALLER_ROUTES: Final = (
    _inference(
        "/v1/chat/completions",
        "A chat completion, by a pool or one model",
        ChatRequest,
        Answer("The endpoint's answer; with `stream: true` its events.", _ALSO_A_STREAM, headers=_CALL),
    ),
    _inference(
        "/v1/completions",
        "A text completion, by a pool or one model",
        CompletionRequest,
        Answer("The endpoint's answer; with `stream: true` its events.", _ALSO_A_STREAM, headers=_CALL),
    ),
    _inference(
        "/v1/embeddings",
        "Embeddings, by a pool or one model",
        EmbeddingRequest,
        Answer("The endpoint's answer.", (CompletionAnswer,), headers=_CALL),
    ),
    _inference(
        "/v1/infer/{pool}",
        "A call of any other kind of model (kind http), by a pool or one model",
        AnyBody,
        Answer("The endpoint's answer.", (AnyAnswer,), headers=_CALL),
    ),
    Operation(
        "GET",
        "/v1/models",
        "Pools and models",
        (Answer("What the caller may use.", (ModelList,)),),
        "Inference",
        "caller",
    ),
    Operation(
        "POST",
        "/v1/route",
        "A decision only, for a call that the caller makes itself",
        (Answer("The decision.", (RoutedAnswer,), headers=_DECISION),),
        "Feedback",
        "caller",
        RouteRequest,
        parameters=_CALL_HEADERS,
        errors=(403, 404, 422, 503),
    ),
    Operation(
        "POST",
        "/outcome",
        "What became of a call that the caller made itself",
        (Answer("It is recorded, and durable.", (OutcomeReceipt,)),),
        "Feedback",
        "caller",
        OutcomeItem,
        errors=(404, 409, 410, 422, 503),
    ),
    Operation(
        "POST",
        "/reward",
        "Feedback: a quality, metrics, or both, for one decision or up to 1,000",
        (Answer("What became of it; what is recorded is durable.", (RewardReceipt,)),),
        "Feedback",
        "caller",
        Rewards,
        errors=(404, 409, 410, 422, 503),
    ),
    Operation("GET", "/healthz", "The process is alive", (Answer("It is.", (Health,)),), "Watching", "open"),
    Operation(
        "GET",
        "/readyz",
        "Calls are taken; red while starting, draining, stopping, or without a working store",
        (Answer("They are.", (Health,)),),
        "Watching",
        "open",
        errors=(503,),
    ),
    Operation("GET", "/metrics", "Prometheus's text format", (Answer("Metrics.", (Text(),)),), "Watching", "open"),
    Operation(
        "GET",
        "/openapi.json",
        "This document",
        (Answer("The document (OpenAPI 3.1).", (AnyAnswer,)), Answer("It has not changed.", status=304)),
        "Watching",
        "open",
    ),
    Operation(
        "GET", "/docs", "This document, to explore", (Answer("A page.", (Text("text/html"),)),), "Watching", "open"
    ),
    Operation(
        "GET",
        "/docs/{file}",
        "The page's files",
        (
            Answer("A file.", (Text("text/css"), Text("text/javascript"), Text("image/png"))),
            Answer("It has not changed.", status=304),
        ),
        "Watching",
        "open",
    ),
    Operation(
        "GET",
        "/dashboard",
        "The dashboard's page, without any data",
        (Answer("A page.", (Text("text/html"),)),),
        "Watching",
        "page",
    ),
    Operation(
        "GET",
        "/dashboard/{file}",
        "The dashboard's scripts and styles",
        (
            Answer("A file.", (Text("text/css"), Text("text/javascript"), Text("image/svg+xml"))),
            Answer("It has not changed.", status=304),
        ),
        "Watching",
        "page",
    ),
)
