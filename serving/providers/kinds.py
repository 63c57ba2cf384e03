"""Which provider speaks for a model: the one place that knows all kinds.

It must never know how any of them speaks.
"""

from __future__ import annotations

from typing import Final

from serving.model_settings import ModelSettings
from serving.providers.anthropic import Anthropic
from serving.providers.inference import OpenInference, PlainJson
from serving.providers.openai import OpenAI
from serving.providers.protocol import Provider
from serving.wire import Kind

__all__ = ["provider_of", "served_by", "takes"]

_SERVED: Final[dict[str, tuple[Kind, ...]]] = {
    "openai": ("chat/completions", "completions", "embeddings"),
    "anthropic": ("chat/completions",),
    "http": ("infer",),
}


def provider_of(model: ModelSettings) -> Provider:
    """What speaks to a model's endpoints."""
    if model.kind == "http":
        return OpenInference() if model.protocol == "oip" else PlainJson()
    if model.kind == "anthropic":
        return Anthropic(model.max_output_tokens)
    return OpenAI()


def served_by(model: ModelSettings) -> tuple[Kind, ...]:
    """The kinds of calls that a model can serve."""
    return _SERVED[model.kind]


def takes(kind: object, protocol: object) -> str:
    """What a model of this kind takes, in words: all models of a pool take the same."""
    if kind != "http":
        return "OpenAI's calls"
    return "calls of the Open Inference Protocol" if protocol == "oip" else "JSON of its own"
