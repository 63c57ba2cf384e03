"""The `model_list` of a LiteLLM configuration as deployments: where each is called, with what, at which price.

Owns what one entry becomes and why one is left out. It must never know which deployments belong together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.commands.litellm_file import Entry, Source, reference
from serving.commands.litellm_providers import Provider, base_url, provider_of

__all__ = ["Deployment", "Variables", "name_of", "read_deployments", "seconds"]

_MOST_SECONDS = 3600.0
_MODES = ("chat", "completion", "embedding")
_DEFAULTS = {  # fields of a request that LiteLLM adds where the caller leaves them out
    *("temperature", "top_p", "top_k", "n", "stream", "stop", "max_tokens", "max_completion_tokens", "seed", "user"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools"),
    *("tool_choice", "parallel_tool_calls", "reasoning_effort", "thinking", "extra_body", "functions", "modalities"),
}
_BY_DEPLOYMENT = "is not carried over: deployments have none of their own here"
_PARAMS = {
    **dict.fromkeys(_DEFAULTS, "is not carried over: nothing is added to requests here; callers send it"),
    "max_retries": f"{_BY_DEPLOYMENT}, see failures.retries",
    "num_retries": f"{_BY_DEPLOYMENT}, see failures.retries",
    "cooldown_time": f"{_BY_DEPLOYMENT}, see models[].breaker",
    "max_budget": f"{_BY_DEPLOYMENT}, see budgets",
    "budget_duration": f"{_BY_DEPLOYMENT}, see budgets",
    "stream_timeout": "is not carried over: streams have the timeout of other calls",
    "tags": "is not carried over: tags choose no model here; tiers choose pools",
    "tag_regex": "is not carried over: tags choose no model here; tiers choose pools",
    "mock_response": "is not carried over: nothing is made up here",
    "drop_params": "is not carried over: requests pass as they are",
    "additional_drop_params": "is not carried over: requests pass as they are",
    "api_version": "is not carried over: it belongs to Azure's older API",
    "region_name": "is not carried over: the endpoint's URL says where it is",
    "input_cost_per_second": "is not carried over: prices here are by token or call",
    "output_cost_per_second": "is not carried over: prices here are by token or call",
}
_INFO = {
    "base_model": "is not carried over: prices are not looked up here, they are written into models[].price",
    "access_groups": "is not carried over: tiers say who may use what",
    "team_id": "is not carried over: tiers say who may use what",
    "supported_environments": "is not carried over: every model of the file is served",
    "max_input_tokens": "is not carried over: a prompt that is too long is the endpoint's to refuse, and falls back",
    "max_tokens": "is not carried over: max_output_tokens beside it is what counts here",
    "input_cost_per_second": "is not carried over: prices here are by token or call",
    "output_cost_per_second": "is not carried over: prices here are by token or call",
}
_SILENT = ("description", "version", "metadata", "created_at", "created_by", "updated_at", "updated_by", "db_model")


@dataclass(slots=True)
class Variables:
    """The environment variables that take the place of secrets. Names that the file refers to are not given away."""

    taken: set[str]
    given: dict[str, str] = field(default_factory=dict)  # by secret

    def name(self, secret: str, wanted: str) -> str:
        """The variable for a secret: the same for the same secret, with a number where the wanted one is taken."""
        if secret not in self.given:
            name, number = wanted, 2
            while name in self.taken:
                name, number = f"{wanted}_{number}", number + 1
            self.taken.add(name)
            self.given[secret] = name
        return self.given[secret]


@dataclass(slots=True)
class Deployment:
    """One entry of `model_list`. Secrets are `${VAR}`; numbers that were not given are None."""

    group: str
    provider: Provider
    upstream: str
    url: str
    entry: Entry  # for notes
    api_key: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    price: dict[str, float] | None = None
    timeout_s: float | str | None = None
    max_output_tokens: int | None = None
    max_concurrent: int | None = None
    weights: dict[str, float] = field(default_factory=dict)  # by weight, rpm, tpm
    order: float | None = None
    embeds: bool = False
    id: str | None = None


def name_of(text: str) -> str:
    """A model's or pool's name here: without spaces, at most 200 characters."""
    return "".join(c if c.isprintable() and not c.isspace() else "-" for c in text.strip())[:200] or "-"


def read_deployments(source: Source, variables: Variables) -> list[Deployment]:
    """The deployments that can be carried over, in the file's order; all else is noted."""
    named = ((each.text("credential_name"), each.entry("credential_values")) for each in source.credentials)
    credentials = {name: values for name, values in named if name is not None}
    read: list[tuple[Deployment, Entry]] = []
    for entry in source.models:
        params = entry.entry("litellm_params")
        found = _found(entry, params, credentials)
        if isinstance(found, Deployment):
            read.append((found, params))
            if found.provider.key is not None and "api_key" not in params:
                variables.taken.add(found.provider.key)  # it is read by that name, so no other secret may have it
        else:
            entry.note(None, f"is left out: {found}")
    for made, params in read:
        _fill(made, params, credentials, variables)
    for values in credentials.values():
        values.leave(_PARAMS)
    return [made for made, _ in read]


def _found(entry: Entry, params: Entry, credentials: Mapping[str, Entry]) -> Deployment | str:
    """An entry's deployment as far as it says who is called; or why it is left out."""
    group, model = entry.text("model_name"), params.text("model")
    if group is None or model is None:
        return "it has no model_name, or no litellm_params.model"
    mode = entry.entry("model_info").text("mode")
    if mode is not None and mode not in _MODES:
        return f"its mode is none of {', '.join(_MODES)}, which are what is served here"
    found = provider_of(model, params.text("custom_llm_provider"))
    if isinstance(found, str):
        return found
    if "*" in group:
        return "a wildcard stands for no model in particular; name each model that is to be called"
    provider, upstream = found
    api_base = params.text("api_base") or params.text("base_url") or _credential(params, credentials).text("api_base")
    url, why = base_url(provider, api_base)
    if url is None:
        return why or ""
    if name_of(group) != group:
        entry.note("model_name", "has spaces, or is too long: callers must use the new name")
    return Deployment(name_of(group), provider, upstream, url, entry, embeds=mode == "embedding")


def _credential(params: Entry, credentials: Mapping[str, Entry]) -> Entry:
    name = params.text("litellm_credential_name")
    if name is not None and name not in credentials:
        params.note("litellm_credential_name", "is not carried over: the file's credential_list does not have it")
    return credentials.get(name or "") or params.entry("credential_values")


def _fill(made: Deployment, params: Entry, credentials: Mapping[str, Entry], variables: Variables) -> None:
    """Everything else that an entry says, and notes on what it says in vain."""
    entry, info = made.entry, made.entry.entry("model_info")
    info.take("mode")
    credential = _credential(params, credentials)
    where = params if "api_key" in params or "api_key" not in credential else credential
    params.take("api_key")
    credential.take("api_key")
    credential.take("api_base")
    made.api_key = _api_key(made, where, variables)
    made.headers = _headers(made, params, variables)
    made.price = _price(made, params, info)
    made.timeout_s = seconds(params, "timeout")
    made.max_output_tokens = _count(info, "max_output_tokens", 10_000_000) or _count(info, "max_tokens", 10_000_000)
    made.max_concurrent = _count(params, "max_parallel_requests", 100_000)
    made.weights = {name: value for name in ("weight", "rpm", "tpm") if (value := params.number(name)) is not None}
    for name in ("rpm", "tpm"):
        if name in made.weights:
            params.note(name, "is at most a weight here: models have no rate limit of their own, callers have (limits)")
    made.order = params.number("order")
    made.id = info.text("id")
    for name in ("model", "custom_llm_provider", "api_base", "base_url", "litellm_credential_name"):
        params.take(name)
    for name in info.names:
        if name in _SILENT or name.startswith("supports_"):
            info.take(name)
    for name in params.names:
        if name.startswith(("aws_", "vertex_", "azure_")):
            params.take(name)
            params.note(name, "is not carried over: it belongs to another cloud's API")
    params.leave(_PARAMS)
    info.leave(_INFO)
    entry.take("model_name")
    entry.leave({})


def seconds(section: Entry, name: str) -> float | str | None:
    """A timeout: a number, cut to what is allowed here, or `${VAR}`."""
    value = section.take(name)
    if (variable := reference(value)) is not None:
        return variable
    number = section.number(name, least=1e-3)
    if number is not None and number > _MOST_SECONDS:
        section.note(name, f"is {_MOST_SECONDS:g} s here, which is the most an attempt may take")
    return None if number is None else min(number, _MOST_SECONDS)


def _count(section: Entry, name: str, most: int) -> int | None:
    number = section.number(name)
    return None if number is None or number < 1 else min(int(number), most)


def _api_key(made: Deployment, section: Entry, variables: Variables) -> str | None:
    value = section.take("api_key")
    if value is None:
        own = made.url == made.provider.url  # another's server is not sent the provider's key
        if made.provider.key is not None and not own:
            made.entry.note(None, "has no api_key: none is sent to its api_base")
        return f"${{{made.provider.key}}}" if made.provider.key is not None and own else None
    if (known := reference(value) or _template(value)) is not None:
        return known
    named = made.provider.key if made.url == made.provider.url else None
    wanted = named or f"{_upper(made.group)}_API_KEY"
    name = variables.name(str(value), wanted)
    section.note("api_key", f"is not copied: set {name} to the key that stands here")
    return f"${{{name}}}"


def _headers(made: Deployment, params: Entry, variables: Variables) -> dict[str, str]:
    headers: dict[str, str] = {}
    for section in (params.entry("headers"), params.entry("extra_headers")):
        for name in section.names:
            value = section.take(name)
            known = reference(value) or _template(value)
            if known is None:
                variable = variables.name(str(value), f"{_upper(made.group)}_{_upper(name)}")
                section.note(name, f"is not copied, as headers may be secrets: set {variable} to what stands here")
                known = f"${{{variable}}}"
            headers[name] = known
    organization = params.take("organization")
    if isinstance(organization, str):
        variable = variables.name(organization, "OPENAI_ORGANIZATION")
        headers["OpenAI-Organization"] = reference(organization) or f"${{{variable}}}"
        if reference(organization) is None:
            params.note("organization", f"is a header here: set {variable} to what stands here")
    elif organization is not None:
        params.note("organization", "is not carried over: write a model with several endpoints, one for each")
    return headers


def _price(made: Deployment, params: Entry, info: Entry) -> dict[str, float] | None:
    """USD per million tokens; what stands in litellm_params counts before what stands in model_info."""
    per_token: dict[str, float] = {}
    for name in ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost"):
        first, second = params.number(name, most=1.0), info.number(name, most=1.0)
        cost = second if first is None else first
        if cost is not None:
            per_token[name] = round(cost * 1e6, 9)
    given = bool(per_token)
    if made.embeds:
        per_token.setdefault("output_cost_per_token", 0.0)
    if "input_cost_per_token" not in per_token or "output_cost_per_token" not in per_token:
        if given:
            made.entry.note(None, "has half a price, which is not carried over: give both, for input and output")
        return None
    price = {"input_per_million": per_token["input_cost_per_token"]}
    price["output_per_million"] = per_token["output_cost_per_token"]
    if "cache_read_input_token_cost" in per_token:
        price["cached_input_per_million"] = per_token["cache_read_input_token_cost"]
    return price


def _template(value: Any) -> str | None:
    """A `${VAR}` that stood in the file as such: something else fills it in."""
    return str(value) if isinstance(value, str) and re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", value) else None


def _upper(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").upper()
    return f"_{name}" if name[:1].isdigit() else name or "MODEL"
