"""What goes wrong at an upstream on trial, and when: faults for a share of calls, and latencies that shift.

Says what is to happen; `upstreams` makes it happen. Knows neither HTTP nor a clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bandit.errors import InvalidInput
from evaluation.answers import Source

__all__ = ["ANY_MODEL", "Conditions", "Fault", "LatencyShift", "parse_faults"]

FaultKind = Literal["status", "timeout", "stall", "malformed", "reset", "slow", "context_window", "content_policy"]

ANY_MODEL: Final = "*"
MAX_LATENCY_MULTIPLIER: Final = 1000.0
SLOW_BY_S: Final = 5.0
MAX_SLOW_BY_S: Final = 3600.0
_KINDS: Final = (
    "status-CODE (400 to 599), timeout, stall, malformed, reset, slow, slow-SECONDS, context_window or content_policy"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """How a share of a model's calls fails.

    status: answers an error at once (`status`). timeout: never answers. stall: stops in the middle, and
    stays. malformed: sends broken JSON. reset: breaks the connection, a stream's in the middle. slow: comes
    `slow_by_s` late, its first byte included. context_window, content_policy: refuses the request (400) as OpenAI's
    API does.
    """

    kind: FaultKind
    share: float = 1.0
    status: int = 500
    slow_by_s: float = SLOW_BY_S

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InvalidInput("share", f"must be between 0 and 1, not {self.share!r}")
        if not 400 <= self.status <= 599:
            raise InvalidInput("kind", f"status must be between 400 and 599, not {self.status!r}")
        if not 0.0 <= self.slow_by_s <= MAX_SLOW_BY_S:
            raise InvalidInput("kind", f"slow must be between 0 and {MAX_SLOW_BY_S:g} s, not {self.slow_by_s!r}")

    @classmethod
    def of(cls, kind: str, share: float = 1.0) -> Fault:
        """From words such as `status-429`, `timeout` or `slow-2.5`. Raises InvalidInput."""
        name, _, argument = kind.partition("-")
        try:
            if name == "status":
                return cls("status", share, status=int(argument))
            if name == "slow":
                return cls("slow", share, slow_by_s=float(argument) if argument else SLOW_BY_S)
        except InvalidInput:
            raise
        except ValueError:
            name = ""
        if argument or name not in get_args(FaultKind):
            raise InvalidInput("kind", f"{kind!r} is no kind of fault; use {_KINDS}")
        return cls(name, share)  # type: ignore[arg-type]  # just compared with the literal's values

    def __str__(self) -> str:
        argument = {"status": f"-{self.status}", "slow": f"-{self.slow_by_s:g}"}.get(self.kind, "")
        return f"{self.kind}{argument}"


def parse_faults(specs: Iterable[str]) -> dict[str, Fault]:
    """`MODEL=KIND[:SHARE]` each, MODEL `*` for every model without its own. Raises InvalidInput."""
    faults: dict[str, Fault] = {}
    for spec in specs:
        model, equals, rest = spec.rpartition("=")
        kind, _, share = rest.partition(":")
        if not equals or not model:
            raise InvalidInput("fault", f"{spec!r} must be MODEL=KIND or MODEL=KIND:SHARE")
        if model in faults:
            raise InvalidInput("fault", f"{model!r} has two; a model can have one")
        try:
            faults[model] = Fault.of(kind, float(share) if share else 1.0)
        except ValueError as error:  # InvalidInput is one
            raise InvalidInput("fault", f"{spec!r}: {error}") from None
    return faults


@dataclass(frozen=True, slots=True)
class LatencyShift:
    """`start_s` to `end_s` after the start, a model (`*`: every model) takes `multiplier` times as long."""

    model: str
    multiplier: float
    start_s: float = 0.0
    end_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0.0 < self.multiplier <= MAX_LATENCY_MULTIPLIER:
            raise InvalidInput("multiplier", f"must be above 0 and at most {MAX_LATENCY_MULTIPLIER:g}")
        if not 0.0 <= self.start_s < self.end_s:
            raise InvalidInput("start_s", f"must be at least 0 and before end_s, not {self.start_s!r}")


class _FaultBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: str
    share: float = Field(default=1.0, ge=0.0, le=1.0)


class _ControlBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    run: str | None = None
    faults: dict[str, _FaultBody | None] = {}
    latency_multiplier: dict[str, float] = {}


class Conditions:
    """The faults and latencies in force for the models of one source; changed by `control` while running."""

    def __init__(
        self, source: Source, faults: Mapping[str, Fault] | None = None, shifts: Sequence[LatencyShift] = ()
    ) -> None:
        self._source = source
        self._known = {*source.models, ANY_MODEL}
        self.faults = dict(faults or {})
        self.multipliers: dict[str, float] = {}
        self._shifts = tuple(shifts)
        for model in (*self.faults, *(shift.model for shift in shifts)):
            self._check_model("model", model)

    def draw_fault(self, model: str, rng: np.random.Generator) -> Fault | None:
        """The fault that befalls this call, if one does. A model's own, even of share 0, hides that of `*`."""
        fault = self.faults.get(model) or self.faults.get(ANY_MODEL)
        return fault if fault is not None and rng.random() < fault.share else None

    def latency_factor(self, model: str, elapsed_s: float) -> float:
        """Product of the multipliers and shifts that hold for a model `elapsed_s` after the start."""
        factor = self.multipliers.get(model, self.multipliers.get(ANY_MODEL, 1.0))
        for shift in self._shifts:
            if shift.start_s <= elapsed_s < shift.end_s and shift.model in (model, ANY_MODEL):
                factor *= shift.multiplier
        return factor

    def control(self, body: bytes) -> None:
        """Apply `{"run", "faults": {model: {"kind", "share"} or null}, "latency_multiplier": {model: x}}`.

        Named models change, others stay; null ends a fault. Raises InvalidInput, and then changes nothing.
        """
        try:
            wanted = _ControlBody.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidInput(".".join(map(str, first["loc"])) or "body", first["msg"]) from None
        faults, multipliers = dict(self.faults), dict(self.multipliers)
        for model, fault in wanted.faults.items():
            self._check_model(f"faults.{model}", model)
            faults.pop(model, None)
            if fault is not None:
                faults[model] = _named(f"faults.{model}", fault)
        for model, multiplier in wanted.latency_multiplier.items():
            self._check_model(f"latency_multiplier.{model}", model)
            if not 0.0 < multiplier <= MAX_LATENCY_MULTIPLIER:
                message = f"must be above 0 and at most {MAX_LATENCY_MULTIPLIER:g}, not {multiplier!r}"
                raise InvalidInput(f"latency_multiplier.{model}", message)
            multipliers[model] = multiplier
        if wanted.run is not None:
            self._source.use_run(wanted.run)
        self.faults, self.multipliers = faults, multipliers

    def to_json(self, elapsed_s: float) -> dict[str, Any]:
        """What is in force now, in the shape `control` takes, and the runs there are."""
        return {
            "run": self._source.run_at(elapsed_s),
            "runs": self._source.runs,
            "faults": {model: {"kind": str(fault), "share": fault.share} for model, fault in self.faults.items()},
            "latency_multiplier": {model: self.latency_factor(model, elapsed_s) for model in self._source.models},
        }

    def _check_model(self, field: str, model: str) -> None:
        if model not in self._known:
            raise InvalidInput(field, f"no model {model!r}; there are {', '.join(self._source.models)} and {ANY_MODEL}")


def _named(field: str, fault: _FaultBody) -> Fault:
    try:
        return Fault.of(fault.kind, fault.share)
    except InvalidInput as error:
        raise InvalidInput(field, str(error)) from None
