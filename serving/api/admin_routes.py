"""What is said of the routes of `/admin`: the table, beside their handlers.

Values alone; every route of `handlers.Handlers` has an entry here or in `caller_routes`, and a test says so.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from serving.access.usage import DIMENSIONS
from serving.admin_keys import KeyRotation, NewKey
from serving.api import admin_answers as told
from serving.api import traffic_answers as shown
from serving.api.bodies import BudgetPatch, ModelAddition
from serving.api.operation import CURSOR, LIMIT, Answer, Binary, Operation, Parameter, Text, moment, parameter
from serving.benchmarks import BenchmarkPost
from serving.history import EVENT_KINDS, MOST_EVENTS
from serving.log_schema import TABLES
from serving.traffic.canary_settings import CanarySettings
from serving.traffic.fault_settings import FaultRule
from serving.traffic.pool_desk import ModelPatch, PoolPatch
from serving.traffic.settings import ExperimentSettings

__all__ = ["ADMIN_ROUTES"]

_POOL: Final = parameter("pool", "Only of this pool.")
_LIMIT: Final = Parameter("limit", LIMIT, {"type": "integer", "minimum": 1, "maximum": 100, "default": 100})
_STORE: Final = (503,)
_ATTACHED: Final = {"Content-Disposition": "A name for the file."}


def _get(path: str, summary: str, model: type[BaseModel], tag: str, *errors: int, **more: Any) -> Operation:
    return Operation("GET", path, summary, (Answer("As it is now.", (model,)),), tag, errors=errors, **more)


def _change(
    method: str, path: str, summary: str, model: type[BaseModel], tag: str, *errors: int, status: int = 200, **more: Any
) -> Operation:
    answers = (Answer("Done, and durable.", (model,), status),)
    return Operation(method, path, summary, answers, tag, errors=(*errors, *_STORE), **more)


_MODELS: Final = (
    _get(
        "/admin/models", "Every model, its part in each pool, what is wrong with one that is out", told.Models, "Models"
    ),
    _change(
        "POST",
        "/admin/models",
        "A model joins",
        told.ModelEntry,
        "Models",
        404,
        409,
        422,
        status=201,
        body=ModelAddition,
    ),
    _change(
        "PATCH",
        "/admin/models/{name}",
        "Disable it, or let it serve",
        told.ModelDisabled,
        "Models",
        422,
        body=ModelPatch,
    ),
    _change(
        "DELETE",
        "/admin/models/{name}",
        "It leaves all pools and the service, or only some pools",
        told.ModelRemoved,
        "Models",
        400,
        409,
        parameters=(Parameter("pools", "Only these pools: ?pools=a&pools=b.", {"type": "string"}, many=True),),
    ),
    _change(
        "POST",
        "/admin/benchmarks",
        "Graded answers of one run of a suite, up to 1,000",
        told.BenchmarkReceipt,
        "Models",
        404,
        422,
        body=BenchmarkPost,
    ),
    _get(
        "/admin/matrix",
        "What benchmarks and traffic say of each model, in all and by category",
        told.MatrixAnswer,
        "Models",
        400,
        404,
        503,
        parameters=(
            _POOL,
            Parameter("days", "How far back.", {"type": "number", "exclusiveMinimum": 0, "maximum": 366, "default": 7}),
        ),
    ),
)
_KEYS: Final = (
    _get("/admin/keys", "Every key, never a secret", told.KeyList, "Keys and budgets"),
    _change("POST", "/admin/keys", "Make a key", told.KeyMade, "Keys and budgets", 409, 422, status=201, body=NewKey),
    _change(
        "POST",
        "/admin/keys/{id}/rotate",
        "A new secret; the old one is valid for a while",
        told.KeyMade,
        "Keys and budgets",
        409,
        422,
        body=KeyRotation,
        body_required=False,
    ),
    _change("DELETE", "/admin/keys/{id}", "Revoke it at once", told.KeyEntry, "Keys and budgets", 409),
    _get("/admin/budgets", "What is spent, set aside and left", told.Budgets, "Keys and budgets"),
    _change(
        "PATCH", "/admin/budgets/{name}", "Another limit from now on", told.Budget, "Keys and budgets", body=BudgetPatch
    ),
    Operation(
        "GET",
        "/admin/usage",
        "What was used, by columns of choice",
        (Answer("The bill.", (told.UsageAnswer, Text("text/csv")), headers=_ATTACHED),),
        "Keys and budgets",
        parameters=(
            parameter("by", f"Columns, with commas between them: {', '.join(DIMENSIONS)}.", default="team,model"),
            moment("from", "Since when."),
            moment("to", "Until when."),
            parameter("format", "Its form; by default what Accept says.", enum=["json", "csv"]),
        ),
        errors=(400, 503),
    ),
)
_IN_A_POOL: Final = "/admin/pools/{name}"
_POOLS: Final = (
    _get("/admin/pools", "What is set about every pool's traffic", shown.Pools, "Traffic"),
    _get(_IN_A_POOL, "One pool", shown.PoolState, "Traffic"),
    _change(
        "PATCH", _IN_A_POOL, "Change what the body names, at once", shown.PoolState, "Traffic", 422, body=PoolPatch
    ),
    _change(
        "POST",
        f"{_IN_A_POOL}/experiments",
        "An A/B experiment begins",
        shown.ExperimentState,
        "Traffic",
        409,
        422,
        status=201,
        body=ExperimentSettings,
    ),
    _get(f"{_IN_A_POOL}/experiments/{{experiment}}", "What it found", shown.ExperimentState, "Traffic"),
    _change("DELETE", f"{_IN_A_POOL}/experiments/{{experiment}}", "It ends", shown.EndedExperiment, "Traffic"),
    _get(f"{_IN_A_POOL}/canary", "Where the canary stands", shown.CanaryAnswer, "Traffic"),
    _change(
        "POST",
        f"{_IN_A_POOL}/canary",
        "A model goes on trial",
        shown.CanaryAnswer,
        "Traffic",
        409,
        422,
        status=201,
        body=CanarySettings,
    ),
    _change(
        "DELETE", f"{_IN_A_POOL}/canary", "It is aborted, or a model is let in", shown.CanaryAnswer, "Traffic", 409
    ),
    _change("DELETE", f"{_IN_A_POOL}/cache", "Drop all answers that the pool keeps", shown.CacheDropped, "Traffic"),
    _get("/admin/canaries", "The canaries of all pools", shown.Canaries, "Traffic"),
    _get("/admin/experiments", "The experiments of all pools", shown.Experiments, "Traffic"),
)
_OPERATING: Final = (
    _get("/admin/config", "The settings in force, and what was changed at run time", shown.Configuration, "Operating"),
    Operation(
        "GET",
        "/admin/snapshot",
        "What was learned, as a file that another service can start from",
        (Answer("A warm start's file.", (Binary("application/zip"),), headers=_ATTACHED),),
        "Operating",
    ),
    _get("/admin/drain", "Whether new calls are taken, and how many are under way", shown.DrainState, "Operating"),
    _change("POST", "/admin/drain", "Finish the calls under way and take no new ones", shown.DrainState, "Operating"),
    _change("DELETE", "/admin/drain", "Take calls again", shown.DrainState, "Operating"),
    _get("/admin/faults", "The faults on purpose that stand", shown.FaultList, "Operating", 409),
    _change(
        "POST",
        "/admin/faults",
        "A fault begins, on purpose",
        shown.FaultState,
        "Operating",
        404,
        409,
        422,
        status=201,
        body=FaultRule,
    ),
    _change(
        "DELETE",
        "/admin/faults",
        "Faults end",
        shown.FaultsEnded,
        "Operating",
        400,
        404,
        409,
        parameters=(parameter("id", "Only this one; without it all."),),
    ),
    _change("POST", "/admin/reload", "Read the configuration again", shown.Reloaded, "Operating", 422),
    Operation(
        "GET",
        "/admin/live",
        "A pool's figures as server-sent events, which never end",
        (Answer("Events: snapshot, then tick every second.", (Text("text/event-stream"),)),),
        "Operating",
        parameters=(_POOL,),
        errors=(400, 404, 503),
    ),
    _get(
        "/admin/events",
        "What happened and who changed what, newest first",
        shown.EventPage,
        "Operating",
        400,
        503,
        parameters=(
            parameter("kind", "Only of this kind; change: whatever came of a request.", enum=list(EVENT_KINDS)),
            _POOL,
            moment("since", "Not older than this."),
            Parameter("limit", LIMIT, {"type": "integer", "minimum": 1, "maximum": MOST_EVENTS, "default": 100}),
            parameter("cursor", CURSOR, pattern="^[0-9]{1,18}$"),
        ),
    ),
    _get("/admin/decisions", "The last decisions", shown.DecisionList, "Operating", 400, parameters=(_LIMIT, _POOL)),
    _get(
        "/admin/decisions/{id}", "Why one call went where it did, and what came of it", shown.DecisionWhy, "Operating"
    ),
    Operation(
        "GET",
        "/admin/log.parquet",
        "A table of the log as a Parquet file",
        (Answer("The file.", (Binary("application/vnd.apache.parquet"),), headers=_ATTACHED),),
        "Operating",
        parameters=(
            Parameter("table", "Which table.", {"type": "string", "enum": list(dict(TABLES.values()))}, required=True),
            moment("since", "Rows since then."),
            moment("until", "Rows before then."),
        ),
        errors=(400, 413, 503),
    ),
)
ADMIN_ROUTES: Final = (*_MODELS, *_KEYS, *_POOLS, *_OPERATING)
