"""`pointsman report`: one page of figures and charts about a log, for people who would rather look.

Reads arguments and writes files; `evaluation.report` finds the figures, `evaluation.report_page` shows them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.problems import problems_told

if TYPE_CHECKING:
    from evaluation.candidates import Candidate
    from evaluation.logs import Log
    from evaluation.measures import Measures
    from evaluation.selection import SelectedRounds
    from serving.settings import PoolSettings, Settings

__all__ = ["report"]

_LATEST = 100_000  # decisions: ten models alone are judged on them in half a minute


def report(
    log: Annotated[list[Path], typer.Argument(metavar="LOG...", help="log.duckdb, its folder, or Parquet files.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the page here, an .html.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    pool: Annotated[str | None, typer.Option(help="The pool (default: the only one in the log).")] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Only decisions for which this holds.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on: ISO 8601, unix seconds, or 7d, 12h.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Takes limits, prices and the objective from here.")
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Compare this policy, as for replay; repeatable.")] = None,
    latest: Annotated[
        int, typer.Option(help="Estimate off-policy on the latest N decisions; 0: on all.", min=0)
    ] = _LATEST,
    min_effective_samples: Annotated[float, typer.Option(help="Below it the answer is 'cannot tell'.", min=2)] = 200.0,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
) -> None:
    """Write one self-contained page about a log: money, quality, latency, filters, exploration, other policies."""
    from rich.console import Console

    from bandit.errors import InvalidInput
    from evaluation.judgement import Standards
    from evaluation.logs import opened
    from evaluation.selection import Selection
    from serving.commands.policies import check_places, parse_time

    with problems_told(InvalidInput, OSError):
        if out is None and json_out is None:
            raise InvalidInput("--out", "say where the page is to be written: -o report.html")
        check_places(out, json_out)
        times = (parse_time(since, "--since"), parse_time(until, "--until"))
        with opened(log) as source, Console(stderr=True).status("reading and judging …"):
            selection = Selection(_pool_named(source, pool), where, *times, latest=latest or None)
            measured = _Measured(config, selection.pool, policy or (), [Path(name) for name in source.names])
            standards = Standards(min_effective_samples=min_effective_samples)
            data = _figures(source, selection, measured, standards, seed)
        _write(data, out, json_out)


def _pool_named(log: Log, name: str | None) -> str:
    from bandit.errors import InvalidInput

    pools = log.pools()
    if name is not None:
        return name
    if len(pools) != 1:
        counted = ", ".join(f"{pool!r} ({count:,})" for pool, count in pools.items())
        raise InvalidInput(*(("--pool", f"name one of {counted}") if pools else ("log", "no policy drew any decision")))
    return next(iter(pools))


class _Measured:
    """What a configuration, if there is one, says of a pool, and the policies to judge."""

    def __init__(self, config: Path | None, pool: str, policies: Sequence[str], log_paths: Sequence[Path]) -> None:
        self._policies, self._log_paths = policies, log_paths
        self._configured: tuple[Settings, PoolSettings] | None = None
        if config is not None:
            self._configured = _configured(config, pool)

    @property
    def limits(self) -> dict[str, float | None]:
        """The pool's limits, as far as they are known."""
        constraints = None if self._configured is None else self._configured[1].constraints
        names = ("p95_latency_s", "p95_time_to_first_token_s", "min_accuracy", "max_error_rate")
        return {name: getattr(constraints, name, None) for name in names}

    def measures(self, rounds: SelectedRounds) -> Measures:
        """How rounds are measured: as replay does, slow beyond the limit, or, where none is known, the log's p95."""
        from evaluation.measures import Measures
        from serving.commands.policies import measures_of

        fallback = self.limits["p95_latency_s"] or rounds.latency_quantile(0.95)
        if self._configured is None:
            return Measures(latency_limit_s=fallback)
        settings, pool = self._configured
        return measures_of(pool, settings, fallback)

    def candidates(self, rounds: SelectedRounds, measures: Measures) -> list[Candidate]:
        """The policies in their order; configurations' are made first, as they may bring models of their own."""
        from serving.commands.policies import candidate_of

        made: dict[int, Candidate] = {}
        order = sorted(range(len(self._policies)), key=lambda i: not self._policies[i].startswith("config:"))
        for i in order:
            made[i] = candidate_of(self._policies[i], rounds, measures, self._log_paths)
        return [made[i] for i in range(len(self._policies))]


def _configured(path: Path, name: str) -> tuple[Settings, PoolSettings]:
    from bandit.errors import InvalidInput
    from serving.settings import load_settings

    settings = load_settings(path, os.environ, offline=True)
    pool = next((pool for pool in settings.pools if pool.name == name), None)
    if pool is None:
        raise InvalidInput("--config", f"{path} has no pool {name!r}")
    return settings, pool


def _figures(log: Log, selection: Any, measured: _Measured, standards: Any, seed: int) -> dict[str, Any]:
    from evaluation.report import report_data

    return report_data(
        log,
        selection,
        limits=measured.limits,
        measures_of=measured.measures,
        others=measured.candidates,
        standards=standards,
        seed=seed,
    )


def _write(data: dict[str, Any], out: Path | None, json_out: Path | None) -> None:
    if json_out is not None:
        json_out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        typer.echo(f"figures written to {json_out}")
    if out is not None:
        from evaluation.report_page import report_page

        out.write_text(report_page(data), encoding="utf-8")
        typer.echo(f"report written to {out}")
