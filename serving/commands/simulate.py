"""`pointsman simulate`: what a pool of a configuration would have done with recorded outcomes, and what-ifs on it.

Reads arguments and prints; `simulation_job` puts a run together, `simulation_report` shows what came of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.commands.problems import problems_told

__all__ = ["simulate"]


def simulate(
    outcomes: Annotated[Path, typer.Argument(metavar="SET_DIR", help="A folder of recorded outcomes.")],
    config: Annotated[Path, typer.Option("-c", "--config", help="The configuration, a YAML file.")],
    pool: Annotated[str | None, typer.Option(help="The pool (default: the only one).")] = None,
    run: Annotated[str | None, typer.Option(help="The recorded run (default: the last).")] = None,
    runs: Annotated[str | None, typer.Option(help="Several, separated by commas, one after the other.")] = None,
    split: Annotated[str | None, typer.Option(help="These prompts only (default: test, or all).")] = None,
    calls: Annotated[int | None, typer.Option(help="Calls of each run (default: each prompt once).", min=1)] = None,
    seeds: Annotated[int, typer.Option(help="How many repetitions, each with another order.", min=1, max=1000)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first repetition.", min=0)] = 0,
    rate: Annotated[float, typer.Option(help="Calls a (virtual) second.", min=1e-6, max=1e6)] = 1.0,
    poisson: Annotated[bool | None, typer.Option("--poisson", help="Calls at random times, not evenly spaced.")] = None,
    feedback_delay_s: Annotated[float, typer.Option(help="Seconds from an answer to its feedback.", min=0)] = 0.0,
    feedback_share: Annotated[float, typer.Option(help="Share of the calls that get feedback.", min=0, max=1)] = 1.0,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a setting; repeatable.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="PATH=VALUES", help="Run each of v1,v2,… or lo:hi:n[:log] of a setting.")
    ] = None,
    warm: Annotated[
        bool | None,
        typer.Option("--warm/--cold", help="Learn split warm first; or nothing (default: the pool's warmstart.npz)."),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw cost against quality: an .svg or .png.")] = None,
    log: Annotated[Path | None, typer.Option(help="Keep the run as a log of the service, a .duckdb.")] = None,
    workers: Annotated[int, typer.Option(help="Most processes at a time.", min=1, max=64)] = 2,
) -> None:
    """Run a pool that learns over recorded outcomes, as the service would, on a virtual clock."""
    from bandit.errors import InvalidInput
    from serving.commands.simulation_job import Job
    from serving.commands.simulation_report import Options, report
    from serving.warmstart import WarmStartUnusable

    with problems_told(InvalidInput, WarmStartUnusable, OSError):
        if run is not None and runs is not None:
            raise InvalidInput("--run and --runs", "are the same thing; give one")
        labels = tuple((run or runs or "").split(",")) if run or runs else ()
        if log is not None and (seeds > 1 or sweep is not None):
            raise InvalidInput("--log", "holds one run: leave out --seeds and --sweep")
        job = Job(
            folder=outcomes,
            config=config,
            overrides=tuple(changes or ()),
            seed=seed,
            pool=pool,
            runs=labels,
            split=split,
            calls=calls,
            rate_per_s=rate,
            poisson=bool(poisson),
            feedback_delay_s=feedback_delay_s,
            feedback_share=feedback_share,
            warm=warm,
            log=log,
        )
        report(job, Options(seeds, sweep, workers, json_out, plot))
