"""Which provider speaks for a model: the one place that knows all kinds.

It must never know how any of them speaks.
"""

from __future__ import annotations

from serving.model_settings import ModelSettings
from serving.providers.anthropic import Anthropic
from serving.providers.openai import OpenAI
from serving.providers.protocol import Provider

__all__ = ["provider_of"]


def provider_of(model: ModelSettings) -> Provider:
    """What speaks to a model's endpoints."""
    if model.kind == "anthropic":
        return Anthropic(model.max_output_tokens)
    return OpenAI()
