"""The command `pointsman`: reads arguments, starts the right part, turns problems into exit codes.

The only module that may start both the service and evaluation; each is imported when its command runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from serving.commands.evaluate import evaluate
from serving.commands.keys import keys
from serving.commands.litellm_import import importing
from serving.commands.problems import problems_told
from serving.commands.replay import replay
from serving.commands.report import report
from serving.commands.simulate import simulate

# Matrices here are tens of columns wide. OpenBLAS would share even those among threads, which wait for each other by
# spinning: with two of them on two busy cores, replaying 200,000 decisions took 25 s instead of 10.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if TYPE_CHECKING:
    from evaluation.demo_pool import DemoPool
    from serving.settings import PoolSettings, Settings
    from serving.warming import Warmed
    from serving.warmstart import WarmStart

__all__ = ["main"]

main = typer.Typer(
    name="pointsman",
    help="An adaptive router for inference traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="The configuration, a YAML file.")]
OutcomesOption = Annotated[
    Path | None, typer.Option(help="Answer from this folder of recorded outcomes; without it, a synthetic pool.")
]
LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
P95Option = Annotated[float | None, typer.Option(help="Limit of the demo's pool on p95 latency, in seconds.", min=1e-3)]
AccuracyOption = Annotated[
    float | None, typer.Option(help="Limit of the demo's pool on accuracy.", min=0.001, max=0.999)
]


@main.command()
def serve(
    config: ConfigOption,
    host: Annotated[str | None, typer.Option(help="Listen here instead of server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Listen on this port instead of server.port.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Keep the stores here instead of server.data_dir.")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Instead of logging.format.")] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="Instead of logging.level.")] = None,
    workers: Annotated[
        int, typer.Option(help="Processes on one port, over the store at store.url.", min=1, max=64)
    ] = 1,
) -> None:
    """Serve the pools of a configuration until SIGINT or SIGTERM."""
    overrides = {"host": host, "port": port, "data_dir": data_dir}
    from serving.config_source import ConfigSource

    source = ConfigSource(config, os.environ, {name: value for name, value in overrides.items() if value is not None})
    with problems_told():
        settings, digest = source.read()
        if workers > 1:
            from serving.workers.start import check_shared

            check_shared(settings, source)
    import uvloop

    from serving.app import run
    from serving.store import StoreError
    from serving.telemetry.log_lines import set_up_logging
    from serving.warmstart import WarmStartUnusable

    told = {"format": log_format, "level": log_level}
    set_up_logging(settings.logging.model_copy(update={name: word for name, word in told.items() if word is not None}))
    from serving.workers.start import echo_of, supervise

    try:
        if workers > 1:
            raise typer.Exit(supervise(workers, sys.argv[1:], settings, source, typer.echo))
        uvloop.run(run(settings, source, digest, echo_of(settings, typer.echo)))
    except (OSError, StoreError, WarmStartUnusable) as error:
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
def warmstart(
    config: ConfigOption,
    source: Annotated[Path, typer.Option("--from", help="A folder of recorded outcomes, or this service's log.")],
    pool: Annotated[str | None, typer.Option(help="Only this pool (default: each that was recorded).")] = None,
    split: Annotated[str | None, typer.Option(help="Of a folder: this split (default: warm, or all).")] = None,
    run: Annotated[str | None, typer.Option(help="Of a folder: this run (default: the last).")] = None,
    effective_samples: Annotated[
        float, typer.Option(help="Most observations that what was recorded counts for, per model.", min=1, max=1e9)
    ] = 500.0,
    clusters: Annotated[
        int, typer.Option(help="Of a folder: clusters of the prompts' texts; 0: a projection.", min=0, max=56)
    ] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Write it here instead of to server.data_dir.")] = None,
) -> None:
    """Make what pools start from, out of recorded outcomes or this service's own log; the next start uses it."""
    settings = _load(config, {} if data_dir is None else {"data_dir": data_dir})
    from rich.console import Console

    from bandit.errors import InvalidInput
    from serving.warming import render_warmed
    from serving.warmstart import WarmStartUnusable, read_warm_starts, write_warm_starts

    try:
        starts = read_warm_starts(settings.server.data_dir)
        made = _warmed(settings, starts, source, pool, (split, run, clusters, effective_samples))
        console = Console(highlight=False)
        for warmed in made:
            render_warmed(warmed, console)
        starts |= {warmed.pool.name: warmed.to_start(time.time()) for warmed in made}
        path = write_warm_starts(settings.server.data_dir, starts)
    except (InvalidInput, WarmStartUnusable, OSError) as error:
        typer.echo(f"pointsman: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(
        f"written to {path}; `pointsman serve` uses it from its next start on.\nA pool that has already learned with"
        " the same features goes on from that; to start it from here, move router.sqlite away."
    )


@main.command()
def demo(
    seconds: Annotated[float, typer.Option(help="How long it runs.", min=2, max=600)] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of calls and answers; their timing is real.", min=0)] = 0,
    outcomes: OutcomesOption = None,
    run: Annotated[str | None, typer.Option(help="Only this recorded run (default: the last two in turn).")] = None,
    p95: P95Option = None,
    min_accuracy: AccuracyOption = None,
) -> None:
    """Watch a pool of models being routed, learned and protected: a simulated one, or one of recorded outcomes."""
    from rich.console import Console

    from bandit.errors import InvalidInput
    from evaluation.child_process import ChildEnded
    from evaluation.demo import run as run_demo

    try:
        pool = _demo_pool(outcomes, run, p95, min_accuracy)
        options = {"--outcomes": outcomes, "--run": run, "--p95": p95, "--min-accuracy": min_accuracy}
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        console = Console(highlight=False)
        run_demo(pool, ["--demo", *given], seconds=seconds, seed=seed, console=console, program=_program())
    except InvalidInput as error:
        typer.echo(f"pointsman: {error}", err=True)
        raise typer.Exit(2) from None
    except (ChildEnded, OSError) as error:
        typer.echo(f"pointsman: the demo ended: {error}", err=True)
        raise typer.Exit(1) from None


@main.command()
def upstreams(
    outcomes: OutcomesOption = None,
    run: Annotated[
        str | None, typer.Option(help="Which of the recorded runs to answer from (default: the last).")
    ] = None,
    then_run: Annotated[str | None, typer.Option(help="Change to this run after --after seconds.")] = None,
    after: Annotated[float, typer.Option(help="Seconds until --then-run.", min=0)] = 0.0,
    models: Annotated[str | None, typer.Option(help="Only these models, separated by commas.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="MODEL=KIND[:SHARE], such as '*=status-500:0.1'.")] = None,
    time_scale: Annotated[float | None, typer.Option(help="Multiply latencies by this (default: 1).", min=0)] = None,
    demo: Annotated[bool | None, typer.Option("--demo", help="The pool of `pointsman demo`, with its limits.")] = None,
    p95: P95Option = None,
    min_accuracy: AccuracyOption = None,
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

    source: SyntheticSource | RecordedSource
    options: dict[str, Any] = {}
    try:
        if demo:
            if then_run or models or time_scale is not None:
                raise InvalidInput("--demo", "takes no --then-run, --models or --time-scale")  # noqa: TRY301
            pool = _demo_pool(outcomes, run, p95, min_accuracy)
            source, time_scale, options = pool.source, pool.time_scale, pool.config_options
        elif p95 is not None or min_accuracy is not None:
            raise InvalidInput("--p95 and --min-accuracy", "need --demo")  # noqa: TRY301
        elif outcomes is None:
            if run or then_run or models:
                raise InvalidInput("--run, --then-run and --models", "need --outcomes")  # noqa: TRY301
            source = SyntheticSource()
        else:
            names = models.split(",") if models else None
            recorded = RecordedSet.load(outcomes)
            source = RecordedSource(recorded, run=run, then_run=then_run, after_s=after, models=names)
        scale = 1.0 if time_scale is None else time_scale
        app = create_app(source, faults=parse_faults(fault or []), seed=seed, time_scale=scale)
        run_upstreams(source, app, port=port, config_path=write_config, config_options=options)
    except (InvalidInput, OSError) as error:
        typer.echo(f"pointsman: {error}", err=True)
        raise typer.Exit(2) from None


main.command()(evaluate)
main.command()(simulate)
main.command()(replay)
main.command()(report)
main.add_typer(keys)
main.add_typer(importing)


def _warmed(
    settings: Settings,
    starts: Mapping[str, WarmStart],
    source: Path,
    only: str | None,
    options: tuple[str | None, str | None, int, float],
) -> list[Warmed]:
    """Each pool (or `only` one) warmed from `source`; raises InvalidInput for the first problem where none could be."""
    from bandit.errors import InvalidInput

    pools = [pool for pool in settings.pools if only in (None, pool.name)]
    if not pools:
        raise InvalidInput("--pool", f"no pool is called {only!r}; there are {_names(settings.pools)}")
    log = source / "log.duckdb" if (source / "log.duckdb").is_file() else source
    if not log.is_dir() and any(options[:3]):
        raise InvalidInput("--split, --run and --clusters", "belong to a folder of recorded outcomes, not to a log")
    made, problems = [], []
    for pool in pools:
        try:
            if log.is_dir():
                made.append(_warmed_by_folder(pool, settings, log, *options))
            else:
                made.append(_warmed_by_log(pool, settings, log, starts.get(pool.name), options[3]))
        except InvalidInput as error:
            problems.append(error)
            if len(pools) > 1:
                typer.echo(f"pool {pool.name} is left out: {error}", err=True)
    if not made:
        raise problems[0]
    return made


def _warmed_by_folder(
    pool: PoolSettings, settings: Settings, folder: Path, split: str | None, run: str | None, clusters: int, most: float
) -> Warmed:
    from evaluation.experience import read_recording
    from serving.warming import fitted_features, warm

    names = {name: (name, settings.model(name).upstream_model) for name in pool.models}
    recording = read_recording(folder, names, run=run, split=split)
    features = fitted_features(pool, recording.prompts, clusters)
    contexts = [features.extract(prompt) for prompt in recording.prompts]
    seen, source = recording.experience, recording.source
    return warm(pool, settings, features, contexts, seen, source=source, effective_samples=most)


def _warmed_by_log(pool: PoolSettings, settings: Settings, path: Path, start: WarmStart | None, most: float) -> Warmed:
    from serving.log_experience import read_log
    from serving.warming import present_features, warm

    features = present_features(pool, start)
    logged = read_log(path, pool.name, pool.models, features, take_imputed=pool.feedback.missing != "ignore")
    seen, source = logged.experience, logged.source
    return warm(pool, settings, features, logged.contexts, seen, source=source, effective_samples=most)


def _names(named: Sequence[PoolSettings]) -> str:
    return ", ".join(entry.name for entry in named)


def _demo_pool(outcomes: Path | None, run: str | None, p95: float | None, min_accuracy: float | None) -> DemoPool:
    from bandit.errors import InvalidInput
    from evaluation.demo_pool import recorded_pool, simulated_pool

    if outcomes is not None:
        return recorded_pool(outcomes, run, p95, min_accuracy)
    if run is not None:
        raise InvalidInput("--run", "needs --outcomes")
    return simulated_pool(p95, min_accuracy)


def _program() -> str:
    """What a shell calls this program here: by its name, its path, or as a module of its interpreter."""
    called = Path(sys.argv[0])
    if called.stem != "pointsman":
        return f"{shlex.quote(sys.executable)} -m serving"
    found = shutil.which("pointsman")
    return "pointsman" if found and Path(found).resolve() == called.resolve() else shlex.quote(sys.argv[0])


def _load(config: Path, server: dict[str, Any]) -> Settings:
    from serving.settings import load_settings

    with problems_told():
        return load_settings(config, os.environ, server)
