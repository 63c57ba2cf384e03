"""`pointsman evaluate`: asks a running service's models the items of a suite, grades the answers, posts the grades.

Reads arguments, ends the run on signals, and turns its ending into an exit code; the run itself is evaluation's.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from evaluation.benchmark import Ending, Plan
    from evaluation.benchmark_client import ServedModel, ServiceClient
    from evaluation.benchmark_state import StateFile
    from evaluation.suites import Suite

__all__ = ["evaluate"]

_NAMED = 20  # models in one message


def evaluate(
    url: Annotated[str, typer.Option(help="Base URL of the running service.")],
    suite: Annotated[Path, typer.Option(help="A .jsonl, .ndjson or .parquet, or a folder of recorded outcomes.")],
    models: Annotated[str | None, typer.Option(help="Only these models, separated by commas.")] = None,
    pool: Annotated[str | None, typer.Option(help="The models of this pool (default: all models).")] = None,
    grader: Annotated[str | None, typer.Option(help="Of items without one: a kind, or a JSON object.")] = None,
    sample: Annotated[int | None, typer.Option(help="Only so many items, drawn by --seed.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the items' order.", min=0)] = 0,
    concurrency: Annotated[int, typer.Option(help="Most calls at a time.", min=1, max=256)] = 4,
    budget_usd: Annotated[
        float | None, typer.Option(help="Start no call that could bring the run's cost above this.", min=0)
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for one answer.", min=0.1, max=3600)] = 120.0,
    retries: Annotated[int, typer.Option(help="Further attempts after 429, 5xx or a timeout.", min=0, max=20)] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the state file holds.")] = False,  # noqa: FBT002
    restart: Annotated[bool, typer.Option("--restart", help="Drop an unfinished run.")] = False,  # noqa: FBT002
    state: Annotated[Path | None, typer.Option(help="Keep the run's state here (default: beside the suite).")] = None,
    suite_name: Annotated[str | None, typer.Option(help="What the suite is called (default: as its file).")] = None,
    by_category: Annotated[bool, typer.Option("--by-category", help="Rows for categories, too.")] = False,  # noqa: FBT002
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the admin key.")
    ] = "POINTSMAN_ADMIN_KEY",
) -> None:
    """Grade a service's models on a suite, and post the results to it."""
    from rich.console import Console

    from bandit.errors import InvalidInput
    from evaluation.benchmark_client import Unusable, service_url
    from evaluation.suites import read_suite

    errors = Console(stderr=True, highlight=False)
    if os.getcwd() not in sys.path:  # noqa: PTH109 - the entry as Python itself writes it
        sys.path.append(os.getcwd())  # noqa: PTH109 - where a grader of one's own stands; `python -m` has it first
    try:
        if models is not None and pool is not None:
            raise InvalidInput("--models and --pool", "exclude each other; give one")  # noqa: TRY301
        if resume and restart:
            raise InvalidInput("--resume and --restart", "exclude each other; give one")  # noqa: TRY301
        if json_out is not None and (json_out.is_dir() or not json_out.absolute().parent.is_dir()):
            raise InvalidInput("--json", f"{json_out} cannot be written; give a file in a folder that exists")  # noqa: TRY301
        base_url, loaded = service_url(url), read_suite(suite, grader=grader, name=suite_name)
        for note in loaded.notes:
            errors.print(note, markup=False)
        wanted = _Wanted(
            base_url, suite, loaded, models, pool, sample, seed, state, resume, restart, os.environ.get(key_env)
        )
        code = asyncio.run(
            _run(wanted, (concurrency, retries, budget_usd, timeout_s), errors, json_out, by_category=by_category)
        )
    except (InvalidInput, Unusable, OSError) as error:
        errors.print(f"pointsman: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the command line asks for."""

    url: str
    path: Path
    suite: Suite
    models: str | None
    pool: str | None
    sample: int | None
    seed: int
    state: Path | None
    resume: bool
    restart: bool
    key: str | None


async def _run(
    wanted: _Wanted,
    bounds: tuple[int, int, float | None, float],
    errors: Console,
    json_out: Path | None,
    *,
    by_category: bool,
) -> int:
    from evaluation.benchmark import Plan, chosen_items
    from evaluation.benchmark_client import ServiceClient
    from evaluation.benchmark_state import RunHeader, StateFile, state_path

    concurrency, retries, budget_usd, timeout_s = bounds
    async with ServiceClient(wanted.url, wanted.key, timeout_s=timeout_s, connections=concurrency + 2) as client:
        names, absent = await _models(client, wanted, budgeted=budget_usd is not None)
        suite = wanted.suite
        header = RunHeader(
            run=f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}",
            started_ts=time.time(),
            url=wanted.url,
            suite=suite.name,
            suite_digest=suite.digest,
            models=names,
            sample=wanted.sample,
            seed=wanted.seed,
        )
        items = chosen_items(suite, wanted.sample, wanted.seed)
        plan = Plan(suite, items, names, concurrency, retries, budget_usd)
        path = wanted.state or state_path(wanted.path, wanted.url)
        with StateFile.open(path, header, resume=wanted.resume, restart=wanted.restart) as state:
            ending, interrupted = await _watched(plan, client, state, errors)
            ending.failing = absent | ending.failing
            _report(plan, state, ending, errors, json_out, by_category=by_category)
    if interrupted is not None and ending.reason == "stopped":
        return 128 + interrupted
    return ending.exit_code or int(bool(ending.failing or ending.unposted))


async def _models(client: ServiceClient, wanted: _Wanted, *, budgeted: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """The models to ask, and those that cannot be, with why. Raises InvalidInput and Unusable."""
    from bandit.errors import InvalidInput

    served = {model.name: model for model in await client.models()}
    pools = {pool for model in served.values() for pool in model.pools}
    if wanted.models is not None:
        names = list(dict.fromkeys(name.strip() for name in wanted.models.split(",") if name.strip()))
        for name in names:
            if name not in served:
                raise InvalidInput("--models", f"the service has no model {name!r}; there are {_listed(served)}")
    elif wanted.pool is not None:
        names = [model.name for model in served.values() if wanted.pool in model.pools]
        if not names:
            raise InvalidInput("--pool", f"the service has no pool {wanted.pool!r}; there are {_listed(pools)}")
    else:
        names = list(served)
    absent = {name: problem for name in names if (problem := served[name].problem) is not None}
    usable = tuple(name for name in names if name not in absent)
    if not usable:
        raise InvalidInput("--models", "there is no model to ask" + "".join(f"; {n}: {p}" for n, p in absent.items()))
    judges = {item.judge.model for item in wanted.suite.items if item.judge is not None}
    for judge in sorted(judges):
        if judge not in served and judge not in pools:
            raise InvalidInput("grader.model", f"the judge {judge!r} is no model or pool; there are {_listed(served)}")
    if budgeted:
        _check_prices(usable, judges, served)
    return usable, absent


def _check_prices(names: tuple[str, ...], judges: set[str], served: dict[str, ServedModel]) -> None:
    from bandit.errors import InvalidInput

    asked = {*names, *judges, *(m.name for m in served.values() if judges.intersection(m.pools))}
    unknown = [name for name in served if name in asked and not served[name].priced]
    if unknown:
        message = (
            f"cannot be kept: {_listed(unknown)} has no price; add it to the configuration, or leave the budget out"
        )
        raise InvalidInput("--budget-usd", message)


async def _watched(plan: Plan, client: ServiceClient, state: StateFile, errors: Console) -> tuple[Ending, int | None]:
    """Run it under signals and a progress bar; how it ended, and the signal that asked for it."""
    from evaluation.benchmark import Benchmark
    from evaluation.benchmark_view import ProgressView

    benchmark = Benchmark(plan, client, state)
    received: list[int] = []
    with ProgressView(errors, benchmark.total) as view:
        asked = f"{len(plan.items)} items of {plan.suite.name}, {len(plan.models)} models, run {state.header.run}"
        view.say(f"{asked}: {benchmark.done} of {benchmark.total} are done" if benchmark.done else asked)
        benchmark.tell = lambda _: view.show(benchmark.done, benchmark.budget.spent_usd, benchmark.failing)
        view.show(benchmark.done, benchmark.budget.spent_usd, {})

        def interrupted(number: int) -> None:
            received.append(number)
            benchmark.stop()
            if number == signal.SIGTERM:
                benchmark.stop()  # whoever sends that does not wait long
            elif len(received) == 1:
                view.say("stopping: waiting for the calls under way; once more drops them")

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted, number)
        ending = await benchmark.run()
        view.show(benchmark.done, benchmark.budget.spent_usd, benchmark.failing)
    return ending, received[0] if received else None


def _report(
    plan: Plan, state: StateFile, ending: Ending, errors: Console, json_out: Path | None, *, by_category: bool
) -> None:
    from rich.console import Console

    from evaluation.benchmark_figures import model_figures
    from evaluation.benchmark_view import render_ending, render_figures

    models = model_figures(plan.models, state.results.values())
    console = Console(highlight=False)
    render_figures(models, console, by_category=by_category)
    judging_usd = sum(entry["judge_cost_usd"] for entry in models)
    spent_usd = judging_usd + sum(entry["cost_usd"] for entry in models)
    render_ending(ending, errors, spent_usd=spent_usd, judging_usd=judging_usd, resume=_resume_command())
    if json_out is not None:
        import orjson

        told: dict[str, Any] = {
            "suite": state.header.suite,
            "run": state.header.run,
            "url": state.header.url,
            "items": len(plan.items),
            "ending": ending.reason,
            "trouble": ending.trouble,
            "could_not_be_evaluated": ending.failing,
            "left_out": ending.left_out,
            "not_posted": ending.unposted,
            "cost_usd": spent_usd,
            "judge_cost_usd": judging_usd,
            "models": models,
        }
        json_out.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _resume_command() -> str:
    """The same command line, to go on with."""
    given = [word for word in sys.argv[1:] if word not in ("--resume", "--restart")]
    return shlex.join(["pointsman", *given, "--resume"])


def _listed(names: Any) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return (", ".join(listed[:_NAMED]) or "none") + more
