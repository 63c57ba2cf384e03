"""A pool with its learner, its traffic and its steering, on a store in memory, for tests of steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bandit.types import Feedback, Outcome
from serving.admission import Principal
from serving.learner import Learner
from serving.metrics import Metrics
from serving.pools import build_pool
from serving.records import Caller
from serving.request_headers import read_hints
from serving.roster import Roster
from serving.settings import Settings
from serving.traffic.canaries import Canary
from serving.traffic.state import Traffic
from serving.traffic.steering import Steering
from serving.wire import parse_call

KEY = b"k" * 32
NAMES = ("a", "b", "c")


class Endpoints:
    """Endpoints that are up but for those in `down`, and take any call but for those in `mute`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.down, self.mute = names, set[str](), set[str]()

    def __contains__(self, model: object) -> bool:
        return model in self.names

    def available(self, model: str) -> bool:
        return model not in self.down

    def rested(self, model: str) -> bool:
        """As available: none of these asks for rest."""
        return self.available(model)

    def all_ready(self, models: Sequence[str], call: Any) -> bool:
        """By the four others."""
        return all(self.serves(m, call.kind) and self.can_say(m, call) and self.rested(m) for m in models)

    def serves(self, model: str, kind: str) -> bool:
        """Whatever OpenAI's protocol has."""
        return model in self.names and kind != "infer"

    def can_say(self, model: str, call: Any) -> bool:  # noqa: ARG002 - what the real one takes
        """Whatever the call is."""
        return model not in self.mute


class Steered:
    """Everything of one pool `auto` over `names`, with `more` settings; another over the same store is a restart.

    `folds`: parts beside the traffic that are to hear of what is logged.
    """

    def __init__(
        self, store: Any, names: tuple[str, ...] = NAMES, seed: int = 1, folds: tuple[Any, ...] = (), **more: Any
    ) -> None:
        price = {"input_per_million": 1.0, "output_per_million": 10.0}
        data = {
            "models": [{"name": name, "endpoint": "http://127.0.0.1:1/v1", "price": price} for name in names],
            "pools": [{"name": "auto", "models": list(names), **more}],
        }
        self.settings, self.names, self.store = Settings.parse(data), names, store
        (pool,) = self.settings.pools
        self.pool = build_pool(pool, self.settings)
        self.traffic = Traffic([pool], {"auto": Canary(self.pool, pool.canary)})
        self.learner = Learner(
            {"auto": self.pool},
            {"auto": np.random.default_rng(seed)},
            store,
            Metrics(),
            cache_decisions=1_000,
            snapshot_every_events=10**9,
            roster=Roster(self.settings.models, {"auto": names}, {}),
            folds=(self.traffic, *folds),
        )
        self.learner.recover()
        self.endpoints = Endpoints(names)
        self.steering = Steering(self.learner, self.traffic, self.endpoints, KEY, np.random.default_rng(seed))

    @property
    def own(self) -> Any:
        return self.traffic.pools["auto"]

    def change(self, what: str, after: Any, ts: float = 1.0) -> None:
        self.learner.change([self.own.row(what, after, "admin", ts)])

    def decide(self, session: str | None = None, *, ts: float = 10.0, loop: bool = False, **more: Any) -> Any:
        """(decision, labels), recorded, of a call of `user`, `team`."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
        if loop:
            calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
            messages += [{"role": "assistant", "tool_calls": calls}]
            messages += [{"role": "tool", "tool_call_id": "1", "content": "4"}]
        headers = {"x-pointsman-session": session} if session is not None else {}
        body: Mapping[str, Any] = {"model": more.pop("model", "auto"), "messages": messages}
        call = parse_call("chat/completions", dict(body), read_hints(headers | more.pop("headers", {})), 100)
        self.call = call
        decision, labels = self.steering.decide(call, Caller(Principal(**more)), ts)
        record, _ = self.learner.record_decision(decision, labels)
        self.record = record
        return decision, labels

    def outcome(self, model: str | None = None, **more: Any) -> None:
        """The last decision's outcome, of the model it chose or another one's."""
        decision = self.record.decision
        values = {"status": "ok", "latency_s": 0.1, "input_tokens": 10, "output_tokens": 10, "cost_usd": 1e-4} | more
        self.learner.note_outcome(
            self.record, Outcome(decision.decision_id, decision.ts, model or decision.chosen, **values)
        )

    def feedback(self, quality: float) -> None:
        decision = self.record.decision
        self.learner.record_feedback(self.record, Feedback(decision.decision_id, decision.ts, quality))
