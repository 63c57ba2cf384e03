"""`pointsman import litellm CONFIG`: a LiteLLM configuration as ours, and notes on what could not be carried over.

Reads arguments, writes the result, prints the notes. A key that stands in the file is never printed or written.
"""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.problems import problems_told

if TYPE_CHECKING:
    from serving.commands.litellm_file import Note
    from serving.config_file import Problem

__all__ = ["convert", "importing"]

importing = typer.Typer(name="import", help="Configurations of other gateways, as ours.", no_args_is_help=True)


@importing.callback()
def _commands() -> None:
    """Configurations of other gateways, as ours."""  # with a callback, `import litellm` stays two words


@importing.command("litellm")
def litellm(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="LiteLLM's config.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Write it to this new file, not to standard output.")] = None,
) -> None:
    """Turn a LiteLLM `model_list` configuration into ours; what is not carried over is told, on standard error."""
    with problems_told():
        text, notes = convert(config)
    for note in notes:
        typer.echo(str(note), err=True)
    if text is None:
        typer.echo("pointsman: no model could be carried over, so nothing is written", err=True)
        raise typer.Exit(1)
    problems = _problems(text)
    if out is None:
        typer.echo(text, nl=False)
    else:
        try:
            with out.open("x", encoding="utf-8") as file:  # never over a configuration that somebody has worked on
                file.write(text)
        except OSError as error:
            typer.echo(f"pointsman: {out} cannot be written: {error.strerror}", err=True)
            raise typer.Exit(2) from None
        typer.echo(f"written to {out}; `pointsman check -c {out}` shows what it amounts to", err=True)
    for problem in problems:
        typer.echo(f"pointsman: to be mended by hand: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


def convert(path: Path) -> tuple[str | None, list[Note]]:
    """Our configuration as text (None: no model is left), and the notes in the file's order.

    Raises ConfigError, with the place, for a file that cannot be read.
    """
    from serving.commands.litellm_file import read_source
    from serving.commands.litellm_models import Variables, read_deployments
    from serving.commands.litellm_pools import make_pools
    from serving.commands.litellm_routing import leave, read_budget, read_chains, read_rules
    from serving.commands.litellm_service import read_service

    source = read_source(path)
    variables = Variables(set(source.variables))
    deployments = read_deployments(source, variables)
    rules, chains = read_rules(source), read_chains(source)
    data = read_service(source, variables, rules)
    budget = read_budget(source)
    leave(source)
    if not deployments:
        return None, source.notes.sorted()
    made = make_pools(deployments, rules, chains)
    data |= {"budgets": [budget]} if budget else {}
    failures = rules.failures(1)
    data |= {"failures": failures} if failures else {}
    notes = source.notes.sorted()
    return _text(data | {"models": made.models, "pools": made.pools}, path.name, notes), notes


def _text(data: dict[str, Any], name: str, notes: Sequence[Note]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes text that looks like a number: YAML 1.2, which we read, sees more numbers than PyYAML."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = '"' if value[:1] in "-+.0123456789" else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    def number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
        return dumper.represent_int(int(value)) if value.is_integer() else dumper.represent_float(value)

    Dumper.add_representer(str, text)
    Dumper.add_multi_representer(str, text)
    Dumper.add_representer(float, number)
    header = [f"Made by `pointsman import litellm` from {name}."]
    if notes:
        header += ["What was not carried over, or is another thing here (lines are those of that file):"]
    lines = [f"# {line}" for line in header]
    for note in notes:
        lines += textwrap.wrap(str(note), 116, initial_indent="# - ", subsequent_indent="#   ")
    body = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=116)
    return "\n".join(lines) + "\n\n" + body


def _problems(text: str) -> tuple[Problem, ...]:
    """What `check` would say, with something in place of every variable."""
    from serving.settings import ConfigError, load_settings

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imported.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            load_settings(path, {}, offline=True)
        except ConfigError as error:
            return tuple(problem for problem in error.problems if "from the environment" not in problem.message)
    return ()
