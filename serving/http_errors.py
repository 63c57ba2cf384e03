"""The one place where errors become HTTP: status, OpenAI's error body, headers.

{"error": {"message", "type", "param", "code"}}, and "problems" where several fields are wrong at once
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from serving.admission import CrossSite
from serving.config_errors import ConfigRefused
from serving.errors import (
    BudgetExhausted,
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
from serving.log_errors import LogTooLarge, LogUnavailable
from serving.metrics import Metrics
from serving.store import StoreError, StoreFull
from serving.telemetry.about import ABOUT, About
from serving.traffic.drain import Draining
from serving.traffic.faults import UnknownFault

__all__ = ["CALLER_HEADERS", "codes_by_status", "described", "error_middleware", "without_request_bytes"]

CALLER_HEADERS = "pointsman.headers"  # where a request keeps what its caller is to be told, with an error too
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = logging.getLogger("pointsman.http")

# Most specific first: the first class that fits counts. (status, type, code; None: the error's own code)
_STATUSES: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (InvalidFields, 422, "invalid_request_error", None),
    (InvalidRequest, 400, "invalid_request_error", None),
    (Unauthorized, 401, "authentication_error", "invalid_api_key"),
    (Forbidden, 403, "permission_error", "admin_only"),
    (CrossSite, 403, "permission_error", "cross_site"),
    (UnknownKey, 404, "invalid_request_error", "key_not_found"),
    (UnknownFault, 404, "invalid_request_error", "fault_not_found"),
    (NotAllowed, 403, "permission_error", "model_not_allowed"),
    (BudgetExhausted, 402, "insufficient_quota", "budget_exhausted"),
    (RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Overloaded, 503, "service_unavailable_error", "overloaded"),
    (NothingAvailable, 503, "service_unavailable_error", "no_model_available"),
    (DeadlineExceeded, 504, "timeout_error", "deadline_exceeded"),
    (NotCached, 504, "invalid_request_error", "not_cached"),
    (UnknownModel, 404, "invalid_request_error", "model_not_found"),
    (UnknownDecision, 404, "invalid_request_error", "decision_not_found"),
    (ExpiredDecision, 410, "invalid_request_error", "decision_expired"),
    (ConfigRefused, 422, "invalid_request_error", "invalid_configuration"),
    (Conflict, 409, "invalid_request_error", None),
    (LimitsNotMet, 422, "invalid_request_error", "limits_not_met"),
    (LogTooLarge, 413, "invalid_request_error", "log_too_large"),
    (LogUnavailable, 503, "service_unavailable_error", "log_unavailable"),
    (NothingFeasible, 503, "service_unavailable_error", "no_feasible_model"),
    (Draining, 503, "service_unavailable_error", "draining"),
    (StoreFull, 503, "service_unavailable_error", "overloaded"),
    (Unavailable, 503, "service_unavailable_error", "unavailable"),
    (StoreError, 503, "service_unavailable_error", "store_unavailable"),
    (UpstreamTimeout, 504, "upstream_error", None),
    (UpstreamError, 502, "upstream_error", None),
)


def codes_by_status() -> dict[int, list[str]]:
    """By status: the codes that errors of one code have; those that have several name theirs themselves."""
    found: dict[int, list[str]] = {}
    for _, status, _, code in _STATUSES:
        if code is not None and code not in found.setdefault(status, []):
            found[status].append(code)
    return found


def described(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, body, headers) of an error this service raises on purpose; raises TypeError for any other."""
    if isinstance(error, UpstreamRefused):
        own = {"param": None, **error.body, "message": str(error.body.get("message", error))}
        for name, default in (("type", "invalid_request_error"), ("code", error.code)):
            own[name] = own[name] if isinstance(own.get(name), str) else default
        return error.http_status or 400, {"error": own}, _decision_header(error)
    found = next((entry for entry in _STATUSES if isinstance(error, entry[0])), None)
    if found is None:
        raise TypeError(f"not an error of this service: {type(error).__name__}")
    _, status, type_, code = found
    if isinstance(error, UpstreamError) and error.http_status == 429:
        status, code = 429, "upstream_rate_limited"
    body = {
        "message": str(error),
        "type": type_,
        "param": getattr(error, "param", None),
        "code": code or getattr(error, "code", "error"),
    }
    body |= _more(error)
    headers = _decision_header(error) | dict(getattr(error, "headers", {}))
    if status in (429, 503):
        headers["Retry-After"] = getattr(error, "retry_after", None) or "1"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return status, {"error": body}, headers


def _more(error: Exception) -> dict[str, Any]:
    """What the bodies of some errors say beside the four fields."""
    for kind, field, attribute in (
        (InvalidFields, "problems", "problems"),
        (ConfigRefused, "problems", "problems"),
        (Conflict, "recorded", "recorded"),
        (LimitsNotMet, "excess", "excess"),
        (NothingAvailable, "tried", "tried"),
        (DeadlineExceeded, "tried", "tried"),
        (BudgetExhausted, "budget", "budget"),
    ):
        if isinstance(error, kind):
            return {field: getattr(error, attribute)}
    return {}


def _decision_header(error: Exception) -> dict[str, str]:
    decision_id = getattr(error, "decision_id", None)
    return {} if decision_id is None else {"x-pointsman-decision-id": decision_id}


def error_middleware(metrics: Metrics, max_body_bytes: int) -> Any:
    """The middleware through which every error of every route becomes a response."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        code: str | None = None
        try:
            return await handler(request)
        except (ServiceError, StoreError) as error:
            status, body, headers = described(error)
            if isinstance(error, UpstreamRefused):
                code = error.code  # not the endpoint's own: a metric's labels are ours
            error.__traceback__ = None  # its frames hold the call, and it: a cycle, which only the collector would free
        except web.HTTPRequestEntityTooLarge:
            status, body, headers = _plain(413, f"the body is larger than {max_body_bytes:,} bytes", "body_too_large")
        except web.HTTPException as error:
            if error.status < 400:
                raise
            status, body, headers = _plain(error.status, error.reason, f"http_{error.status}")
            if "Allow" in error.headers:
                headers = {"Allow": error.headers["Allow"]}
        except ConnectionResetError:
            raise  # the caller went away; there is nobody to answer
        except Exception:  # noqa: BLE001 - a task's boundary: logged and counted, its text never shown
            resource = request.match_info.route.resource  # not the path: it may hold whatever a caller puts there
            _log.exception("unexpected error in %s %s", request.method, resource and resource.canonical)
            metrics.unexpected.inc()
            status, body, headers = _plain(500, "unexpected error; the service's log says more", "internal_error")
        headers = {**request.get(CALLER_HEADERS, {}), **headers}
        code = code or str(body["error"]["code"])
        metrics.rejected.labels(code).inc()
        request.get(ABOUT, About()).error = code
        return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)

    return middleware


def without_request_bytes(record: logging.LogRecord) -> bool:
    """A filter for aiohttp's logger: its errors of parsing quote the request, whose headers hold keys."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
        record.msg, record.args, record.exc_info = "a request cannot be parsed: %s", (type(error).__name__,), None
    return True


def _plain(status: int, message: str, code: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    type_ = "invalid_request_error" if status < 500 else "server_error"
    return status, {"error": {"message": message, "type": type_, "param": None, "code": code}}, {}
