"""The command `pointsman`: reads arguments, starts the right part, turns problems into exit codes.

The only module that may start both the service and evaluation; each is imported when its command runs.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serving.settings import Settings

__all__ = ["main"]

main = typer.Typer(
    name="pointsman",
    help="An adaptive router for inference traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="The configuration, a YAML file.")]


@main.command()
def serve(
    config: ConfigOption,
    host: Annotated[str | None, typer.Option(help="Listen here instead of server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Listen on this port instead of server.port.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Keep the stores here instead of server.data_dir.")] = None,
) -> None:
    """Serve the pools of a configuration until SIGINT or SIGTERM."""
    overrides = {"host": host, "port": port, "data_dir": data_dir}
    settings = _load(config, {name: value for name, value in overrides.items() if value is not None})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    import uvloop

    from serving.app import run
    from serving.store import StoreError

    try:
        uvloop.run(run(settings, typer.echo))
    except (OSError, StoreError) as error:
        typer.echo(f"pointsman: {error}", err=True)
        raise typer.Exit(1) from None


@main.command()
def check(config: ConfigOption) -> None:
    """Print the resolved pools, models, prices and limits; exit with 2 and every problem if there are any."""
    settings = _load(config, {})
    from rich.console import Console

    from serving.check import render_check

    render_check(settings, Console())


@main.command()
def upstreams(
    outcomes: Annotated[
        Path | None, typer.Option(help="Answer from this folder of recorded outcomes; without it, a synthetic pool.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Which of the recorded runs to answer from (default: the last).")
    ] = None,
    then_run: Annotated[str | None, typer.Option(help="Change to this run after --after seconds.")] = None,
    after: Annotated[float, typer.Option(help="Seconds until --then-run.", min=0)] = 0.0,
    models: Annotated[str | None, typer.Option(help="Only these models, separated by commas.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="MODEL=KIND[:SHARE], such as '*=status-500:0.1'.")] = None,
    time_scale: Annotated[float, typer.Option(help="Multiply recorded latencies by this.", min=0)] = 1.0,
    port: Annotated[int, typer.Option(help="Listen on this port; 0 takes a free one.", min=0, max=65535)] = 8081,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.", min=0)] = 0,
    write_config: Annotated[Path | None, typer.Option(help="Write a configuration that routes to this pool.")] = None,
) -> None:
    """Serve a pool of OpenAI-compatible upstreams from recorded outcomes or a synthetic table, to try things on."""
    from bandit.errors import InvalidInput
    from evaluation.faults import parse_faults
    from evaluation.recorded import RecordedSet, RecordedSource
    from evaluation.synthetic import SyntheticSource
    from evaluation.upstream_process import run as run_upstreams
    from evaluation.upstreams import create_app

    try:
        if outcomes is None:
            if run or then_run or models:
                raise InvalidInput("--run, --then-run and --models", "need --outcomes")  # noqa: TRY301
            source: SyntheticSource | RecordedSource = SyntheticSource()
        else:
            names = models.split(",") if models else None
            recorded = RecordedSet.load(outcomes)
            source = RecordedSource(recorded, run=run, then_run=then_run, after_s=after, models=names)
        app = create_app(source, faults=parse_faults(fault or []), seed=seed, time_scale=time_scale)
        run_upstreams(source, app, port=port, config_path=write_config)
    except (InvalidInput, OSError) as error:
        typer.echo(f"pointsman: {error}", err=True)
        raise typer.Exit(2) from None


def _load(config: Path, server: dict[str, Any]) -> Settings:
    from serving.settings import ConfigError, load_settings

    try:
        return load_settings(config, os.environ, server)
    except ConfigError as error:
        from rich.console import Console

        from serving.check import render_problems

        render_problems(error, Console(stderr=True))
        raise typer.Exit(2) from None
