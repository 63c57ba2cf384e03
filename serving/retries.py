"""Which model a failed call goes to next, after which wait, and when it is enough.

Arithmetic on one call's attempts so far. Sends nothing, waits for nothing, and never knows what an answer is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serving.errors import UpstreamError, UpstreamRefused
from serving.failure_settings import FailureSettings, RetrySettings

__all__ = ["Next", "Plan", "RetryBudget"]


class Elsewhere(Protocol):
    """Says whether a model has an endpoint that has not failed the call and can take it at once."""

    def __call__(self, model: str, *, rested: bool) -> bool:
        """`rested`: and is not to rest."""
        ...


class RetryBudget:
    """Attempts beyond the first, over all calls: a share of them, and a burst. Without it, outages feed themselves."""

    def __init__(self, settings: RetrySettings) -> None:
        self._settings = settings
        self._saved = float(settings.burst)

    def call(self) -> None:
        """One more call began."""
        self._saved = min(float(self._settings.burst), self._saved + self._settings.budget)

    def take(self) -> bool:
        """Whether one more attempt may be made; it is taken."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Next:
    """The model to try, after so many seconds."""

    model: str
    wait_s: float = 0.0


@dataclass(slots=True)
class Plan:
    """The attempts of one call that was decided to go to `first`.

    `others`: models to fall back to, the best first, asked for once they are needed.
    """

    first: str
    settings: FailureSettings
    budget: RetryBudget
    others: Callable[[], Sequence[str]]
    rng: random.Random
    _made: dict[str, int] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)
    _order: list[str] | None = None

    @property
    def attempts(self) -> int:
        """Attempts made."""
        return sum(self._made.values())

    def made(self, model: str) -> None:
        """One attempt was made."""
        self._made[model] = self._made.get(model, 0) + 1

    def unfit(self, model: str) -> None:
        """Not this model, for this call."""
        self._refused.add(model)

    def after(self, error: UpstreamError, elsewhere: Elsewhere) -> Next | None:
        """What to try after `error`; None: nothing."""
        retries = self.settings.retries
        refused = isinstance(error, UpstreamRefused)
        cause = error.reason if isinstance(error, UpstreamRefused) else "errors"
        if cause is None or self.attempts >= retries.max_attempts:
            return None
        if refused:
            self._refused.add(error.model)
        candidates = [error.model, *self._fallbacks()] if cause in self.settings.on else [error.model]
        candidates = [m for m in candidates if m not in self._refused and self._made.get(m, 0) < retries.per_model]
        at_once = (model for rested in (True, False) for model in candidates if elsewhere(model, rested=rested))
        chosen = next(at_once, None)
        wait_s = 0.0
        if chosen is None and candidates and _passing(error):
            chosen = min(candidates, key=lambda model: self._made.get(model, 0))
            wait_s = self._backoff_s(chosen, error)
            if wait_s > retries.max_backoff_s:  # it asked for more time than is worth waiting
                return None
        if chosen is None or not self.budget.take():
            return None
        return Next(chosen, wait_s)

    def _fallbacks(self) -> list[str]:
        if self._order is None:
            self._order = [model for model in self.others() if model != self.first]
        return [self.first, *self._order]

    def _backoff_s(self, model: str, error: UpstreamError) -> float:
        """Exponential with full jitter (Brooker, 2015), or what the endpoint asks for where that is longer."""
        retries = self.settings.retries
        mean = min(retries.max_backoff_s, retries.backoff_s * 2 ** max(0, self._made.get(model, 1) - 1) * 2)
        asked = 0.0
        if error.retry_after is not None and error.retry_after.strip().isdigit():
            asked = float(error.retry_after.strip()[:9])
        return asked if asked > retries.max_backoff_s else max(asked, self.rng.uniform(0.0, mean))


def _passing(error: UpstreamError) -> bool:
    """Whether the same endpoint may do better in a moment: not where it minds our key, our path or the request."""
    status = error.http_status
    return status is None or status in (200, 408, 429) or status >= 500  # 200: an answer that was malformed
