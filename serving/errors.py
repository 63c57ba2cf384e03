"""What can go wrong while serving, as one tree. Errors carry their data and a hint; only `http_errors` knows statuses.

ServiceError
├── InvalidRequest      the body or a header is not what the contract says; `param` is its path
│   └── InvalidFields       several of its fields, all at once
├── Unauthorized        no key, or one that nobody was given
├── Forbidden           a key with which this may not be asked
├── CrossSite           a request without a key, made by another site's page (serving.admission)
├── NotCached           the caller wants a kept answer or none, and none is kept
├── NotAllowed          a model or pool that the caller's tier or key does not open
├── BudgetExhausted     what the call could cost does not fit into a budget
├── RateLimited         too many requests or tokens in too short a time
├── Overloaded          more calls than the service can serve in time
├── NothingAvailable    every model that could serve failed, or is known to be down
├── DeadlineExceeded    the call's own time is over
├── UnknownKey          no key has this id
├── UnknownFault        no fault on purpose has this id (serving.traffic.faults)
├── UnknownModel        neither a pool nor a model has this name
├── NothingFeasible     the pool's limits rule out every model, and it was asked to fail
├── LimitsNotMet        the request's own limits do
├── UnknownDecision     no decision has this id
├── ExpiredDecision     its feedback horizon has passed
├── ConfigRefused       the configuration was read again, and cannot be used (serving.config_errors)
├── Conflict            something else was recorded for it before, or is in its place
├── LogUnavailable      the analytical log cannot be read now (this and the next: serving.log_errors)
├── LogTooLarge         more of it was asked for than is given at once
├── CallerGone          the caller closed the connection or stopped reading
├── Draining            an operator has it take no new calls (serving.traffic.drain)
├── Unavailable         the store cannot take events, or the service is starting or stopping
└── UpstreamError       the model's endpoint failed
    ├── UpstreamRefused     it found fault with the caller's own request
    └── UpstreamTimeout     it did not answer in time
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import ceil
from typing import Any

__all__ = [
    "BudgetExhausted",
    "CallerGone",
    "Conflict",
    "DeadlineExceeded",
    "ExpiredDecision",
    "Forbidden",
    "InvalidFields",
    "InvalidRequest",
    "LimitsNotMet",
    "NotAllowed",
    "NotCached",
    "NothingAvailable",
    "NothingFeasible",
    "Overloaded",
    "RateLimited",
    "ServiceError",
    "Unauthorized",
    "Unavailable",
    "UnknownDecision",
    "UnknownKey",
    "UnknownModel",
    "UpstreamError",
    "UpstreamRefused",
    "UpstreamTimeout",
]

_NAMED = 10  # models in one message


class ServiceError(Exception):
    """Base; `param` is the path of the field at fault, where there is one."""

    param: str | None = None


class InvalidRequest(ServiceError):
    """The request breaks the contract. `code` names how, for programs."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.param, self.code = param, code


class InvalidFields(InvalidRequest):
    """A body of ours whose fields are wrong: all of them at once, as `{param, message}`."""

    def __init__(self, problems: Sequence[dict[str, str]]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{first['param']}: {first['message']}{more}", first["param"], "invalid_field")
        self.problems = list(problems)


class Unauthorized(ServiceError):
    """No key or an unknown one."""


class Forbidden(ServiceError):
    """An operator's matter, asked without the operator's key."""


class UnknownKey(ServiceError):
    """No key made while the service runs has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no key has the id {key_id[:64]!r}; GET /admin/keys lists them")


class UnknownModel(ServiceError):
    """Neither a pool nor a model is called so."""

    def __init__(self, name: str, known: Sequence[str], param: str = "model") -> None:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known)[:20])}"
        super().__init__(f"no pool or model is called {name[:100]!r}{hint}")
        self.param = param


class NothingFeasible(ServiceError):
    """Every model of the pool is outside its limits."""


class LimitsNotMet(ServiceError):
    """No model of the pool is expected to keep the request's own limits, and the pool is to fail then.

    `excess`: by how much each model that may be chosen is over, relative to the limit; None: its cost is unknown.
    """

    def __init__(self, pool: str, excess: Mapping[str, float | None]) -> None:
        nearest = sorted(excess.items(), key=lambda item: (item[1] is None, item[1] or 0.0))[:_NAMED]
        listed = ", ".join(
            f"{name}: {'cost unknown' if over is None else f'{over:.0%} over'}" for name, over in nearest
        )
        super().__init__(f"no model of pool {pool!r} is expected to keep this request's limits ({listed})")
        self.excess = dict(excess)


class NotAllowed(ServiceError):
    """The caller may not use what it named; the text says what it may."""

    param = "model"


class NotCached(ServiceError):
    """`Cache-Control: only-if-cached`, and no answer is kept that may be given (RFC 9111, section 5.2.1.7)."""

    headers: Mapping[str, str] = {"x-should-retry": "false"}  # OpenAI's clients try a 504 again otherwise

    def __init__(self) -> None:
        super().__init__("no answer is kept that this call may have, and it asked for no other (only-if-cached)")


class BudgetExhausted(ServiceError):
    """A hard budget has no room for what this call could cost; `budget` says which, how much is left, until when."""

    def __init__(self, message: str, budget: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.budget = dict(budget)


class RateLimited(ServiceError):
    """Too many requests or tokens; `headers` say how many are allowed, and when again."""

    def __init__(self, message: str, retry_after_s: float, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.retry_after, self.headers = str(max(1, ceil(retry_after_s))), dict(headers or {})


class Overloaded(ServiceError):
    """The service sheds this call to keep its promises to others."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after = str(max(1, ceil(retry_after_s)))


class NothingAvailable(ServiceError):
    """No model could serve. `tried`: each attempt as `{model, endpoint, error}`; empty where all were known down."""

    def __init__(
        self, message: str, tried: Sequence[dict[str, Any]], retry_after_s: float, decision_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.tried, self.retry_after = list(tried), str(max(1, ceil(retry_after_s)))
        self.decision_id = decision_id


class DeadlineExceeded(ServiceError):
    """No answer within the call's deadline, whatever was tried."""

    def __init__(self, deadline_s: float, tried: Sequence[dict[str, Any]], decision_id: str | None = None) -> None:
        super().__init__(f"no answer within the call's deadline of {deadline_s:g} s")
        self.tried, self.decision_id = list(tried), decision_id


class UnknownDecision(ServiceError):
    """No decision has this id, or it was never acknowledged."""

    param = "decision_id"

    def __init__(self, decision_id: str) -> None:
        super().__init__(f"no decision has the id {decision_id[:64]!r}")


class ExpiredDecision(ServiceError):
    """Too late: the feedback horizon of the decision has passed."""

    param = "decision_id"

    def __init__(self, decision_id: str, horizon_s: float) -> None:
        super().__init__(f"feedback for {decision_id[:64]!r} came after its horizon of {horizon_s:g} s")


class Conflict(ServiceError):
    """Another value was recorded before, or the state does not allow it. `recorded` is that value or state."""

    def __init__(self, message: str, recorded: Any, code: str = "conflicting_record") -> None:
        super().__init__(message)
        self.recorded, self.code = recorded, code


class CallerGone(ServiceError):
    """The caller closed the connection, or stopped reading, in the middle of a stream."""


class Unavailable(ServiceError):
    """The service cannot keep its promises now: no store, starting or stopping."""


class UpstreamError(ServiceError):
    """The endpoint of `model` failed; `http_status` is what it answered, if it did, `decision_id` the call's."""

    def __init__(self, model: str, message: str, http_status: int | None = None, code: str = "upstream_error") -> None:
        super().__init__(f"{model}: {message}")
        self.model, self.http_status, self.code = model, http_status, code
        self.retry_after: str | None = None
        self.decision_id: str | None = None


class UpstreamRefused(UpstreamError):
    """The endpoint says that the request itself is wrong; `body` is its own error object.

    `reason`: `context_window` or `content_policy`, where another model may well take what this one refused.
    """

    def __init__(self, model: str, http_status: int, body: dict[str, Any], reason: str | None = None) -> None:
        super().__init__(model, str(body.get("message", "request refused")), http_status, "upstream_refused")
        self.body, self.reason = body, reason


class UpstreamTimeout(UpstreamError):
    """No answer within the model's `timeout_s`."""

    def __init__(self, model: str, timeout_s: float) -> None:
        super().__init__(model, f"no complete answer within {timeout_s:g} s", None, "upstream_timeout")
