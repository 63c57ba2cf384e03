"""The configuration as values: every section, its ranges, its defaults, and how they become the library's values.

Settings are read once, checked once and never change. Nothing here opens a store, resolves a host or keeps a secret
in readable form. The README's reference is made from the descriptions below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError

from serving.access.budget_settings import Budgets, Limits, MeteringSettings
from serving.access.settings import AuthSettings, TierSettings
from serving.benchmark_settings import BenchmarkSettings
from serving.config_file import ConfigError, Document, Problem, dotted, read_document
from serving.config_overrides import fill_secrets, override
from serving.config_problems import validation_problems
from serving.config_rules import broken_rules, doubts, is_loopback
from serving.config_values import (
    Count,
    Flag,
    Name,
    Number,
    OrDefaults,
    Section,
    reject,
)
from serving.dashboard.settings import DashboardSettings
from serving.failure_settings import FailureSettings
from serving.model_settings import ModelSettings
from serving.pool_settings import PoolSettings
from serving.telemetry.settings import LoggingSettings, TracingSettings
from serving.traffic.fault_settings import FaultSettings
from serving.traffic.overload_settings import OverloadSettings

__all__ = ["AuthSettings", "ConfigError", "ModelSettings", "PoolSettings", "Problem", "Settings", "load_settings"]

_ENGINES: Final = ("valkey", "valkeys", "redis", "rediss", "unix")


def load_settings(
    path: Path,
    env: Mapping[str, str],
    server: Mapping[str, Any] | None = None,
    *,
    overrides: Sequence[str] = (),
    offline: bool = False,
) -> Settings:
    """The settings in the YAML file at `path`; `${VAR}` is read from `env`.

    `server` replaces values of the file's server section, as the command line does; `overrides` any values
    (`serving.config_overrides`). `offline`: nobody will be called, so keys, headers and endpoints need no variables.
    Raises ConfigError with every problem there is.
    """
    try:
        document = read_document(path, env)
        override(document, overrides, env)
        if offline:
            fill_secrets(document)
        section = document.data.get("server") or {}
        if server and isinstance(section, dict):
            document.data["server"] = section | dict(server)
            document.lines.update({("server", name): 0 for name in server})  # they stand on no line of the file
        return _settings(document)
    except ConfigError as error:
        raise ConfigError(error.problems, str(path)) from None


def _settings(document: Document) -> Settings:
    problems = list(document.problems)
    settings = None
    try:
        settings = Settings.model_validate(document.data)
    except ValidationError as error:
        problems += validation_problems(error, document, Settings)
    wrong = {problem.path for problem in problems}
    for loc, message, hint in broken_rules(document.data):
        if dotted(loc) not in wrong:  # else the value itself must change first
            problems.append(Problem(dotted(loc), message, hint, document.line(loc)))
    if settings is None or problems:
        raise ConfigError(tuple(sorted(problems, key=lambda problem: problem.line or 0)))
    return settings


# --- the service


def _folder(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or not value.isprintable():
        reject("must be the path of a folder")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        reject("names a home folder that is not known")


class ServerSettings(Section):
    """Where the service listens and what it accepts."""

    host: Name = Field(default="127.0.0.1", description="Address to listen on.")
    port: Count = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Annotated[Path, BeforeValidator(_folder)] = Field(
        default=Path("pointsman-data"),
        description="Folder of both stores; made if it is not there, for its owner alone.",
    )
    max_body_bytes: Count = Field(
        default=10 * 2**20, ge=1024, le=2**30, description="Largest request body, in bytes; a larger one gets 413."
    )
    body_timeout_s: Number = Field(
        default=30.0, gt=0, le=3600, description="Seconds a caller may take to send a body, or to read on in a stream."
    )
    max_connections: Count = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Most connections of callers at a time; more are closed at once.",
    )
    idle_timeout_s: Number = Field(
        default=75.0,
        gt=0,
        le=3600,
        description="Seconds after which a connection is closed that asks nothing, or has not sent all its headers.",
    )
    max_response_bytes: Count = Field(
        default=64 * 2**20, ge=1024, le=2**31, description="Largest answer taken from an endpoint, in bytes."
    )
    max_messages: Count = Field(
        default=2_048,
        ge=1,
        le=1_000_000,
        description="Most messages one chat request may have, and most inputs one of embeddings or completions.",
    )
    shutdown_grace_s: Number = Field(
        default=10.0, ge=0, le=3600, description="Seconds that calls under way get to finish when the service stops."
    )
    drain_s: Number = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds that /readyz is red, and calls still taken, before the service stops accepting.",
    )
    watch_config: Flag = Field(
        default=False, description="Whether the configuration is read again when its file has changed."
    )
    feedback_horizon_s: Number = Field(
        default=7 * 86_400.0,
        ge=1,
        le=366 * 86_400,
        description="Seconds after a decision in which feedback for it is accepted; later feedback gets 410.",
    )
    metrics_public: Flag = Field(
        default=False,
        description="Whether /metrics, /healthz, /readyz, /openapi.json, /docs need no key; on loopback they never do.",
    )

    allowed_hosts: tuple[Name, ...] = Field(
        default=(),
        max_length=100,
        description="Names, beside loopback addresses, by which it may be called where no key is asked for.",
    )

    private_upstreams: Flag = Field(
        default=False,
        description="Whether models added while it runs may be at private addresses that no model here is at.",
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)


def _engine(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in _ENGINES or not (parts.path if parts.scheme == "unix" else parts.hostname):
        reject("must be the URL of a Valkey or Redis server, such as valkey://127.0.0.1:6379/0")
    return value


class StoreSettings(Section):
    """The operational store: decisions, feedback and snapshots."""

    url: Annotated[SecretStr, Field(max_length=2_048), AfterValidator(_engine)] | None = Field(
        default=None, description="Valkey or Redis server that holds it, for several processes; without it a file."
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = Field(
        default="pointsman", description="What its keys on that server begin with; the same for all that share it."
    )
    synchronous: Literal["full", "normal"] = Field(
        default="full", description="full survives a power cut; normal is faster and survives only a killed process."
    )
    queue_limit: Count = Field(
        default=10_000, ge=1, le=10_000_000, description="Most events waiting to be written; beyond it calls get 503."
    )
    snapshot_every_events: Count = Field(
        default=20_000, ge=1, le=1_000_000_000, description="Events between two snapshots of what was learned."
    )
    cache_decisions: Count = Field(
        default=2_000, ge=1_000, le=10_000_000, description="Recent decisions kept in memory for the feedback to come."
    )


class LogSettings(Section):
    """The analytical log."""

    flush_interval_s: Number = Field(
        default=10.0, ge=0.05, le=3600, description="Seconds between two batches written to the analytical log."
    )
    batch_rows: Count = Field(
        default=50_000, ge=1, le=10_000_000, description="Most rows written to the analytical log in one batch."
    )
    retention_days: Number | None = Field(
        default=None, gt=0, le=36_600, description="Days that rows stay in the analytical log; none: for ever."
    )


class Settings(Section):
    """The whole configuration. Made by `load_settings` or `parse`: only they check section against section."""

    server: Annotated[ServerSettings, OrDefaults] = Field(
        default_factory=ServerSettings, description="Where the service listens and what it accepts."
    )
    auth: AuthSettings | None = Field(
        default=None, description="Who may call; without it anyone may, on a loopback address only."
    )
    tiers: Annotated[tuple[TierSettings, ...], BeforeValidator(lambda v: () if v is None else v)] = Field(
        default=(), max_length=100, description="What callers of each tier may use."
    )
    store: Annotated[StoreSettings, OrDefaults] = Field(
        default_factory=StoreSettings, description="The operational store."
    )
    failures: Annotated[FailureSettings, OrDefaults] = Field(
        default_factory=FailureSettings, description="What happens when a call fails, where its pool says nothing."
    )
    budgets: Annotated[Budgets, BeforeValidator(lambda v: () if v is None else v)] = Field(
        default=(), description="What callers may spend."
    )
    limits: Annotated[Limits, BeforeValidator(lambda v: () if v is None else v)] = Field(
        default=(), description="How fast callers may call."
    )
    metering: Annotated[MeteringSettings, OrDefaults] = Field(
        default_factory=MeteringSettings, description="What keeping count of callers may take."
    )
    overload: Annotated[OverloadSettings, OrDefaults] = Field(
        default_factory=OverloadSettings, description="How many calls run at a time, and who waits."
    )
    faults: Annotated[FaultSettings, OrDefaults] = Field(
        default_factory=FaultSettings, description="Faults on purpose, for game days."
    )
    dashboard: Annotated[DashboardSettings, OrDefaults] = Field(
        default_factory=DashboardSettings, description="The page at /dashboard and its live feed."
    )
    log: Annotated[LogSettings, OrDefaults] = Field(default_factory=LogSettings, description="The analytical log.")
    logging: Annotated[LoggingSettings, OrDefaults] = Field(
        default_factory=LoggingSettings, description="The service's log, on standard error."
    )
    tracing: TracingSettings | None = Field(
        default=None, description="Where traces of calls go; without it there are none."
    )
    models: tuple[ModelSettings, ...] = Field(min_length=1, max_length=1000, description="The models.")
    pools: tuple[PoolSettings, ...] = Field(min_length=1, max_length=1000, description="The pools.")
    benchmarks: Annotated[tuple[BenchmarkSettings, ...], BeforeValidator(lambda v: () if v is None else v)] = Field(
        default=(), max_length=100, description="Suites that the service has run by itself."
    )

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Settings:
        """Settings from plain values, as a file would give them; `${VAR}` is not read. Raises ConfigError."""
        return _settings(Document(data=dict(data)))

    def model(self, name: str) -> ModelSettings:
        """The model called `name`; raises KeyError if there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the models are called."""
        return tuple(place.url for model in self.models for place in model.places)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is allowed but probably not meant."""
        return tuple(doubts(self))
