"""The analytical log as a worker has it that does not fill it: what stands in the file, read when it can be.

Another process opens the file to fill it, and nobody can read meanwhile: a read waits for that, for a bounded time. It
never writes, and asks nobody to: what is read may be as old as the interval at which the file is filled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import duckdb

from serving.analytics import IN_USE, AnalyticalLog, why_unreadable
from serving.log_errors import LogUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from serving.store import Store

__all__ = ["LogReader"]

_WAIT_S: Final = 5.0  # for the process that fills the file; a batch takes it a tenth of a second
_AGAIN_S: Final = 0.05
_T = TypeVar("_T")


class LogReader(AnalyticalLog):
    """Reads the file at `path` that another process fills, in worker `index`."""

    def __init__(self, path: Path, store: Store, *, index: int = 1) -> None:
        super().__init__(path, store)
        # What takes more than the memory is put aside in files that DuckDB names alike in every process.
        self._config["temp_directory"] = f"{path}.{index}.tmp"

    @property
    def position(self) -> int:
        """That of the store: how far the file is behind is shown by who fills it."""
        return self._store.position

    async def change(self, work: Callable[[duckdb.DuckDBPyConnection], _T]) -> _T:  # noqa: ARG002 - as it is
        """Raises LogUnavailable: who fills the log changes it."""
        raise LogUnavailable("another worker fills the log, and it alone changes it")

    def _flush(self) -> int:
        return 0

    def _read(self, work: Callable[[duckdb.DuckDBPyConnection], _T], timeout_s: float) -> _T:
        give_up_at = time.monotonic() + _WAIT_S
        while True:
            if self._closing:
                raise LogUnavailable("the service is stopping")
            try:
                return self._look(work, timeout_s)
            except (duckdb.Error, OSError) as error:
                busy, missing = any(sign in str(error) for sign in IN_USE), not self._path.exists()
                if time.monotonic() >= give_up_at or not (busy or missing):
                    reason = "nothing is in the log yet; try again later"
                    raise LogUnavailable(reason if missing else why_unreadable(error, timeout_s)) from None
            time.sleep(_AGAIN_S)
