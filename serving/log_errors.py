"""What can go wrong when the analytical log is read for an answer; leaves of the tree in `serving.errors`."""

from __future__ import annotations

from serving.errors import ServiceError

__all__ = ["LogTooLarge", "LogUnavailable"]


class LogUnavailable(ServiceError):
    """The analytical log is missing, in use by another process, or takes too long to read."""


class LogTooLarge(ServiceError):
    """`rows` were asked for, more than the `limit` of one answer."""

    def __init__(self, table: str, rows: int, limit: int) -> None:
        super().__init__(f"{table} has {rows:,} such rows, and one answer at most {limit:,}: narrow since and until")
        self.rows, self.limit = rows, limit
