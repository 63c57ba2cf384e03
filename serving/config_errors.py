"""What a reload raises; only `http_errors` knows its status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.errors import ServiceError

__all__ = ["ConfigRefused"]


class ConfigRefused(ServiceError):
    """The configuration cannot be used, or not without a restart; `problems`: `{path, message, hint, line}` each."""

    def __init__(self, problems: Sequence[dict[str, Any]]) -> None:
        first, more = problems[0], len(problems) - 1
        where = f"{first['path'] or 'the file'}: {first['message']}"
        super().__init__(f"the configuration stays as it was: {where}" + (f" (and {more} more)" if more else ""))
        self.problems = list(problems)
