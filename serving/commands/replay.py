"""`pointsman replay`: what other policies would have yielded on the traffic of a log, or that the log cannot tell.

Reads arguments, opens the log and prints; `policies` makes candidates of `--policy`, `evaluation.replay` judges.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.problems import problems_told

if TYPE_CHECKING:
    from rich.console import Console

    from evaluation.judgement import Judgement, Standards
    from evaluation.logs import Log
    from evaluation.measures import Measures
    from evaluation.selection import SelectedRounds

__all__ = ["CANNOT_TELL", "replay"]

CANNOT_TELL = 3
_LATEST = 100_000  # decisions a policy that learns is taken through, unless told otherwise: about a minute


def replay(
    log: Annotated[
        list[Path] | None, typer.Argument(metavar="LOG...", help="log.duckdb, its folder, or Parquet files.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="logged, uniform, greedy, fixed:MODEL, weighted:A=70,B=30, config:FILE#POOL[?PATH=VALUE&…], or"
            " python:MODULE:FUNCTION; repeatable."
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Take the log from this running service (its /admin).")] = None,
    pool: Annotated[str | None, typer.Option(help="The pool (default: the only one in the log).")] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Only decisions for which this holds.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on: ISO 8601, unix seconds, or 7d, 12h.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Measures reward and slow calls as this configuration does.")
    ] = None,
    latency_limit_s: Annotated[
        float | None, typer.Option(help="A call is slow beyond this (default: the pool's p95 limit).", min=1e-6)
    ] = None,
    latest: Annotated[
        int | None,
        typer.Option(
            help=f"Look at the latest N decisions of the pool only; 0: all (default: all, or {_LATEST:,} where"
            " a policy learns).",
            min=0,
        ),
    ] = None,
    min_effective_samples: Annotated[float, typer.Option(help="Below it the answer is 'cannot tell'.", min=2)] = 200.0,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
    html_out: Annotated[Path | None, typer.Option("--html", help="Write a page here (extra report).")] = None,
) -> None:
    """Judge policies on logged traffic, without sending any; exit code 3 where the log cannot tell."""
    from rich.console import Console

    from bandit.errors import InvalidInput
    from evaluation.judgement import Standards
    from serving.commands.policies import check_places, parse_time

    console = Console(highlight=False)
    with problems_told(InvalidInput, OSError):
        if not policy:
            raise InvalidInput("--policy", "name at least one")
        check_places(html_out, json_out)
        job = _Job(policy, config, latency_limit_s, latest, console)
        standards = Standards(min_effective_samples=min_effective_samples)
        times = (parse_time(since, "--since"), parse_time(until, "--until"))
        with _logs(log or [], url) as opened:
            judgements, selected = job.run(opened, pool, where, times, standards, seed)
            _write(judgements, selected, opened, json_out, html_out)
    if any(judgement.cannot_tell for judgement in judgements):
        raise typer.Exit(CANNOT_TELL)


class _Job:
    """The arguments that say what is judged and how."""

    def __init__(
        self,
        policies: Sequence[str],
        config: Path | None,
        latency_limit_s: float | None,
        latest: int | None,
        console: Console,
    ) -> None:
        learns = any(spec.startswith("config:") for spec in policies)
        self._policies, self._config, self._limit = policies, config, latency_limit_s
        self._latest = (_LATEST if learns else 0) if latest is None else latest
        self._console = console

    def run(
        self,
        log: Log,
        pool: str | None,
        where: str | None,
        times: tuple[float | None, float | None],
        standards: Standards,
        seed: int,
    ) -> tuple[list[Judgement], SelectedRounds]:
        """Judge, and print what comes of it."""
        from evaluation.replay import replay as judged
        from evaluation.replay_view import render_judgement, render_selection
        from evaluation.selection import SelectedRounds, Selection
        from serving.commands.policies import candidate_of

        selection = Selection(pool or _only_pool(log), where, *times, latest=self._latest or None)
        rounds = SelectedRounds(log, selection)
        measures = self._measures(rounds)
        paths = [Path(name) for name in log.names]
        pools_first = sorted(range(len(self._policies)), key=lambda i: not self._policies[i].startswith("config:"))
        # They may bring models that the log never knew, and every candidate's arrays have a column for those, too.
        made = {i: candidate_of(self._policies[i], rounds, measures, paths) for i in pools_first}
        candidates = [made[i] for i in sorted(made)]
        render_selection(rounds, log.names, self._console)
        self._say_measures(rounds, measures)
        with _progress() as told:
            judgements = judged(rounds, candidates, standards, seed=seed, progress=told)
        for judgement in judgements:
            render_judgement(judgement, self._console)
        return judgements, rounds

    def _measures(self, rounds: SelectedRounds) -> Measures:
        from bandit.errors import InvalidInput
        from evaluation.measures import Measures
        from serving.commands.policies import measures_of
        from serving.settings import load_settings

        if self._config is None:
            return Measures(latency_limit_s=self._limit or rounds.latency_quantile(0.95))
        settings = load_settings(self._config, os.environ, offline=True)
        name = rounds.selection.pool
        pool = next((pool for pool in settings.pools if pool.name == name), None)
        if pool is None:
            raise InvalidInput("--config", f"{self._config} has no pool {name!r}")
        measures = measures_of(pool, settings, self._limit)
        if measures.latency_limit_s is not None:
            return measures
        return Measures(measures.objective, measures.prices, rounds.latency_quantile(0.95))

    def _say_measures(self, rounds: SelectedRounds, measures: Measures) -> None:
        if rounds.dropped:
            self._console.print(
                f"  the latest {rounds.count:,} decisions of {rounds.count + rounds.dropped:,} (--latest)", markup=False
            )
        if measures.latency_limit_s is not None:
            self._console.print(f"  slow: beyond {measures.latency_limit_s:.4g} s, or failed", markup=False)
        if measures.objective is None:
            self._console.print("  reward: as logged (-c FILE: by its objective)", markup=False)


def _only_pool(log: Log) -> str:
    from bandit.errors import InvalidInput

    pools = log.pools()
    if len(pools) == 1:
        return next(iter(pools))
    if not pools:
        raise InvalidInput("log", "holds no decision that a policy drew")
    counted = ", ".join(f"{name!r} ({count:,})" for name, count in pools.items())
    raise InvalidInput("--pool", f"must name one of the log's pools: {counted}")


@contextmanager
def _logs(paths: Sequence[Path], url: str | None) -> Iterator[Log]:
    from bandit.errors import InvalidInput
    from evaluation.logs import opened

    if url is None:
        with opened(paths) as log:
            yield log
        return
    if paths:
        raise InvalidInput("--url", "takes the log from the service; leave out LOG")
    with tempfile.TemporaryDirectory(prefix="pointsman-log-") as folder:
        for table in ("decisions", "outcomes", "rewards", "benchmark_results"):
            _download(url, table, Path(folder) / f"{table}.parquet")
        with opened([Path(folder)]) as log:
            yield dataclasses.replace(log, names=(url,))


def _download(url: str, table: str, path: Path) -> None:
    """A table of a running service's log; the admin key is read from POINTSMAN_ADMIN_KEY."""
    import shutil
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from bandit.errors import InvalidInput

    if not url.startswith(("http://", "https://")):
        raise InvalidInput("--url", f"{url!r} is no http or https URL")
    request = Request(f"{url.rstrip('/')}/admin/log.parquet?table={table}")  # noqa: S310 - checked above
    key = os.environ.get("POINTSMAN_ADMIN_KEY")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urlopen(request, timeout=600) as answer, path.open("wb") as file:  # noqa: S310
            shutil.copyfileobj(answer, file)
    except HTTPError as error:
        said = error.read(2_000).decode(errors="replace")
        hint = "; set POINTSMAN_ADMIN_KEY" if error.code in (401, 403) else ""
        raise InvalidInput("--url", f"{url} answered {error.code} for table {table}: {said}{hint}") from None
    except (URLError, OSError, ValueError) as error:
        raise InvalidInput("--url", f"{url} cannot be reached: {error}") from None


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("judging", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _write(
    judgements: Sequence[Judgement], rounds: SelectedRounds, log: Log, json_out: Path | None, html_out: Path | None
) -> None:
    from evaluation.replay_view import judgement_data, selection_data

    data: dict[str, Any] = {
        "selection": selection_data(rounds, log.names),
        "policies": [judgement_data(judgement) for judgement in judgements],
    }
    if json_out is not None:
        json_out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    if html_out is not None:
        from evaluation.report_page import replay_page

        html_out.write_text(replay_page(data), encoding="utf-8")
