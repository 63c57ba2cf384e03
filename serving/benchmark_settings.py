"""The configuration's section `benchmarks`: which suites the service has run, how often and within what bounds.

Values only. Knows neither how a suite is run (`serving.schedule`) nor what is in one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from serving.config_values import Count, Name, Number, Section, reject

__all__ = ["BenchmarkSettings"]


def _suite(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or not value.isprintable():
        reject("must be the path of a suite, a file or folder")
    try:
        path = Path(value).expanduser()
        return path if path.stem else reject("must end in the suite's name")
    except RuntimeError:
        reject("names a home folder that is not known")


def _distinct(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for i, name in enumerate(names or ()):
        if name in (names or ())[:i]:
            reject("is listed twice", "remove one", (i,))
    return names


class BenchmarkSettings(Section):
    """One suite and when it is run."""

    suite: Annotated[Path, BeforeValidator(_suite)] = Field(
        description="The suite's file; its name without the ending is what results are recorded under."
    )
    every_hours: Number = Field(
        default=24.0, gt=0, le=8_784, description="Hours between two runs; none while the log has a younger result."
    )
    sample: Count | None = Field(
        default=100, ge=1, le=10_000_000, description="How many items a run asks, drawn anew each time; null for all."
    )
    pool: Name | None = Field(default=None, description="Ask the models of this pool.")
    models: Annotated[tuple[Name, ...] | None, AfterValidator(_distinct)] = Field(
        default=None, min_length=1, max_length=1000, description="Ask these models; without pool or models, all."
    )
    concurrency: Count = Field(default=4, ge=1, le=1_000, description="Most calls under way at a time.")
    budget_usd: Number | None = Field(default=None, gt=0, le=1e6, description="Most a run may cost, in USD.")
    timeout_s: Number = Field(default=14_400.0, gt=0, le=604_800, description="Seconds after which a run is ended.")

    @model_validator(mode="after")
    def _whom_to_ask(self) -> BenchmarkSettings:
        if self.pool is not None and self.models is not None:
            reject("cannot be given beside pool", "remove one of the two", ("models",))
        return self

    @property
    def name(self) -> str:
        """What its results are recorded under."""
        return self.suite.stem
