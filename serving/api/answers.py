"""The forms of answers to callers: inference, decisions, feedback, errors. For the document, and held to it by tests.

An endpoint's own answer is passed through: of it only what the service itself puts there is told.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, RootModel

__all__ = [
    "AnyAnswer",
    "CompletionAnswer",
    "ErrorBody",
    "Health",
    "ModelList",
    "OutcomeReceipt",
    "RewardReceipt",
    "RoutedAnswer",
]


class Told(BaseModel):
    """An answer of the service's own: it has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class _PassedOn(BaseModel):
    model_config = ConfigDict(extra="allow")


class FieldProblem(Told):
    """What is wrong with one field."""

    param: str
    message: str


class ErrorDetail(_PassedOn):
    """OpenAI's error object; some errors say more beside the four fields."""

    message: str
    type: str
    param: Any = None
    code: str


class ErrorBody(Told):
    """Every error's body."""

    error: ErrorDetail


class CompletionAnswer(_PassedOn):
    """The endpoint's own answer: `id` is the decision's, `model` the one that served."""

    id: str
    model: str


class AnyAnswer(RootModel[Any]):
    """The endpoint's own answer."""


class ListedModel(Told):
    """A pool or model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Told):
    """Pools and models that the caller may use."""

    object: Literal["list"]
    data: list[ListedModel]


class RoutedAnswer(Told):
    """A decision for a call that the caller makes itself."""

    decision_id: str
    model: str
    upstream_model: str
    mode: str
    propensity: float
    probabilities: dict[str, float]
    limits_met: bool
    expires_at: float


class OutcomeReceipt(Told):
    """What became of an outcome."""

    decision_id: str
    status: Literal["recorded", "duplicate"]


class OneReward(Told):
    """What became of one item of feedback."""

    decision_id: str
    status: Literal["recorded", "revised", "duplicate"]


class OneOfMany(Told):
    """What became of one item of a list."""

    decision_id: str
    status: Literal["recorded", "revised", "duplicate", "refused"]
    http_status: int | None = None
    error: ErrorDetail | None = None


class ManyRewards(Told):
    """What became of a list of feedback, item by item."""

    accepted: int
    refused: int
    results: list[OneOfMany]


class RewardReceipt(RootModel[OneReward | ManyRewards]):
    """What became of feedback: of one item, or of each of a list."""


class Health(Told):
    """The service is alive, or ready."""

    status: Literal["ok", "ready"]
