"""Logs of a few rows that can be counted by hand, written by the service's own analytical log."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import orjson

from serving.analytics import AnalyticalLog
from serving.store import Event

START_TS = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class _Kept:
    def __init__(self):
        self.events = []

    @property
    def position(self):
        return len(self.events)

    def read(self, after_seq, limit):
        return self.events[after_seq : after_seq + limit]


class HandMadeLog:
    """Takes rows in the order of the log; `write` makes the file and returns its path."""

    def __init__(self, path: Path) -> None:
        self.path, self._kept, self._calls = path, _Kept(), 0

    def put(self, kind, **row):
        event = Event(kind, "", 0.0, orjson.dumps({"ts": START_TS} | row))
        self._kept.events.append(replace(event, seq=self._kept.position + 1))

    def call(self, chosen, *attempts, p=None, feedback=(), ts=START_TS, first_token_s=None, tokens=None, **more):
        """A decision between models of probabilities `p`, what came of it, and its feedback (quality, metrics).

        An attempt is (model, status, latency_s, cost_usd[, HTTP status]); without any: a good one of the model chosen.
        `tokens`: of each, those of the input, of them from a cache, and of the output.
        """
        name = f"d{self._calls}"
        self._calls += 1
        p = {"a": 0.5, "b": 0.5} if p is None else p
        row = {
            "mode": "bandit",
            "pool": "auto",
            "context": [1.0],
            "context_version": "v",
            "input_tokens": 10,
            "arms": list(p),
            "feasible": [True] * len(p),
            "probabilities": list(p.values()),
            "chosen": chosen,
            "propensity": p[chosen],
            "predicted_quality": [0.5] * len(p),
            "predicted_cost_usd": [0.01] * len(p),
            "predicted_latency_s": [1.0] * len(p),
        }
        self.put("decision", decision_id=name, ts=ts, **row | more)
        taken = tokens or (None, None, None)
        for i, (model, status, latency_s, cost_usd, *http) in enumerate(attempts or [(chosen, "ok", 1.0, 0.01)]):
            self.put(
                "outcome", decision_id=name, ts=ts, attempt=i, model=model, status=status, latency_s=latency_s,
                cost_usd=cost_usd, http_status=http[0] if http else None, error="broke" if http else None,
                time_to_first_token_s=first_token_s, input_tokens=taken[0], cached_tokens=taken[1],
                output_tokens=taken[2],
            )  # fmt: skip
        for quality, metrics in feedback:
            self.put("feedback", decision_id=name, ts=ts, quality=quality, metrics=metrics, reward=quality)

    def write(self) -> Path:
        async def copied():
            log = AnalyticalLog(self.path, self._kept)
            await log.flush()
            await log.close()
            assert (log.rejected_events, log.lag_events) == (0, 0)

        asyncio.run(copied())
        return self.path
