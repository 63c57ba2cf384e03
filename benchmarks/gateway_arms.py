"""What the gateway benchmark compares: each arm's server started before one upstream, taught, and tried once.

An arm is a server and a way to call it; Pointsman's three are one service. A peer that cannot be set up, does not
start, or does not answer one call and one stream as it should, becomes a reason instead of an arm. Measures nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gateway_load import KEY, Target, measure
from benchmarks.peers.gateways import GATEWAYS, PeerFailed, running, set_up
from benchmarks.processes import Server, started

__all__ = ["ALONE", "BARE", "OURS", "Arm", "arms", "config"]

ALONE = "upstream alone"
BARE = "pass-through, uvloop"
OURS = "pointsman"
_LEARNED = 3_000


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to call one server; memory when nobody had called it yet, shared by the arms of one server."""

    name: str
    server: Server
    target: Target
    idle_mb: float
    version: str = ""

    @property
    def streams(self) -> bool:
        """Feedback costs a stream what it costs a call, so it is measured with calls only."""
        return not self.target.reward


def config(upstream: str, data_dir: Path, models: int = 10, admin_key: str | None = None) -> dict[str, Any]:
    """Pointsman's configuration for the benchmark: everything on, with budgets and limits nobody reaches."""
    names = [f"model-{i}" for i in range(models)]
    price = [{"input_per_million": 0.1 * (i + 1), "output_per_million": 0.4 * (i + 1)} for i in range(models)]
    operator = {} if admin_key is None else {"admin_key": admin_key}
    return {
        "server": {"port": 0, "data_dir": str(data_dir)},
        "auth": operator | {"keys": [{"key": KEY, "user": "bench", "team": "bench", "tier": "paid"}]},
        "models": [{"name": n, "endpoint": f"{upstream}/v1", "price": p} for n, p in zip(names, price, strict=True)],
        "budgets": [
            {"scope": "user", "usd": 1e6, "per": "day"},
            {"scope": "all", "tokens": 1_000_000_000_000, "per": "month"},
        ],
        "limits": [{"scope": "user", "requests_per_minute": 10_000_000, "tokens_per_minute": 1_000_000_000_000}],
        "pools": [
            {
                "name": "auto",
                "models": names,
                "objective": {"quality": 1.0, "cost": 0.2, "latency": 0.1},
                "constraints": {"p95_latency_s": 2.0, "min_accuracy": 0.7, "accuracy_evidence": "feedback"},
            }
        ],
    }


def arms(
    stack: contextlib.ExitStack, upstream: Server, folder: Path, peers: Sequence[str], peers_dir: Path
) -> tuple[list[Arm], dict[str, str]]:
    """Every arm, its server on `stack`, and why each peer that is missing is."""
    found = [_arm(ALONE, upstream, Target(upstream.url, "m"))]
    for name, more in ((BARE, ()), ("pass-through, asyncio", ("--loop", "asyncio"))):
        bare = stack.enter_context(
            started(["-m", "benchmarks.servers", "passthrough", "--target", upstream.url, *more])
        )
        found.append(_arm(name, bare, Target(bare.url, "m")))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(upstream.url, folder / "data")))
    ours = stack.enter_context(started(["-m", "serving", "serve", "-c", str(path)], log=folder / "log.txt"))
    with_rewards = Target(ours.url, "auto", reward=True)
    found += [
        _arm(OURS, ours, Target(ours.url, "auto")),
        _arm("pointsman, pinned", ours, Target(ours.url, "model-0")),
        _arm("pointsman, with a reward each", ours, with_rewards),
    ]
    measure(ours, with_rewards, concurrency=16, calls=_LEARNED)
    left_out: dict[str, str] = {}
    for peer in peers:
        try:
            found.append(_peer(stack, peer, peers_dir, upstream))
        except PeerFailed as error:
            left_out[peer] = str(error)
            print(f"{peer} is left out: {error}", file=sys.stderr, flush=True)
    return found, left_out


def _arm(name: str, server: Server, target: Target, version: str = "") -> Arm:
    return Arm(name, server, target, round(server.rss_mb(), 1), version)


def _peer(stack: contextlib.ExitStack, name: str, peers_dir: Path, upstream: Server) -> Arm:
    """A peer's arm; its server stays on `stack` only if it answers."""
    folder = set_up(name, peers_dir)
    with contextlib.ExitStack() as own:
        server, headers = own.enter_context(running(name, folder, upstream.url, KEY))
        target = Target(server.url, GATEWAYS[name].model, headers=headers)
        arm = _arm(name, server, target, GATEWAYS[name].version)
        for stream in (False, True):
            tried = measure(server, target, concurrency=1, calls=1, stream=stream, tolerant=True)
            if tried["failed"] or (stream and not tried["chunks_per_s"]):
                raise PeerFailed(f"did not answer one {'stream' if stream else 'call'} as it should")
        stack.push(own.pop_all())
    return arm
