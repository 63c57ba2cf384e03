"""LiteLLM's `general_settings` and `environment_variables`: who may call, how much at a time, and what is left to do.

Owns what they mean here and why most mean nothing. It must never know models or pools.
"""

from __future__ import annotations

from typing import Any

from serving.commands.litellm_file import Source, reference
from serving.commands.litellm_models import Variables
from serving.commands.litellm_routing import Rules

__all__ = ["read_service"]

_ADMIN_KEY = "POINTSMAN_ADMIN_KEY"
_DATABASE = "is not carried over: the service keeps its own files; make callers' keys by `pointsman keys create`"
_ALERTS = "is not carried over: budgets call webhooks, and /metrics is for alerts"
_LOGS = "is not carried over: the log (log.duckdb) says what was called, without prompts"
_GENERAL_LEFT = {
    "database_url": _DATABASE,
    "database_connection_pool_limit": _DATABASE,
    "database_connection_timeout": _DATABASE,
    "store_model_in_db": "is not carried over: models that are only in the database must be written down",
    "supported_db_objects": _DATABASE,
    "alerting": _ALERTS,
    "alerting_threshold": _ALERTS,
    "alerting_args": _ALERTS,
    "alert_types": _ALERTS,
    "alert_to_webhook_url": _ALERTS,
    "spend_report_frequency": _ALERTS,
    "disable_spend_logs": _LOGS,
    "store_prompts_in_spend_logs": _LOGS,
    "maximum_spend_logs_retention_period": _LOGS,
    "custom_auth": "is not carried over: keys and tokens (auth.jwt) say who calls",
    "enable_jwt_auth": "is not carried over: write auth.jwt",
    "litellm_jwtauth": "is not carried over: write auth.jwt",
    "key_management_system": "is not carried over: keys are read from the environment",
    "key_management_settings": "is not carried over: keys are read from the environment",
    "use_azure_key_vault": "is not carried over: keys are read from the environment",
    "use_google_kms": "is not carried over: keys are read from the environment",
    "pass_through_endpoints": "is not carried over: only inference is passed on",
    "background_health_checks": "needs nothing: real calls and the circuit breaker's probes tell who is well",
    "health_check_interval": "needs nothing: real calls and the circuit breaker's probes tell who is well",
    "completion_model": "is not carried over: a request names its model",
    "embedding_model": "is not carried over: a request names its model",
    "forward_client_headers_to_llm_api": "is not carried over: callers' headers go no further",
    "allowed_ips": "is not carried over: that is a firewall's matter",
}


def read_service(source: Source, variables: Variables, rules: Rules) -> dict[str, Any]:
    """The sections `server`, `auth` and `overload`, where the file says something about them."""
    general, made = source.section("general_settings"), dict[str, Any]()
    server: dict[str, Any] = {}
    for theirs, ours, most in (
        ("max_request_size_mb", "max_body_bytes", 2**30),
        ("max_response_size_mb", "max_response_bytes", 2**31),
    ):
        megabytes = general.number(theirs, least=0.001)
        if megabytes is not None:
            server[ours] = min(most, int(megabytes * 2**20))
    made |= {"server": server} if server else {}
    key = general.take("master_key")
    if key is not None:
        made["auth"] = {"admin_key": reference(key) or f"${{{variables.name(str(key), _ADMIN_KEY)}}}"}
        short = "; here it needs at least 8 characters" if len(str(key)) < 8 else ""
        if reference(key) is None:
            name = variables.name(str(key), _ADMIN_KEY)
            general.note("master_key", f"is not copied: set {name} to the key that stands here{short}")
    concurrent = general.number("global_max_parallel_requests", least=1.0)
    made |= {"overload": {"max_concurrent": min(100_000, int(concurrent))}} if concurrent is not None else {}
    each = general.number("max_parallel_requests", least=1.0)
    if each is not None and rules.max_concurrent is None:
        rules.max_concurrent = min(100_000, int(each))
    general.leave(_GENERAL_LEFT)
    environment = source.section("environment_variables")
    for name in environment.names:
        environment.note(name, "is not copied: set it in the service's environment, if something here still reads it")
    return made
