"""What is counted of every decision, attempt and first feedback, by pool and model.

The hot path adds plain numbers of one tally; Prometheus's form is made when it asks. The only place where calls, tokens
and cost are counted, from what was logged, so that they equal the log's. Labels are pools, models and fixed words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serving.spread import Spread

if TYPE_CHECKING:
    from prometheus_client import Metric

    from bandit.types import Decision, Outcome

__all__ = ["DURATION_BUCKETS_S", "CallMetrics"]

# As OpenTelemetry's semantic conventions for generative AI advise (gen_ai.client.operation.duration,
# gen_ai.server.time_to_first_token, gen_ai.client.token.usage), so that histograms of different services add up.
DURATION_BUCKETS_S: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_TOKEN_BUCKETS: Final = tuple(4.0**power for power in range(14))
_QUALITY_BUCKETS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_PROPENSITY_BUCKETS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0)
_DRAWN: Final = ("bandit", "weighted", "canary")  # modes whose model was drawn from probabilities, for its call alone
_POOL_MODEL: Final = ("pool", "model")
_SUMS: Final = {  # attributes of a tally that are metrics of their own
    "cost_usd": "Cost of all attempts in USD, as far as known.",
    "cache_saved_usd": "What answers from the cache would have cost in USD.",
    "successes": "Decisions whose first quality was slo.success_quality or better.",
    "graded_cost_usd": "Cost in USD of calls that got a quality, as far as known.",
}


class _Tally:
    """Of one pool and model."""

    __slots__ = (
        "attempts",
        "cache_saved_usd",
        "cost_usd",
        "decisions",
        "duration",
        "first_token",
        "graded_cost_usd",
        "input_sizes",
        "input_tokens",
        "output_sizes",
        "output_tokens",
        "quality",
        "successes",
    )

    def __init__(self) -> None:
        self.decisions: dict[str, int] = {}  # by mode
        self.attempts: dict[tuple[str, str], int] = {}  # by mode and status
        self.input_tokens = self.output_tokens = self.successes = 0
        self.cost_usd = self.cache_saved_usd = self.graded_cost_usd = 0.0
        self.duration, self.first_token = Spread(DURATION_BUCKETS_S), Spread(_FIRST_TOKEN_BUCKETS_S)
        self.input_sizes, self.output_sizes = Spread(_TOKEN_BUCKETS), Spread(_TOKEN_BUCKETS)
        self.quality = Spread(_QUALITY_BUCKETS)


class CallMetrics(Collector):
    """The tallies of all pools and models. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._propensities: dict[str, Spread] = {}

    def decided(self, decision: Decision) -> None:
        """Count a decision that was recorded."""
        pool, mode = decision.pool, decision.mode
        decisions = self._of(pool, decision.chosen).decisions
        decisions[mode] = decisions.get(mode, 0) + 1
        if mode in _DRAWN:
            spread = self._propensities.get(pool)
            if spread is None:
                spread = self._propensities[pool] = Spread(_PROPENSITY_BUCKETS)
            spread.observe(decision.propensity)

    def attempt(self, pool: str, mode: str, outcome: Outcome) -> None:
        """Count one attempt that was recorded."""
        tally, key = self._of(pool, outcome.model), (mode, outcome.status)
        tally.attempts[key] = tally.attempts.get(key, 0) + 1
        input_tokens, output_tokens = outcome.input_tokens or 0, outcome.output_tokens or 0
        tally.input_tokens += input_tokens
        tally.output_tokens += output_tokens
        tally.cost_usd += outcome.cost_usd or 0.0
        tally.cache_saved_usd += outcome.saved_usd or 0.0
        if outcome.status != "ok" or mode == "cached" or outcome.latency_s is None:
            return
        tally.duration.observe(outcome.latency_s)
        if outcome.stream and outcome.time_to_first_token_s is not None:
            tally.first_token.observe(outcome.time_to_first_token_s)
        if outcome.input_tokens is not None:
            tally.input_sizes.observe(input_tokens)
        if outcome.output_tokens is not None:
            tally.output_sizes.observe(output_tokens)

    def graded(self, pool: str, model: str, quality: float, cost_usd: float | None, level: float | None) -> None:
        """Count the first quality posted for a decision; `level` is that of a success, where the pool has one."""
        tally = self._of(pool, model)
        tally.quality.observe(quality)
        if level is not None:
            tally.successes += quality >= level
            tally.graded_cost_usd += cost_usd or 0.0

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is shown."""
        decisions = _counter("decisions", "Decisions by the model chosen.", *_POOL_MODEL, "mode")
        attempts = _counter("calls", "Attempts by their outcome.", *_POOL_MODEL, "mode", "status")
        for (pool, model), tally in self._tallies.items():
            for mode, count in tally.decisions.items():
                decisions.add_metric((pool, model, mode), count)
            for (mode, status), count in tally.attempts.items():
                attempts.add_metric((pool, model, mode, status), count)
        yield from (decisions, attempts, *self._sums())
        yield from (
            self._spread("call_duration_seconds", "Upstream time of a good call.", lambda t: t.duration),
            self._spread("time_to_first_token_seconds", "Upstream time to the first token.", lambda t: t.first_token),
            self._spread("quality", "The first quality posted for a decision.", lambda t: t.quality),
        )
        sizes = _histogram("call_tokens", "Tokens of a good call.", *_POOL_MODEL, "direction")
        for labels, tally in self._tallies.items():
            tally.input_sizes.show(sizes, *labels, "input")
            tally.output_sizes.show(sizes, *labels, "output")
        propensity = _histogram("propensity", "Probability with which a drawn model was drawn.", "pool")
        for pool, spread in self._propensities.items():
            spread.show(propensity, pool)
        yield from (sizes, propensity)

    def _sums(self) -> Iterator[Metric]:
        tokens = _counter("tokens", "Tokens of all attempts, as far as known.", *_POOL_MODEL, "direction")
        for labels, tally in self._tallies.items():
            tokens.add_metric((*labels, "input"), tally.input_tokens)
            tokens.add_metric((*labels, "output"), tally.output_tokens)
        yield tokens
        for name, text in _SUMS.items():
            family = _counter(name, text, *_POOL_MODEL)
            for labels, tally in self._tallies.items():
                family.add_metric(labels, getattr(tally, name))
            yield family

    def _spread(self, name: str, text: str, of: Callable[[_Tally], Spread]) -> Metric:
        family = _histogram(name, text, *_POOL_MODEL)
        for labels, tally in self._tallies.items():
            of(tally).show(family, *labels)
        return family

    def _of(self, pool: str, model: str) -> _Tally:
        tally = self._tallies.get((pool, model))
        if tally is None:
            tally = self._tallies[pool, model] = _Tally()
        return tally


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"pointsman_{name}", text, labels=labels)


def _histogram(name: str, text: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"pointsman_{name}", text, labels=labels)
