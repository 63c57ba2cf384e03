"""Upstreams as a program: serve until told to stop, and write a configuration of the router for it.

Knows the router's configuration format and nothing else of the router.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from aiohttp import web

from bandit.errors import InvalidInput
from evaluation.answers import Source
from evaluation.upstreams import serve

__all__ = ["config_yaml", "loop_factory", "run"]

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run(
    source: Source,
    app: web.Application,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    config_path: Path | None = None,
    config_options: Mapping[str, Any] | None = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Serve `app`, made from `source`, until SIGINT or SIGTERM; returns then.

    Says the base URL in its first line and the models in its second. Writes a configuration of the router
    (`config_yaml`, which takes `config_options`) to `config_path`, if given, before it says so.
    """

    async def until_stopped() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, stopped.set)
        async with serve(app, host, port) as base_url:
            if config_path is not None:
                text = config_yaml(source, base_url, **(config_options or {}))
                await asyncio.to_thread(config_path.write_text, text, encoding="utf-8")
            echo(f"upstreams at {base_url}")
            echo(f"models: {', '.join(source.models)}")
            if config_path is not None:
                echo(f"configuration written to {config_path}; now: pointsman serve -c {config_path}")
            sys.stdout.flush()
            await stopped.wait()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(until_stopped())


def config_yaml(
    source: Source,
    base_url: str,
    *,
    models: Sequence[str] | None = None,
    pool: str = "auto",
    pool_options: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
) -> str:
    """A configuration of the router: one pool of `models` (default: all), all served at `base_url`.

    `pool_options` are the further keys of the pool (objective, constraints, budget, policy), `server` those
    of the server. A model whose price is unknown gets none. Raises InvalidInput for a model the source lacks.
    """
    names = list(source.models if models is None else models)
    rows: list[dict[str, Any]] = []
    for name in names:
        if name not in source.models:
            raise InvalidInput("models", f"{name!r} is not served here; there are {', '.join(source.models)}")
        row: dict[str, Any] = {"name": name, "endpoint": f"{base_url}/v1"}
        price = source.price(name)
        if price is not None:
            per_million = (float(price.input_per_million), float(price.output_per_million))
            row["price"] = dict(zip(("input_per_million", "output_per_million"), per_million, strict=True))
        if timeout_s is not None:
            row["timeout_s"] = timeout_s
        rows.append(row)
    config: dict[str, Any] = {"server": dict(server)} if server else {}
    config |= {"models": rows, "pools": [{"name": pool, "models": names, **(pool_options or {})}]}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where there is one; there is none on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
