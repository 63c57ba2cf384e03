"""Other people's gateways for the gateway benchmark: each set up in an environment of its own, and started.

    python -m benchmarks.peers.gateways FOLDER [litellm portkey vllm-router]

FOLDER/NAME holds one; it is outside the checkout, and nothing of it is committed. Versions are pinned here, what they
depend on is not: `installed` says what came. Only built packages are taken and no install script runs. Each is
configured as its own documents begin: one upstream of OpenAI's protocol, its own defaults, logs of errors only; LiteLLM
checks its master key, the others have no key to check in this form. Portkey's cannot be told an address and listens on
all of the machine's. Knows nothing of loads and figures.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from benchmarks.processes import Server, free_port, listening

__all__ = ["GATEWAYS", "Gateway", "PeerFailed", "main", "running", "set_up"]

_LONGEST_S = 1_800  # of an installation


class PeerFailed(RuntimeError):
    """A peer could not be set up, started, or did not answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What is installed, how it is started, and how callers reach it."""

    name: str
    kind: str  # pypi or npm
    package: str  # as the installer wants it, but for the version
    version: str
    ready: str  # answers 200 when it serves
    command: tuple[str, ...]  # below FOLDER/NAME; {port}, {spare_port}, {upstream}, {config} are filled in
    config: str = ""  # a file's text, YAML; {upstream} and {key} are filled in
    model: str = "m"
    alongside: tuple[str, ...] = ()  # what it needs in a version that its own ranges do not say
    headers: dict[str, str] = field(default_factory=dict)  # {upstream} is filled in
    environment: dict[str, str] = field(default_factory=dict)

    def arguments(self, folder: Path, upstream: str, port: int) -> list[str]:
        """The command line, for an environment at `folder`."""
        program, *rest = self.command
        said = {"port": str(port), "spare_port": str(free_port()), "upstream": upstream}
        said |= {"config": str(folder / "config.yaml"), "folder": str(folder)}
        return [program.format(**said), *(argument.format(**said) for argument in rest)]


# Releases 1.82.7, 1.82.8 and 1.107 of LiteLLM were withdrawn because they carried foreign code: pinned well off them.
_LITELLM = Gateway(
    name="litellm",
    kind="pypi",
    package="litellm[proxy]",
    version="1.106.12",
    ready="/health/liveliness",
    command=(
        "{folder}/bin/litellm",
        *("--config", "{config}", "--host", "127.0.0.1", "--port", "{port}", "--num_workers", "1"),
        *("--telemetry", "False"),
    ),
    config=yaml.safe_dump(
        {
            "model_list": [
                {
                    "model_name": "m",
                    "litellm_params": {"model": "openai/m", "api_base": "{upstream}/v1", "api_key": "of-the-upstream"},
                }
            ],
            "general_settings": {"master_key": "{key}"},
        }
    ),
    environment={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"},
)
_PORTKEY = Gateway(
    name="portkey",
    kind="npm",
    package="@portkey-ai/gateway",
    version="1.15.2",
    ready="/",
    command=(
        "node",
        *("{folder}/node_modules/@portkey-ai/gateway/build/start-server.js", "--port={port}", "--headless"),
    ),
    # With those its ranges now bring, every stream is a 500, "TypeError: immutable": its repository, issue 1389.
    alongside=("@hono/node-server@1.13.8", "@hono/node-ws@1.2.0"),
    headers={"x-portkey-provider": "openai", "x-portkey-custom-host": "{upstream}/v1"},
    environment={"NODE_ENV": "production"},
)
_VLLM_ROUTER = Gateway(
    name="vllm-router",
    kind="pypi",
    package="vllm-router",
    version="0.1.17",
    ready="/health",
    command=(
        "{folder}/bin/vllm-router",
        *("--host", "127.0.0.1", "--port", "{port}", "--worker-urls", "{upstream}"),
        *("--policy", "round_robin", "--log-level", "error", "--prometheus-port", "{spare_port}"),
    ),
)
GATEWAYS: Final = {peer.name: peer for peer in (_LITELLM, _PORTKEY, _VLLM_ROUTER)}


def set_up(name: str, into: Path) -> Path:
    """The peer's environment below `into`, made unless this version is there already. Raises PeerFailed."""
    if name not in GATEWAYS:
        raise PeerFailed(f"{name!r} is none of {', '.join(GATEWAYS)}")
    peer, folder = GATEWAYS[name], into.resolve() / name
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text().splitlines()[:1] == [peer.version]:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if peer.kind == "pypi":
        python = folder / "bin" / "python"
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(folder)], folder)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        _run(
            [*pip, "install", "--quiet", "--only-binary", ":all:", f"{peer.package}=={peer.version}", *peer.alongside],
            folder,
        )
        came = _run([*pip, "freeze", "--all"], folder)
    else:
        npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
        _run([*npm, f"{peer.package}@{peer.version}", *peer.alongside], folder)
        came = _run(["npm", "ls", "--all", "--prefix", str(folder)], folder)
    stamp.write_text(f"{peer.version}\n{came}")
    return folder


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if "WARNING" not in line]
        raise PeerFailed(f"{Path(command[0]).name} ended with {done.returncode}: {' '.join(lines[-1:])[:200]}")
    return done.stdout


@contextlib.contextmanager
def running(name: str, folder: Path, upstream: str, key: str) -> Iterator[tuple[Server, dict[str, str]]]:
    """The peer of the environment `folder` before that upstream: its server, and the headers callers add.

    Raises PeerFailed; what it printed is in FOLDER/output.txt.
    """
    peer, port = GATEWAYS[name], free_port()
    if peer.config:
        text = peer.config.replace("{upstream}", upstream).replace("{key}", key)
        (folder / "config.yaml").write_text(text)
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(
                listening(
                    peer.arguments(folder, upstream, port),
                    f"http://127.0.0.1:{port}",
                    ready=peer.ready,
                    log=folder / "output.txt",
                    environment=peer.environment,
                )
            )
        except (RuntimeError, OSError) as error:
            raise PeerFailed(str(error)) from error
        yield server, {header: value.replace("{upstream}", upstream) for header, value in peer.headers.items()}


def main() -> None:
    """Set peers up, and say which could not be."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    failed = False
    for name in sys.argv[2:] or list(GATEWAYS):
        try:
            folder = set_up(name, Path(sys.argv[1]))
            print(f"{name} {GATEWAYS[name].version}: {folder}")
        except PeerFailed as error:
            failed = True
            print(f"{name}: not set up: {error}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
