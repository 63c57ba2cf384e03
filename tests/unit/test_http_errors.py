"""Every error of the service as HTTP: its status, its body in OpenAI's shape, its headers, its metric."""

from __future__ import annotations

import inspect
import logging
from dataclasses import fields

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.test_utils import TestClient, TestServer

import serving.errors
import serving.log_errors
from serving import store
from serving.access.keys import KeyRing
from serving.access.tiers import Tiers
from serving.admission import Admission, CrossSite
from serving.errors import (
    BudgetExhausted,
    CallerGone,
    Conflict,
    DeadlineExceeded,
    ExpiredDecision,
    Forbidden,
    InvalidFields,
    InvalidRequest,
    LimitsNotMet,
    NotAllowed,
    NotCached,
    NothingAvailable,
    NothingFeasible,
    Overloaded,
    RateLimited,
    ServiceError,
    Unauthorized,
    Unavailable,
    UnknownDecision,
    UnknownKey,
    UnknownModel,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from serving.handlers import Handlers
from serving.http_errors import described, error_middleware, without_request_bytes
from serving.lifecycle import Life
from serving.log_errors import LogTooLarge, LogUnavailable
from serving.metrics import Metrics
from serving.parts import Parts
from serving.settings import AuthSettings, ServerSettings
from serving.traffic.drain import Drain


def _busy():
    error = UpstreamError("m", "the endpoint answered 429", 429)
    error.retry_after = "17"
    return error


CASES = [
    (InvalidRequest("bad", "x", "why"), 400, "invalid_request_error", "x", "why"),
    (InvalidFields([{"param": "x", "message": "bad"}]), 422, "invalid_request_error", "x", "invalid_field"),
    (Unauthorized("no"), 401, "authentication_error", None, "invalid_api_key"),
    (Forbidden("no"), 403, "permission_error", None, "admin_only"),
    (CrossSite("no"), 403, "permission_error", None, "cross_site"),
    (NotAllowed("not yours"), 403, "permission_error", "model", "model_not_allowed"),
    (NotCached(), 504, "invalid_request_error", None, "not_cached"),
    (UnknownKey("k"), 404, "invalid_request_error", None, "key_not_found"),
    (BudgetExhausted("spent", {"budget": "one"}), 402, "insufficient_quota", None, "budget_exhausted"),
    (RateLimited("too fast", 1.5, {"x": "y"}), 429, "rate_limit_error", None, "rate_limit_exceeded"),
    (Overloaded("too much", 0.2), 503, "service_unavailable_error", None, "overloaded"),
    (NothingAvailable("all down", [], 3.0), 503, "service_unavailable_error", None, "no_model_available"),
    (DeadlineExceeded(5.0, []), 504, "timeout_error", None, "deadline_exceeded"),
    (UnknownModel("autp", ["auto"]), 404, "invalid_request_error", "model", "model_not_found"),
    (NothingFeasible("none"), 503, "service_unavailable_error", None, "no_feasible_model"),
    (LimitsNotMet("auto", {"a": 0.5, "b": None}), 422, "invalid_request_error", None, "limits_not_met"),
    (UnknownDecision("pm-1"), 404, "invalid_request_error", "decision_id", "decision_not_found"),
    (ExpiredDecision("pm-1", 60), 410, "invalid_request_error", "decision_id", "decision_expired"),
    (Conflict("other", {"quality": 1.0}), 409, "invalid_request_error", None, "conflicting_record"),
    (LogTooLarge("outcomes", 4, 3), 413, "invalid_request_error", None, "log_too_large"),
    (LogUnavailable("in use"), 503, "service_unavailable_error", None, "log_unavailable"),
    (Unavailable("no store"), 503, "service_unavailable_error", None, "unavailable"),
    (UpstreamError("m", "failed", 500), 502, "upstream_error", None, "upstream_error"),
    (_busy(), 429, "upstream_error", None, "upstream_rate_limited"),
    (UpstreamTimeout("m", 1.0), 504, "upstream_error", None, "upstream_timeout"),
    (UpstreamRefused("m", 400, {"message": "no"}), 400, "invalid_request_error", None, "upstream_refused"),
    (store.StoreFull(1, 1), 503, "service_unavailable_error", None, "overloaded"),
    (store.StoreClosed(), 503, "service_unavailable_error", None, "store_unavailable"),
    (store.StoreFailed("it", OSError("disk")), 503, "service_unavailable_error", None, "store_unavailable"),
]


@pytest.mark.parametrize(("error", "status", "type_", "param", "code"), CASES, ids=lambda v: type(v).__name__)
def test_each_error_has_its_status_and_body(error, status, type_, param, code):
    got, body, headers = described(error)
    told = body["error"]
    assert (got, told["type"], told["param"], told["code"]) == (status, type_, param, code)
    assert told["message"]
    assert ("Retry-After" in headers) == (status in (429, 503))
    assert ("WWW-Authenticate" in headers) == (status == 401)


def test_no_error_of_the_service_was_forgotten():
    """Nobody is left to be told of a caller who left."""
    modules = (serving.errors, serving.log_errors)
    classes = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    kinds = {kind for kind in classes if issubclass(kind, ServiceError)}
    assert kinds - {type(case[0]) for case in CASES} == {ServiceError, CallerGone}


def test_an_error_that_is_not_ours_is_not_described():
    with pytest.raises(TypeError, match="KeyError"):
        described(KeyError("secret"))


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"message": "m", "type": "t", "param": "p", "code": "c"}, {"type": "t", "param": "p", "code": "c"}),
        ({"message": "m", "type": None, "code": 400}, {"type": "invalid_request_error", "code": "upstream_refused"}),
        ({"message": {"deep": 1}}, {"message": "{'deep': 1}", "param": None}),
        ({}, {"message": "m: request refused"}),
    ],
)
def test_a_refusal_is_the_endpoints_own_words_where_they_have_the_right_form(own, told):
    status, body, _ = described(UpstreamRefused("m", 422, own))
    assert status == 422
    assert body["error"] | told == body["error"]
    assert set(body["error"]) >= {"message", "type", "param", "code"}


async def _answers(handler, metrics=None, path="/"):
    app = web.Application(client_max_size=10, middlewares=[error_middleware(metrics or Metrics(), 10)])
    app.router.add_route("*", "/", handler)
    async with TestClient(TestServer(app)) as client, client.post(path, data=b"x" * 20) as response:
        return response.status, await response.json(), response.headers


async def test_an_error_nobody_foresaw_shows_nothing_and_is_counted(caplog):
    async def handler(request):
        raise KeyError("secret")

    metrics = Metrics()
    status, body, _ = await _answers(handler, metrics)
    assert (status, body["error"]["code"], body["error"]["type"]) == (500, "internal_error", "server_error")
    assert "secret" not in str(body)
    assert metrics.registry.get_sample_value("pointsman_unexpected_errors_total") == 1
    assert "unexpected error in POST /" in caplog.text


async def test_aiohttps_own_errors_have_the_same_shape():
    async def read(request):
        await request.read()

    assert (await _answers(read))[:2] == (
        413,
        {
            "error": {
                "message": "the body is larger than 10 bytes",
                "type": "invalid_request_error",
                "param": None,
                "code": "body_too_large",
            }
        },
    )
    status, body, _ = await _answers(read, path="/nowhere")
    assert (status, body["error"]["code"]) == (404, "http_404")


async def test_what_is_no_error_passes():
    async def moved(request):
        raise web.HTTPNotModified

    app = web.Application(middlewares=[error_middleware(Metrics(), 10)])
    app.router.add_get("/", moved)
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        assert response.status == 304


async def test_an_endpoints_words_are_no_label_of_a_metric():
    async def handler(request):
        raise UpstreamRefused("m", 400, {"message": "m", "code": "made_up_for_this_call"})

    metrics = Metrics()
    assert (await _answers(handler, metrics))[1]["error"]["code"] == "made_up_for_this_call"
    value = metrics.registry.get_sample_value("pointsman_rejected_requests_total", {"code": "upstream_refused"})
    assert value == 1
    assert b"made_up" not in metrics.render()


def test_what_a_caller_sent_is_not_logged_when_it_cannot_be_parsed(caplog):
    logger = logging.getLogger("test.aiohttp")
    logger.addFilter(without_request_bytes)
    for error in (BadHttpMessage("Authorization: Bearer secret"), web.RequestPayloadError("secret"), KeyError("kept")):
        logger.error("Error handling request from %s", "::1", exc_info=error)
    assert "secret" not in caplog.text
    assert caplog.text.count("cannot be parsed") == 2
    assert "kept" in caplog.text


@pytest.mark.parametrize(
    ("host", "public", "status"), [("127.0.0.1", False, 200), ("192.0.2.1", False, 401), ("192.0.2.1", True, 200)]
)
async def test_operators_need_a_key_unless_only_this_machine_can_ask_or_the_configuration_says_so(host, public, status):
    """The configured address decides, not the one a request comes from."""
    auth = AuthSettings.model_validate({"keys": [{"key": "first-key-1", "user": "ada"}]})
    settings = ServerSettings(host=host, metrics_public=public)
    metrics, learner = Metrics(), _Healthy()
    unused = dict.fromkeys(field.name for field in fields(Parts)) | {"drain": Drain(None, lambda: 0)}
    ring = KeyRing(auth.keys)
    tiers = Tiers((), ring.allowed)
    admission = Admission(auth, ring, tiers, clock=lambda: 1e9)
    used = {"server": settings, "admission": admission, "tiers": tiers, "learner": learner, "metrics": metrics}
    life = Life(settings)
    life.ready = True
    handlers = Handlers(Parts(**unused | used), life, None)
    app = web.Application(middlewares=[error_middleware(metrics, 10)])
    app.add_routes(handlers.routes())
    async with TestClient(TestServer(app)) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
            async with client.get(path) as response:
                assert response.status == status
            async with client.get(path, headers={"Host": "evil.example"}) as response:
                assert response.status == (200 if public else 401)
            async with client.get(path, headers={"Authorization": "Bearer first-key-1"}) as response:
                assert response.status == 200
        learner.healthy = False
        async with client.get("/readyz", headers={"Authorization": "Bearer first-key-1"}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "unavailable")


class _Healthy:
    healthy = True
