"""A LiteLLM configuration as sections that know where they stand, and the notes about what becomes of them.

Owns reading: the file, the files it includes, `os.environ/VAR`. It must never know what a setting means, and never
puts a value of the file into a note: any of them may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.config_file import ConfigError, Document, Loc, Problem, dotted, read_document

__all__ = ["Entry", "Note", "Notes", "Source", "read_source", "reference"]

_MOST_FILES = 50
_SECTIONS = ("router_settings", "litellm_settings", "general_settings", "environment_variables")
_ENVIRONMENT = re.compile(r"os\.environ/(.+)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Note:
    """What was not carried over, or is another thing now: its place, and what to know or do about it."""

    order: tuple[int, int]
    place: str
    line: int | None
    message: str

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.place}{line}: {self.message}"


@dataclass(slots=True)
class Notes:
    """Notes as they come; `sorted` has them in the files' order."""

    made: list[Note] = field(default_factory=list)

    def sorted(self) -> list[Note]:
        """In the order of files and lines, those about a whole file last; each once."""
        return sorted(dict.fromkeys(self.made), key=lambda note: note.order)


@dataclass(frozen=True, slots=True)
class _File:
    document: Document
    number: int
    name: str  # empty for the first one, which notes need not name


class Entry:
    """A mapping of a file that remembers which of its keys somebody asked for."""

    def __init__(self, values: Mapping[str, Any], loc: Loc, file: _File, notes: Notes) -> None:
        self._values, self._loc, self._file, self._notes = values, loc, file, notes
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def take(self, key: str) -> Any:
        """The value as it is, None where there is none."""
        self._asked.add(key)
        return self._values.get(key)

    def text(self, key: str) -> str | None:
        """Text with `os.environ/VAR` as `${VAR}`; anything else is noted."""
        value = self.take(key)
        if value is None or isinstance(value, str):
            return reference(value) or (None if value is None else str(value)) or None
        if isinstance(value, bool | int | float):
            return str(value)
        self.note(key, "is not carried over: text is expected here")
        return None

    def number(self, key: str, *, least: float = 0.0, most: float = 1e12) -> float | None:
        """A number, as a number or as text; anything else, and one out of range, is noted."""
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, str) and reference(value):
            self.note(key, "is not carried over: only a variable of the environment knows the number; write it in")
            return None
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            self.note(key, f"is not carried over: a number from {least:g} to {most:g} is expected here")
            return None
        return number

    def entry(self, key: str) -> Entry:
        """The mapping below `key`; an empty one where there is none."""
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            self.note(key, "is not carried over: a mapping is expected here")
        return Entry(value if isinstance(value, Mapping) else {}, (*self._loc, key), self._file, self._notes)

    def entries(self, key: str) -> list[Entry]:
        """The mappings in the list below `key`."""
        value = self.take(key)
        if value is not None and not isinstance(value, list | tuple):
            self.note(key, "is not carried over: a list is expected here")
        made = []
        for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
            if isinstance(item, Mapping):
                made.append(Entry(item, (*self._loc, key, i), self._file, self._notes))
            else:
                self.note(key, "has something that is no mapping, which is not carried over")
        return made

    @property
    def names(self) -> list[str]:
        """Its keys that have a value."""
        return [key for key, value in self._values.items() if value is not None]

    def note(self, key: str | None, message: str) -> None:
        """Note something about a key, or about the whole of it."""
        loc = self._loc if key is None else (*self._loc, key)
        line, name = self._file.document.line(loc), self._file.name
        place = "".join(c if c.isprintable() else "?" for c in dotted(loc)) or "the file"
        order = (self._file.number, line if loc and line is not None else 10**9)
        self._notes.made.append(Note(order, f"{name}: {place}" if name else place, line if loc else None, message))

    def leave(self, reasons: Mapping[str, str], unknown: str = "is not known here, and not carried over") -> None:
        """Note every key that nobody asked for: with its reason, or as unknown."""
        for key in self.names:
            if key not in self._asked:
                self.note(key, reasons.get(key, unknown))


@dataclass(slots=True)
class Source:
    """A whole configuration: its top level, its sections, its lists over all files, and the variables it names."""

    sections: dict[str, Entry]
    models: list[Entry]
    credentials: list[Entry]
    variables: set[str]
    notes: Notes
    top: Entry

    def section(self, name: str) -> Entry:
        """A section, empty where there is none."""
        return self.sections.get(name) or self.top.entry(name)


class _AsWritten(Mapping[str, str]):
    """An environment in which every variable stands for its own `${NAME}`."""

    def __getitem__(self, name: str) -> str:
        return f"${{{name}}}"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def reference(value: Any) -> str | None:
    """`os.environ/VAR` as `${VAR}`; None for anything else."""
    match = _ENVIRONMENT.fullmatch(value) if isinstance(value, str) else None
    return f"${{{match[1]}}}" if match and _VARIABLE.fullmatch(match[1]) else None


def read_source(path: Path) -> Source:
    """The configuration at `path` and what it includes; raises ConfigError where a file cannot be used.

    Lists of included files are appended, other values replace what stood there before, as LiteLLM does.
    """
    notes, first = Notes(), _read(path, 0, "")
    top = Entry(first.document.data, (), first, notes)
    files = [first, *_included(top, path)]
    tops = [top, *(Entry(file.document.data, (), file, notes) for file in files[1:])]
    sections: dict[str, Entry] = {}
    for each in tops:
        if each is not top and "include" in each:
            each.take("include")
            each.note("include", "is not followed: it stands in a file that is itself included")
        for key in _SECTIONS:
            if key in each:
                if key in sections:
                    sections[key].note(None, "is not carried over: an included file has this section, too, and counts")
                sections[key] = each.entry(key)
    models = [entry for each in tops for entry in each.entries("model_list")]
    credentials = [entry for each in tops for entry in each.entries("credential_list")]
    for each in tops:
        each.leave(_TOP)
    if not models:
        hint = "is this a LiteLLM configuration? Models that are only in its database are not seen"
        line = first.document.line(("model_list",))
        raise ConfigError((Problem("model_list", "has no models", hint, line),), str(path))
    variables = {name for file in files for name in _variables(file.document.data)}
    return Source(sections, models, credentials, variables, notes, top)


_TOP = {
    "guardrails": "is not carried over: there are no guardrails here",
    "mcp_servers": "is not carried over: there is no MCP gateway here",
    "search_tools": "is not carried over: there are no search tools here",
    "prompts": "is not carried over: prompts are kept by callers",
}


def _included(top: Entry, path: Path) -> list[_File]:
    value = top.take("include")
    files: list[_File] = []
    for name in value if isinstance(value, list | tuple) else () if value is None else (value,):
        if not isinstance(name, str):
            top.note("include", "has something that is no file's name, which is not carried over")
        elif len(files) == _MOST_FILES:
            raise ConfigError((Problem("include", f"names more than {_MOST_FILES} files"),), str(path))
        else:
            files.append(_read(path.parent / name, len(files) + 1, name))
    return files


def _read(path: Path, number: int, name: str) -> _File:
    try:
        document = read_document(path, _AsWritten())
    except ConfigError as error:
        raise ConfigError(error.problems, str(path)) from None
    if document.problems:
        problems = tuple(sorted(document.problems, key=lambda problem: problem.line or 0))
        raise ConfigError(problems, str(path))
    return _File(document, number, name)


def _variables(value: Any) -> Iterator[str]:
    """Names of variables that a value refers to, however deep."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _variables(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _variables(inner)
    elif isinstance(value, str):
        yield from re.findall(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)", value)
        yield from re.findall(r"\$\{([A-Za-z_][A-Za-z0-9_]*)", value)
