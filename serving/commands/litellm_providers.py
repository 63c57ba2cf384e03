"""What the provider in a LiteLLM model (`groq/llama-3.1-8b-instant`) is here: a kind, a base URL, a key's variable.

Base URLs are those of the providers' own documentation of their OpenAI-compatible APIs (Anthropic: of its Messages
API), variables those that LiteLLM reads where a deployment has no key. It must never know a deployment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Provider", "base_url", "provider_of"]


@dataclass(frozen=True, slots=True)
class Provider:
    """How a provider is called. `url`: its public base, None where a deployment must say; `key`: a variable, or None.

    `root`: `api_base` means the server's root, and `/v1` follows; `native`: an `api_base` would be another protocol's.
    """

    name: str
    url: str | None
    key: str | None
    kind: str = "openai"
    root: bool = False
    native: bool = False


_OPENAI = Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY")
_KNOWN = (
    _OPENAI,
    Provider("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", kind="anthropic", root=True),
    Provider("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    Provider("codestral", "https://codestral.mistral.ai/v1", "CODESTRAL_API_KEY"),
    Provider("cohere", "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY", native=True),
    Provider("cohere_chat", "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY", native=True),
    Provider("custom_openai", None, None),
    Provider("dashscope", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    Provider("deepinfra", "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    Provider("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    Provider("fireworks_ai", "https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    Provider("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY", native=True),
    Provider("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    Provider("hosted_vllm", None, None),
    Provider("litellm_proxy", None, None),
    Provider("llamafile", "http://127.0.0.1:8080/v1", None),
    Provider("lm_studio", "http://localhost:1234/v1", None),
    Provider("meta_llama", "https://api.llama.com/compat/v1", "LLAMA_API_KEY"),
    Provider("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    Provider("moonshot", "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    Provider("nvidia_nim", "https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    Provider("ollama", "http://localhost:11434/v1", None, root=True),
    Provider("ollama_chat", "http://localhost:11434/v1", None, root=True),
    Provider("openai_like", None, None),
    Provider("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    Provider("perplexity", "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    Provider("sambanova", "https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    Provider("text-completion-openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
    Provider("together_ai", "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    Provider("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
    Provider("xinference", None, None),
)
_PROVIDERS = {provider.name: provider for provider in _KNOWN}

_AWS = "its calls are signed with AWS credentials; an OpenAI-compatible endpoint in front of it can be a model here"
_GOOGLE = "its calls carry Google credentials that expire within the hour; gemini/ models, which take a key, can be"
_AZURE = (
    "its paths need an api-version; where the resource has Azure's v1 API, add a model with endpoint"
    " https://RESOURCE.openai.azure.com/openai/v1 and the key in api_key"
)
_LEFT_OUT = {
    "azure": _AZURE,
    "azure_text": _AZURE,
    "azure_ai": _AZURE,
    "bedrock": _AWS,
    "bedrock_converse": _AWS,
    "sagemaker": _AWS,
    "sagemaker_chat": _AWS,
    "vertex_ai": _GOOGLE,
    "vertex_ai_beta": _GOOGLE,
    "auto_router": "it is a router itself; a pool is what chooses here",
}
_BARE = (
    (re.compile(r"(gpt-|o[1-9](-|$)|chatgpt-|text-embedding-|ft:|davinci|babbage)"), "openai"),
    (re.compile(r"claude-"), "anthropic"),
    (re.compile(r"command(-|$)"), "cohere"),
)


def provider_of(model: str, custom: str | None) -> tuple[Provider, str] | str:
    """A model's provider and what that calls it; or why it cannot be carried over."""
    if "*" in model:
        return "a wildcard stands for no model in particular; name each model that is to be called"
    prefix, slash, rest = model.partition("/")
    if custom is not None:
        name, upstream = custom, (rest if prefix == custom and slash else model)
    elif slash:
        name, upstream = prefix, rest
    else:
        bare = next((provider for pattern, provider in _BARE if pattern.match(model)), None)
        if bare is None:
            return "it names no provider, and is not one of those whose provider goes without saying"
        name, upstream = bare, model
    if name in _LEFT_OUT:
        return f"provider {name}: {_LEFT_OUT[name]}"
    if name not in _PROVIDERS or not upstream:
        return "its provider has no OpenAI-compatible API that is known here; add it by hand if it has one"
    if len(upstream) > 150 or not upstream.isprintable():
        return "its name is too long, or has characters that cannot be printed"
    if name == "fireworks_ai" and not upstream.startswith("accounts/") and "#" not in upstream:
        upstream = f"accounts/fireworks/models/{upstream}"  # as LiteLLM completes it
    return _PROVIDERS[name], upstream


def base_url(provider: Provider, api_base: str | None) -> tuple[str, None] | tuple[None, str]:
    """The base that paths are appended to, and None; or None, and why there is none. `${VAR}` may stand in it."""
    if api_base is None:
        return (provider.url, None) if provider.url else (None, "it has no api_base, and its provider no public one")
    if provider.native:
        return None, f"its api_base speaks {provider.name}'s own protocol, of which only the compatible API is known"
    base = api_base.rstrip("/")
    for path in ("/chat/completions", "/completions", "/embeddings", "/messages"):
        base = base.removesuffix(path)
    if "@" in base or "?" in base or "#" in base:
        return None, "its api_base has credentials or a query in it; give a plain base, and the key in api_key"
    if not base.startswith("${"):
        try:
            usable = urlsplit(base).scheme in ("http", "https") and bool(urlsplit(base).hostname)
        except ValueError:
            usable = False
        if not usable:
            return None, "its api_base is no http or https URL"
    if provider.root and not base.endswith("/v1"):
        base += "/v1"
    return base, None
