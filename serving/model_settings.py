"""The settings of one model: where it is called, what it costs, how long it may take.

Owns their ranges and defaults and how they become the library's values. It must never know how a call is sent.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from bandit.types import Arm, Price
from serving.config_values import Count, Label, Name, Number, OrDefaults, Secret, Section, reject
from serving.failure_settings import BreakerSettings
from serving.traffic.cache_settings import BatchingSettings

__all__ = ["ANTHROPIC_OUTPUT_TOKENS", "EndpointSettings", "ModelSettings", "PriceSettings"]

ANTHROPIC_OUTPUT_TOKENS = 4096  # of an answer where nobody says how many: that protocol must be told


class PriceSettings(Section):
    """List price of one model."""

    input_per_million: Number = Field(ge=0, le=1e6, description="USD per million input tokens.")
    output_per_million: Number = Field(ge=0, le=1e6, description="USD per million output tokens.")
    cached_input_per_million: Number | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="USD per million input tokens that the endpoint had in its own cache; by default as other input.",
    )
    per_call: Number = Field(
        default=0.0, ge=0, le=1e6, description="USD per call; where it is given, the prices of tokens may be left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_the_call_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and "per_call" in value:
            return {"input_per_million": 0.0, "output_per_million": 0.0, **value}
        return value


def _base_url(value: str) -> str:
    """`value` without its trailing slash; rejected, unseen, where it is no URL that calls can be appended to."""
    try:
        url = urlsplit(value)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or any(c.isspace() or not c.isprintable() for c in value):
        reject("must be an http or https URL", "for example https://api.example.com/v1")
    if url.username is not None or url.password is not None:
        reject("must hold no credentials", "put the key in api_key")
    if "?" in value or "#" in value:
        reject("must have no query or fragment", "put what the upstream needs in headers")
    if url.path.rstrip("/").endswith(("/completions", "/embeddings", "/messages")):
        hint = "leave out /chat/completions, /completions, /embeddings, /messages"
        reject("must be the base that paths are appended to", hint)
    return value.rstrip("/")


_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS = ("connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade")


def _header_name(name: str) -> str:
    if not _HEADER.fullmatch(name):
        reject("is not a header's name")
    if name.lower() in _OWN_HEADERS:
        reject("is set by the service", "remove it")
    return name


def _header_value(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?", value.get_secret_value()):
        reject("must be printable ASCII without spaces around it", "does the variable end in a line break?")
    return value


HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[SecretStr, Field(max_length=4096), AfterValidator(_header_value)]


BaseUrl = Annotated[str, AfterValidator(_base_url)]


class EndpointSettings(Section):
    """One of several endpoints of a model."""

    url: BaseUrl = Field(description="Base URL of its API.")
    name: Label | None = Field(default=None, description="What logs and errors call it; by default its number.")
    api_key: Secret | None = Field(default=None, description="Its key; by default the model's.")
    headers: dict[HeaderName, HeaderValue] = Field(
        default_factory=dict, max_length=50, description="Headers added to each call beside the model's."
    )
    weight: Number = Field(default=1.0, gt=0, le=1e6, description="Its share of calls, relative to the others.")


class ModelSettings(Section):
    """Something that can serve a call."""

    name: Name = Field(description="What pools and callers call it.")
    kind: Literal["openai", "anthropic", "http"] = Field(
        default="openai",
        description="What its endpoint speaks: OpenAI's protocol, Anthropic's, or (http) that of an ML endpoint.",
    )
    protocol: Literal["json", "oip"] = Field(
        default="json",
        description="For kind http: its own JSON, posted to the endpoint itself, or the Open Inference Protocol.",
    )
    endpoint: BaseUrl | None = Field(
        default=None,
        description="Base URL of its API, with any path prefix; for protocol json the URL itself; or give endpoints.",
    )
    endpoints: tuple[EndpointSettings, ...] = Field(
        default=(), max_length=100, description="Several endpoints that serve the same model, instead of endpoint."
    )
    balance: Literal["least_outstanding", "weights"] = Field(
        default="least_outstanding",
        description="How endpoints are chosen: of two drawn the one with fewer calls under way, or by weight alone.",
    )
    max_concurrent: Count | None = Field(
        default=None, ge=1, le=100_000, description="Most calls under way at each endpoint; by default any number."
    )
    breaker: Annotated[BreakerSettings, OrDefaults] = Field(
        default_factory=BreakerSettings, description="When an endpoint that fails is left alone."
    )
    max_output_tokens: Count | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Most tokens of an answer; kind anthropic asks for no more, and for 4096 unless told otherwise.",
    )
    upstream_model: Label = Field(
        default="", validate_default=True, description="What its endpoint calls it; by default its name."
    )
    api_key: Secret | None = Field(
        default=None, description="Key sent to the endpoint: as a bearer token, by kind anthropic as x-api-key."
    )
    price: PriceSettings | None = Field(
        default=None, description="List price; without one the cost is unknown, never zero."
    )
    timeout_s: Number = Field(default=60.0, gt=0, le=3600, description="Seconds after which an attempt has failed.")
    max_connections: Count = Field(
        default=100, ge=1, le=10_000, description="Most connections open to the endpoint for this model."
    )
    headers: dict[HeaderName, HeaderValue] = Field(
        default_factory=dict, max_length=50, description="Headers added to each call; their values are never shown."
    )
    batching: BatchingSettings | None = Field(
        default=None, description="How embedding and inference calls go to it as one; by default each goes alone."
    )

    @field_validator("upstream_model", mode="before")
    @classmethod
    def _name_unless_given(cls, value: Any, info: ValidationInfo) -> Any:
        return info.data.get("name", "-") if value in ("", None) else value

    @field_validator("headers")
    @classmethod
    def _each_once(cls, headers: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        seen: set[str] = set()
        for name in headers:
            if name.lower() in seen:
                reject("is given twice; headers ignore case", "remove one", (name,))
            made = "x-api-key" if info.data.get("kind") == "anthropic" else "authorization"
            if name.lower() == made and info.data.get("api_key") is not None:
                reject("is also made from api_key", "remove one of the two", (name,))
            seen.add(name.lower())
        return headers

    @field_validator("protocol")
    @classmethod
    def _of_kind_http(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind", "http") != "http":
            reject(f"belongs to kind http, not to {info.data['kind']}", "remove it, or change the kind")
        return value

    @field_validator("batching")
    @classmethod
    def _has_what_is_batched(cls, value: BatchingSettings | None, info: ValidationInfo) -> BatchingSettings | None:
        if value is not None and info.data.get("kind") == "anthropic":
            reject("joins embedding and inference calls, which kind anthropic has not", "remove it")
        return value

    @model_validator(mode="after")
    def _called_somewhere(self) -> ModelSettings:
        if (self.endpoint is None) == (not self.endpoints):
            word = "is required, or endpoints" if self.endpoint is None else "and endpoints exclude each other"
            reject(word, None if self.endpoint is None else "remove one of the two", ("endpoint",))
        names = [place.name for place in self.places]
        if len(set(names)) < len(names):
            reject("have the same name twice", "name each its own", ("endpoints",))
        return self

    @property
    def places(self) -> tuple[EndpointSettings, ...]:
        """Where it is called, each with a name."""
        if self.endpoint is not None:
            return (EndpointSettings(url=self.endpoint, name="1"),)
        return tuple(
            place.model_copy(update={"name": place.name or str(number)})
            for number, place in enumerate(self.endpoints, 1)
        )

    @property
    def unasked_output_tokens(self) -> int | None:
        """Most tokens of an answer where the caller says nothing; None: nobody knows."""
        return ANTHROPIC_OUTPUT_TOKENS if self.max_output_tokens is None and self.kind == "anthropic" else None

    def to_arm(self) -> Arm:
        """The model as the library's arm."""
        return Arm(self.name, None if self.price is None else Price(**self.price.model_dump()))
