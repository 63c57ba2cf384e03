"""The sections `tracing` and `logging` of the configuration.

Owns their form and ranges. Nothing is opened here, and a header's value is never readable.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from serving.config_values import Count, Flag, Label, Name, Number, Section, reject
from serving.model_settings import HeaderName, HeaderValue

__all__ = ["LoggingSettings", "TracingSettings"]

_PATH = "/v1/traces"


def _receiver(value: str) -> str:
    """The URL that traces are posted to; rejected, unseen, where it is none."""
    try:
        url = urlsplit(value)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable:
        reject("must be an http or https URL", "for example http://127.0.0.1:4318")
    if url.username is not None or url.password is not None:
        reject("must hold no credentials", "put them in headers")
    if url.query or url.fragment:
        reject("must have no query or fragment", "put what the receiver needs in headers")
    return value if url.path.endswith(_PATH) else value.rstrip("/") + _PATH


class TracingSettings(Section):
    """Where traces of calls go. Without this section there are none."""

    endpoint: Annotated[Name, AfterValidator(_receiver)] = Field(
        description="OTLP receiver over HTTP; /v1/traces is added unless the URL ends so."
    )
    headers: dict[HeaderName, HeaderValue] = Field(
        default_factory=dict, max_length=100, description="Headers sent to it, such as a key; treated as secrets."
    )
    compression: Literal["none", "gzip"] = Field(
        default="none", description="How they are sent; gzip makes them an eighth, for a seventh more CPU."
    )
    sample_ratio: Number = Field(
        default=1.0, ge=0, le=1, description="Share of calls traced, of those whose callers do not trace themselves."
    )
    service_name: Label = Field(default="pointsman", description="The service's name in traces.")
    queue_size: Count = Field(
        default=8_192, ge=16, le=1_000_000, description="Most spans waiting to be sent; those beyond are dropped."
    )
    batch_size: Count = Field(default=512, ge=1, le=10_000, description="Most spans sent at once.")
    flush_interval_s: Number = Field(default=2.0, ge=0.05, le=300, description="Seconds between two sendings.")
    timeout_s: Number = Field(
        default=5.0, gt=0, le=60, description="Seconds one sending may take, and all of them when the service stops."
    )
    attempts: Count = Field(default=3, ge=1, le=10, description="Most attempts to send a batch.")


class LoggingSettings(Section):
    """The service's log, on standard error."""

    format: Literal["console", "json"] = Field(
        default="console", description="Lines for people, or one JSON object each."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least level logged.")
    access: Flag = Field(default=False, description="Whether every request but probes of health and metrics is logged.")
