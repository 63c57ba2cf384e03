"""Where the configuration comes from: reads it again, tells whether it changed, and what a reload cannot change.

Names settings, and never shows a value: any of them may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from serving.config_file import ConfigError, Problem, read_document
from serving.settings import Settings, load_settings

__all__ = ["ConfigSource", "changed_settings", "unchangeable"]

# What is bound, opened or made once for the life of the process.
_FIXED: Final = (
    "server.host",
    "server.port",
    "server.data_dir",
    "server.max_body_bytes",
    "server.max_connections",
    "server.idle_timeout_s",
    "store.url",
    "store.name",
    "store.synchronous",
    "store.queue_limit",
    "log.flush_interval_s",
    "log.batch_rows",
    "metering.shared_timeout_s",
    "metering.webhook_queue",
)
_FIXED_SECTIONS: Final = ("logging", "tracing")


class ConfigSource:
    """The file at `path`, with `${VAR}` from `env` and the server values that the command line replaces."""

    def __init__(self, path: Path, env: Mapping[str, str], server: Mapping[str, Any]) -> None:
        self._path, self._env, self._server = path, env, server

    def read(self) -> tuple[Settings, str]:
        """(the settings, the digest of the file they are from); raises ConfigError with every problem."""
        digest = self.digest()  # first: what is written between the two is seen as a change later
        return load_settings(self._path, self._env, self._server), digest

    def digest(self) -> str:
        """Of the file's bytes; empty where it cannot be read."""
        try:
            return sha256(self._path.read_bytes()).hexdigest()[:16]
        except OSError:
            return ""

    def stamp(self) -> tuple[int, ...]:
        """What differs once the file was written or replaced; empty where it is not there."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def line(self, setting: str) -> int | None:
        """The line on which a setting such as `server.port` stands."""
        try:
            return read_document(self._path, self._env).line(tuple(setting.split(".")))
        except ConfigError:
            return None


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """The settings that differ, by their paths: `models[large].price.input_per_million`, `pools[new]`."""
    return list(_changed(before, after, ""))


def unchangeable(changed: list[str], source: ConfigSource) -> list[Problem]:
    """Of the changed settings those that need a restart."""
    return [
        Problem(name, "cannot change while the service runs", "restart the service, or take it back", source.line(name))
        for name in changed
        if name in _FIXED or name.partition(".")[0] in _FIXED_SECTIONS
    ]


def _changed(before: Any, after: Any, path: str) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, BaseModel) and type(before) is type(after):
        for name in type(before).model_fields:
            yield from _changed(getattr(before, name), getattr(after, name), f"{path}.{name}" if path else name)
        return
    named = _by_name(before), _by_name(after)
    if named[0] is None or named[1] is None:
        yield path
        return
    names = list(dict.fromkeys((*named[0], *named[1])))
    inside = [part for name in names for part in _changed(named[0].get(name), named[1].get(name), f"{path}[{name}]")]
    yield from inside or [path]  # else it is their order


def _by_name(entries: Any) -> dict[str, Any] | None:
    """Entries by their names; None where they have none."""
    if not isinstance(entries, tuple) or not all(hasattr(entry, "name") for entry in entries):
        return None
    named = {str(entry.name): entry for entry in entries}
    return named if len(named) == len(entries) else None
