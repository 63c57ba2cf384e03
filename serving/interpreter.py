"""What the service asks of Python's interpreter while it runs; on leaving everything is as it was.

Knows nothing of calls.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["few_collections", "loop_before_threads", "this_program"]

_SWITCH_S: Final = 0.0005


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """What was made so far lives as long as the process: no collection need look at it again.

    Calls make few cycles, and the default threshold would walk every cached decision several times a second.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


@contextlib.contextmanager
def loop_before_threads() -> Iterator[None]:
    """The threads of the stores give the interpreter back to the event loop soon.

    A call gives it up ten times or so, at every system call, and got it back only after 5 ms each while the log was
    written: at 150 calls a second, added p99 478 ms became 135 (medians of five, on two cores busy with other work).
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)


def this_program() -> list[str]:
    """The command of which this process is one: the same program, whatever lies in the folder it is called from."""
    # With -m that folder comes first on the path: a `serving` of the user's own would be run in place of this one.
    there = {"", str(Path.cwd())} & set(sys.path)
    return [sys.executable, *([] if there else ["-P"]), "-m", "serving"]
