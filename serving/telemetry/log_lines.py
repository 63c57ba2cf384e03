"""The service's log lines: one for each event, for people or as JSON, with the request they belong to.

Owns their form. What is said is its speaker's matter: no prompt, no key.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from serving.telemetry.about import under_way
from serving.telemetry.settings import LoggingSettings

__all__ = ["ConsoleLines", "JsonLines", "set_up_logging"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def set_up_logging(settings: LoggingSettings) -> None:
    """Log to standard error from now on, everything of the process: libraries and warnings, too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.format == "json" else ConsoleLines())
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


class JsonLines(logging.Formatter):
    """One JSON object a line, whatever was logged: in ASCII, so that no terminal or pipe can spoil it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        row = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_fields(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            row["error"] = record.exc_info[0].__name__
            row["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            row["stack"] = record.stack_info
        try:
            return json.dumps(row, default=str, allow_nan=False)
        except ValueError:  # a number that JSON has no word for
            return json.dumps({name: str(value) for name, value in row.items()})


class ConsoleLines(logging.Formatter):
    """Time, level, logger, message and what else is known; control characters are shown, not made.

    A line break could forge a line, and an escape sequence change what the reader's terminal does.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; a traceback follows on lines of its own."""
        more = "".join(f" {name}={value}" for name, value in _fields(record).items() if value is not None)
        said = _CONTROL.sub(lambda found: repr(found[0])[1:-1], _message(record) + more)
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {said}"
        if record.exc_info and record.exc_info[0] is not None:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError) as error:  # its arguments do not fit: what there is, is said
        return f"{record.msg} ({type(error).__name__} in its arguments)"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Whose request it is about, as far as that is known, and what was logged as `extra={"fields": …}`."""
    found: dict[str, Any] = {}
    about = under_way.get()
    if about is not None:
        found["request_id"] = about.request_id
        if about.decision is not None:
            found["decision_id"] = about.decision.decision_id
        if about.trace is not None:
            found["trace_id"] = about.trace.trace_id
    return found | getattr(record, "fields", {})
