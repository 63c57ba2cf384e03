"""One experiment: which variant a user or session gets, and what its calls say of the variants so far.

Who gets what is a hash of the experiment's name and the unit alone: it needs no memory and is the same after a restart.
Of each unit only the first figure counts: units are independent, calls of one unit are not. Steers nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from bandit.comparison import Comparison
from bandit.types import Feedback, Outcome
from serving.access.scopes import member_of
from serving.imputation import is_imputed
from serving.records import Labels, Record
from serving.traffic.settings import ExperimentSettings, VariantSettings

__all__ = ["Experiment"]


class Experiment:
    """An experiment of a pool, begun at unix time `started` (None: with the configuration)."""

    def __init__(self, pool: str, settings: ExperimentSettings, started: float | None) -> None:
        self.settings, self.started = settings, started
        self._salt = blake2b(f"{pool}/{settings.name}".encode()).digest()
        self._control, *others = (variant.name for variant in settings.variants)
        relative = settings.metric != "quality"
        self._comparisons = {name: Comparison(settings.resolution, relative=relative) for name in others}
        self._counted: dict[str, None] = {}  # units, in the order in which they came
        self._calls = dict.fromkeys((variant.name for variant in settings.variants), 0)

    def variant(self, unit: str) -> VariantSettings | None:
        """The variant of a unit; None for one that stays outside."""
        place = self._place(unit)
        for variant in self.settings.variants:
            place -= variant.share
            if place < 0.0:
                return variant
        return None

    def unit(self, labels: Labels) -> str | None:
        """The user (of its team) or session a call is of, as far as it says."""
        return labels.session if self.settings.unit == "session" else member_of("user", "*", None, labels.principal)

    def label(self, variant: VariantSettings) -> str:
        """What the log calls an exposure to a variant."""
        return f"{self.settings.name}/{variant.name}"

    def decided(self, record: Record) -> None:
        """Count a call that saw a variant."""
        name = self._seen(record)
        if name is not None:
            self._calls[name] += 1

    def outcome(self, record: Record, outcome: Outcome) -> None:
        """Take in what an attempt yielded: a failure has quality 0, and a latency as long as it was."""
        metric = self.settings.metric
        if metric == "cost":
            self._count(record, outcome.cost_usd)
        elif metric == "latency":
            self._count(record, outcome.latency_s if outcome.failed or outcome.status == "ok" else None)
        elif outcome.failed:
            self._count(record, 0.0)

    def feedback(self, record: Record, feedback: Feedback) -> None:
        """Take in the first feedback that a unit's answers got; what was assumed does not count."""
        if self.settings.metric == "quality" and not is_imputed(feedback):
            self._count(record, feedback.quality)

    def status(self) -> dict[str, Any]:
        """What can be said so far; intervals hold however often this is looked at."""
        settings = self.settings
        return {
            "name": settings.name,
            "unit": settings.unit,
            "metric": settings.metric,
            "started": self.started,
            "units": len(self._counted),
            "full": len(self._counted) >= settings.max_units,
            "variants": [
                {"name": v.name, "share": v.share, "weights": v.shares, "calls": self._calls[v.name]}
                for v in settings.variants
            ],
            "comparisons": [self._compared(name, pair) for name, pair in self._comparisons.items()],
        }

    def state(self) -> dict[str, Any]:
        """All that was counted, as plain data; `load` is its inverse."""
        return {
            "settings": self.settings.model_dump(),
            "started": self.started,
            "units": list(self._counted),
            "calls": dict(self._calls),
            "comparisons": {name: pair.state() for name, pair in self._comparisons.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what was counted under the same settings; under others it says nothing."""
        if ExperimentSettings.model_validate(state["settings"]) != self.settings:
            return
        self.started = state["started"]
        self._counted = dict.fromkeys(state["units"])
        self._calls = dict(state["calls"])
        for name, sums in state["comparisons"].items():
            self._comparisons[name].load(sums)

    def _place(self, unit: str) -> float:
        """Where in [0, 1) a unit falls."""
        return int.from_bytes(self._hash(unit), "big") / 2.0**64

    def _hash(self, unit: str) -> bytes:
        return blake2b(unit.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=8).digest()

    def _seen(self, record: Record) -> str | None:
        """The variant whose rule a call was under; None for one that was not under this experiment's."""
        name, _, variant = (record.labels.experiment or "").partition("/")
        return variant if name == self.settings.name and variant in self._calls else None

    def _count(self, record: Record, value: float | None) -> None:
        variant, unit = self._seen(record), self.unit(record.labels)
        if variant is None or unit is None or value is None or len(self._counted) >= self.settings.max_units:
            return
        key = self._hash(unit).hex()
        if key in self._counted:
            return
        self._counted[key] = None
        if variant == self._control:
            for pair in self._comparisons.values():
                pair.add("control", value)
        else:
            self._comparisons[variant].add("treated", value)

    def _compared(self, name: str, pair: Comparison) -> dict[str, Any]:
        each_side = self.settings.alpha / 2 / len(self._comparisons)
        low, high = pair.interval(each_side)
        less, more = ("worse", "better") if self.settings.metric == "quality" else ("better", "worse")
        verdict = less if high < 0.0 else more if low > 0.0 else "open"
        summary = {"variant": name, "against": self._control, "verdict": verdict} | dict(pair.summary(each_side))
        return summary | {"relative": self.settings.metric != "quality"}
