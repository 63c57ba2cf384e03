"""How a command ends whose arguments or files cannot be used: what is wrong on standard error, exit code 2.

It must never know what a command does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["problems_told"]


@contextmanager
def problems_told(*errors: type[Exception]) -> Iterator[None]:
    """Tell a ConfigError's problems with their places, and any of `errors` as one sentence; both end the command."""
    from serving.settings import ConfigError

    try:
        yield
    except ConfigError as error:
        from rich.console import Console

        from serving.check import render_problems

        render_problems(error, Console(stderr=True))
        raise typer.Exit(2) from None
    except errors as error:
        typer.echo(f"pointsman: {error}", err=True)
        raise typer.Exit(2) from None
