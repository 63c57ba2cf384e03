"""The form of the analytical log: its tables, which kind of event fills which, and how an older file becomes new.

A payload's keys are its table's columns. Opens no file and never knows what a value is used for.
"""

from __future__ import annotations

__all__ = ["MIGRATIONS", "SCHEMA_VERSION", "TABLES"]

SCHEMA_VERSION = 4
_OF_A_DECISION = {"seq": "BIGINT", "decision_id": "VARCHAR", "ts": "DOUBLE"}
_OF_NO_DECISION = {"seq": "BIGINT", "ts": "DOUBLE"}
TABLES: dict[str, tuple[str, dict[str, str]]] = {  # kind of event: its table, its columns
    "decision": (
        "decisions",
        _OF_A_DECISION
        | {
            "pool": "VARCHAR",
            "mode": "VARCHAR",
            "step": "BIGINT",
            "context": "FLOAT[]",
            "context_version": "VARCHAR",
            "input_tokens": "BIGINT",
            "category": "VARCHAR",
            "policy_version": "VARCHAR",
            "arms": "VARCHAR[]",
            "feasible": "BOOLEAN[]",
            "probabilities": "DOUBLE[]",
            "chosen": "VARCHAR",
            "propensity": "DOUBLE",
            "predicted_quality": "DOUBLE[]",
            "predicted_cost_usd": "DOUBLE[]",
            "predicted_latency_s": "DOUBLE[]",
            "pacer_multiplier": "DOUBLE",
            "infeasible": "BOOLEAN",
            "withheld_usd": "DOUBLE",
            "user": "VARCHAR",
            "team": "VARCHAR",
            "tier": "VARCHAR",
            "tags": "MAP(VARCHAR, VARCHAR)",
            "key_id": "VARCHAR",
            "session": "VARCHAR",
            "experiment": "VARCHAR",
            "origin": "VARCHAR",
        },
    ),
    "outcome": (
        "outcomes",
        _OF_A_DECISION
        | {
            "attempt": "INTEGER",
            "model": "VARCHAR",
            "status": "VARCHAR",
            "http_status": "INTEGER",
            "error": "VARCHAR",
            "latency_s": "DOUBLE",
            "time_to_first_token_s": "DOUBLE",
            "input_tokens": "BIGINT",
            "output_tokens": "BIGINT",
            "cost_usd": "DOUBLE",
            "stream": "BOOLEAN",
            "tokens_estimated": "BOOLEAN",
            "endpoint": "VARCHAR",
            "cached_tokens": "BIGINT",
            "saved_usd": "DOUBLE",
        },
    ),
    "feedback": (
        "rewards",
        _OF_A_DECISION
        | {
            "quality": "DOUBLE",
            "metrics": "MAP(VARCHAR, DOUBLE)",
            "revision": "INTEGER",
            "revises": "DOUBLE",
            "reward": "DOUBLE",
        },
    ),
    "filter_event": (
        "filter_events",
        _OF_NO_DECISION
        | {
            "pool": "VARCHAR",
            "model": "VARCHAR",
            "constraint_name": "VARCHAR",
            "from_state": "VARCHAR",
            "to_state": "VARCHAR",
            "reason": "VARCHAR",
            "calls": "BIGINT",
            "rate": "DOUBLE",
            "limit_rate": "DOUBLE",
            "evidence": "DOUBLE",
        },
    ),
    "benchmark_result": (
        "benchmark_results",
        _OF_NO_DECISION
        | {
            "suite": "VARCHAR",
            "run": "VARCHAR",
            "item_id": "VARCHAR",
            "category": "VARCHAR",
            "model": "VARCHAR",
            "quality": "DOUBLE",
            "latency_s": "DOUBLE",
            "cost_usd": "DOUBLE",
            "input_tokens": "BIGINT",
            "output_tokens": "BIGINT",
            "error": "VARCHAR",
        },
    ),
    "change": (
        "changes",
        _OF_NO_DECISION
        | {
            "subject": "VARCHAR",
            "what": "VARCHAR",
            "pool": "VARCHAR",
            "model": "VARCHAR",
            "before": "VARCHAR",
            "after": "VARCHAR",
            "reason": "VARCHAR",
            "by": "VARCHAR",
        },
    ),
}
TABLES |= dict.fromkeys(("model_added", "model_removed"), TABLES["filter_event"])
MIGRATIONS = {  # from a version to the next; what an earlier program never did is 0
    1: "ALTER TABLE log.decisions ADD COLUMN withheld_usd DOUBLE DEFAULT 0",
    2: "ALTER TABLE log.benchmark_results ADD COLUMN run VARCHAR;"
    " ALTER TABLE log.benchmark_results ADD COLUMN input_tokens BIGINT;"
    " ALTER TABLE log.benchmark_results ADD COLUMN output_tokens BIGINT",
    3: "ALTER TABLE log.decisions ADD COLUMN key_id VARCHAR;"
    " ALTER TABLE log.decisions ADD COLUMN session VARCHAR;"
    " ALTER TABLE log.decisions ADD COLUMN experiment VARCHAR;"
    " ALTER TABLE log.decisions ADD COLUMN origin VARCHAR;"
    " ALTER TABLE log.outcomes ADD COLUMN endpoint VARCHAR;"
    " ALTER TABLE log.outcomes ADD COLUMN cached_tokens BIGINT;"
    " ALTER TABLE log.outcomes ADD COLUMN saved_usd DOUBLE;"
    " CREATE TABLE log.changes (seq BIGINT, ts DOUBLE, subject VARCHAR, what VARCHAR, pool VARCHAR, model VARCHAR,"
    ' "before" VARCHAR, "after" VARCHAR, reason VARCHAR, "by" VARCHAR)',
}
