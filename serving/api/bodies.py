"""The forms of request bodies that no pydantic model parses as a whole: written as `serving.wire` checks them.

For the document alone, and held against the checks themselves by a test. Every other field passes through.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

from serving.admin import Addition
from serving.feedback import MAX_BATCH, RewardItem
from serving.model_settings import ModelSettings
from serving.wire import MAX_NAME

__all__ = [
    "AnyBody",
    "BudgetPatch",
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "ModelAddition",
    "Rewards",
    "RouteRequest",
]

_ModelName = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME, description="A pool, or one model by its name (pinned).")
]


class _PassedOn(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class ContentPart(_PassedOn):
    """A part of a message; its text is what features see."""

    type: Any = None
    text: Any = None


class ChatMessage(_PassedOn):
    """A message."""

    role: Annotated[str, Field(min_length=1)]
    content: str | list[ContentPart] | None = None


class _Call(_PassedOn):
    model: _ModelName
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None


class ChatRequest(_Call):
    """OpenAI's chat request; what is not named here passes through untouched."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, description="At most server.max_messages.")]
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={
            "examples": [{"model": "auto", "messages": [{"role": "user", "content": "What is 17 * 23?"}]}]
        },
    )


_Texts = str | Annotated[list[str | int | list[Any]], Field(min_length=1)]


class CompletionRequest(_Call):
    """OpenAI's completion request."""

    prompt: _Texts


class EmbeddingRequest(_Call):
    """OpenAI's embeddings request."""

    input: _Texts
    stream: bool | None = Field(default=None, description="Embeddings are not streamed.")


class AnyBody(_PassedOn):
    """Whatever the model's own endpoint takes; a field `stream: true` is refused."""


class RouteRequest(_PassedOn):
    """What a call will be, as far as the caller shows it; `messages`, `prompt` or `input` as in the call itself."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME, description="A pool.")]
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    prompt: _Texts | None = None
    input: _Texts | None = None
    max_cost_usd: float | None = Field(default=None, gt=0)
    max_latency_s: float | None = Field(default=None, gt=0)
    context: Annotated[list[float], Field(min_length=1, max_length=64)] | None = None


class Rewards(RootModel[RewardItem | Annotated[list[RewardItem], Field(min_length=1, max_length=MAX_BATCH)]]):
    """One item of feedback, or a list."""


class ModelAddition(Addition):
    """The body of `POST /admin/models`."""

    model: ModelSettings | str = Field(
        description="A model as in the configuration, secrets as ${VAR}, or the name of one that is there."
    )


class BudgetPatch(BaseModel):
    """Another limit, in the budget's own unit; null goes back to the configuration's."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1, "maxProperties": 1})

    usd: Annotated[float, Field(gt=0, le=1e12)] | None = None
    tokens: Annotated[int, Field(gt=0, le=10**12)] | None = None
