"""What a worker is told by the process that started it, in its environment, and that it ends when that one is gone.

Knows nothing of what a worker does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

__all__ = ["Told", "end_with_parent", "told_by"]

_VARIABLE: Final = "POINTSMAN_WORKER"


@dataclass(frozen=True, slots=True)
class Told:
    """Worker `index` of `count`, from 0; each has a socket for the others in `folder`."""

    index: int
    count: int
    folder: Path

    def as_env(self) -> dict[str, str]:
        """For the environment of that worker."""
        told = {"index": self.index, "count": self.count, "folder": str(self.folder)}
        return {_VARIABLE: orjson.dumps(told).decode()}

    def socket(self, index: int) -> Path:
        """Where that worker listens for the others."""
        return self.folder / f"worker-{index}.sock"


def told_by(env: Mapping[str, str]) -> Told | None:
    """What this process was told; None: it is the only one."""
    if not (text := env.get(_VARIABLE)):
        return None
    told = orjson.loads(text)
    return Told(int(told["index"]), int(told["count"]), Path(told["folder"]))


def end_with_parent(patience_s: float) -> None:
    """Have this process asked to end once its parent is gone, and ended when that took longer than `patience_s`.

    The parent alone holds the other end of what is standard input here: that closes however it dies.
    """
    threading.Thread(target=_outlive, args=(patience_s,), name="pointsman-parent", daemon=True).start()


def _outlive(patience_s: float) -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience_s)
    os._exit(1)
