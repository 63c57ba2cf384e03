"""Reads a YAML file into plain values, and remembers on which line each of them stands.

Owns the file's form: size, syntax, duplicate keys, aliases, `${VAR}`. It must never know which settings exist,
and never puts a value of the file or of the environment into a message: any of them may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ConfigError", "Document", "EnvText", "Loc", "Problem", "dotted", "read_document", "read_value"]

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 100_000  # counted after aliases are expanded, so that nested aliases cannot grow without bound
MAX_DEPTH = 32
_MAX_NUMBER_LENGTH = 64

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What to change: its path in the file (`pools[0].policy.kind`), what is wrong, how to mend it, its line."""

    path: str
    message: str
    hint: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.path or 'the file'}{line}: {self.message}" + (f"; {self.hint}" if self.hint else "")


class ConfigError(Exception):
    """A configuration that cannot be used: all its problems in the file's order, and the file's name."""

    def __init__(self, problems: tuple[Problem, ...], source: str = "") -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.source = source


class EnvText(str):
    """Text that a `${VAR}` took part in. `reference` is what stood in the file and safe to show; the text is not."""

    __slots__ = ("reference",)
    reference: str

    @staticmethod
    def of(text: str, reference: str) -> EnvText:
        """`text`, remembering what it was made from."""
        made = EnvText(text)
        made.reference = reference
        return made

    def __repr__(self) -> str:
        return repr(self.reference)

    @property
    def resolved(self) -> Any:
        """The number or boolean this text spells in YAML, else the text; for fields that are not text."""
        return _plain_value(_plain_tag(self), str(self))


@dataclass(slots=True)
class Document:
    """A file's values (mappings, tuples, scalars), the line of each, and what is wrong with its form.

    `broken` holds the places whose value could not be made; nothing else needs to be said about them. `unset` holds
    those of them that only lack a variable of the environment.
    """

    data: dict[str, Any] = field(default_factory=dict, repr=False)  # with every secret of the file
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[Loc] = field(default_factory=set)
    unset: set[Loc] = field(default_factory=set)

    def line(self, loc: Loc) -> int | None:
        """The line of `loc`, or of the nearest thing around it that is in the file."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc) or None  # 0: it did not come from the file

    def report(self, loc: Loc, message: str, hint: str | None = None, line: int | None = None) -> None:
        """Record a problem at `loc`."""
        self.problems.append(Problem(dotted(loc), message, hint, line or self.line(loc)))


def read_document(path: Path, env: Mapping[str, str]) -> Document:
    """The file at `path` with `${VAR}` and `${VAR:-default}` filled in from `env`; `$${` stands for a plain `${`.

    Raises ConfigError where there is nothing to go on with: unreadable, too large, not UTF-8, not YAML, not a
    mapping. All other problems are left in the document.
    """
    root = _compose(_read_text(path))
    if root is None:
        raise _fatal("is empty", "it needs at least models and pools")
    if not isinstance(root, yaml.MappingNode):
        raise _fatal("must be a mapping of sections (server, models, pools, ...)", line=_line(root))
    document = Document()
    document.data = _Builder(document, env).build(root, ())
    return document


def read_value(text: str, document: Document, loc: Loc, env: Mapping[str, str]) -> Any:
    """The value that `text` spells in YAML, for `loc` of a document, which is told of what is wrong with it.

    Raises ConfigError where it is not YAML. Puts the value nowhere.
    """
    root = _compose(text)
    return None if root is None else _Builder(document, env).build(root, loc)


def dotted(loc: Loc) -> str:
    """`("pools", 0, "policy")` as `pools[0].policy`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _fatal(message: str, hint: str | None = None, line: int | None = None) -> ConfigError:
    return ConfigError((Problem("", message, hint, line),))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _fatal(f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise _fatal(f"is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _fatal("is not UTF-8", line=raw.count(b"\n", 0, error.start) + 1) from None


# --- from text to nodes

# `{key: ${KEY}}` is how people write it, but braces end a plain scalar inside {} or []. So a reference's own braces
# become private-use characters, one for one so that columns stay true, for as long as YAML looks at them.
_OPEN, _CLOSE = "\uf8f0", "\uf8f1"
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(:-(?P<default>[^{}\n]*))?\}|\$\{")

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+(_[0-9]+)*",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}


_OWN_WORD = re.compile(r"'(\\?.|<[a-z ]+>)'")  # what PyYAML quotes that is not the file's: one character, a token


class _Loader(yaml.SafeLoader):
    """Composes nodes at bounded depth, with the plain scalars of YAML 1.2 and no others.

    PyYAML follows YAML 1.1, where a model called `no` is false, `1:30` is 90 and `1e-3` is text.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  the parent's are those of YAML 1.1
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth > MAX_DEPTH:
            raise _fatal("is nested too deeply", line=self.line + 1)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


for _name, _pattern in _PLAIN.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)


def _compose(text: str) -> yaml.Node | None:
    if _OPEN in text or _CLOSE in text:
        raise _fatal("has a private-use character that is reserved here (U+F8F0 or U+F8F1)")
    masked = _REFERENCE.sub(lambda m: f"${_OPEN}{m[0][2:-1]}{_CLOSE}" if m["name"] else m[0], text)
    try:
        return _Loader(masked).get_single_node()
    except yaml.reader.ReaderError as error:
        at = text.count("\n", 0, error.position) + 1
        raise _fatal(f"has a character that YAML does not allow (U+{int(error.character):04X})", line=at) from None
    except yaml.MarkedYAMLError as error:
        # Only the problem, without what it quotes: context and snippet would show what stands in the file.
        problem = re.sub(
            r"'[^']*'", lambda m: m[0] if _OWN_WORD.fullmatch(m[0]) else "…", error.problem or "unreadable"
        )
        mark = error.problem_mark or error.context_mark
        column = "" if mark is None else f" at column {mark.column + 1}"
        hint = "indent with spaces, not tabs" if r"'\t'" in problem else None
        line = None if mark is None else mark.line + 1
        raise _fatal(f"is not valid YAML{column}: {problem}", hint, line) from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _plain_tag(text: str) -> str:
    return next((name for name, pattern in _PLAIN.items() if re.fullmatch(pattern, text)), "str")


def _plain_value(tag: str, text: str) -> Any:
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag in ("int", "float") and len(text) <= _MAX_NUMBER_LENGTH:
        return int(text) if tag == "int" else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


# --- from nodes to values


class _Builder:
    """Turns nodes into values, filling the document's lines and problems on the way."""

    def __init__(self, document: Document, env: Mapping[str, str]) -> None:
        self._document, self._env = document, env
        self._nodes = self._depth = 0

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_NODES or self._depth > 2 * MAX_DEPTH:
            raise _fatal("has too many values, or aliases that grow without bound", line=_line(node))
        try:
            return self._value(node, loc)
        finally:
            self._depth -= 1

    def _value(self, node: yaml.Node, loc: Loc) -> Any:
        self._document.lines.setdefault(loc, _line(node))
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return tuple(self.build(item, (*loc, i)) for i, item in enumerate(node.value))
        if isinstance(node, yaml.ScalarNode) and tag == "str":
            return self._text(node.value, loc)
        if isinstance(node, yaml.ScalarNode) and tag in ("null", "bool", "int", "float"):
            plain = _plain_tag(node.value)  # differs from the tag only if that was written out, as in `!!int x`
            if plain == tag or (tag, plain) == ("float", "int"):
                return _plain_value(tag, node.value)
        self._document.report(loc, "has a YAML tag that is not allowed here", "remove the !tag")
        self._document.broken.add(loc)
        return None

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value in node.value:
            key = None if key_node.tag == _TAG + "merge" else self._key(key_node, loc)
            if key is None:
                continue
            at = (*loc, key)
            if key in values:
                first = self._document.lines[at]
                self._document.report(at, f"is given twice, first on line {first}", "remove one", _line(key_node))
                continue
            self._document.lines.setdefault(at, _line(key_node))
            values[key] = self.build(value, at)
        for key_node, value in node.value:
            if key_node.tag == _TAG + "merge":
                values = self._merged(value, loc) | values
        return values

    def _key(self, node: yaml.Node, loc: Loc) -> str | None:
        if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "str":
            self._document.report(loc, "has a key that is not text", "quote the key", _line(node))
            return None
        key = _unmasked(node.value)
        if "${" in key:
            self._document.report(
                loc, "has a key with ${...}", "only values are read from the environment", _line(node)
            )
            return None
        return key

    def _merged(self, node: yaml.Node, loc: Loc) -> dict[str, Any]:
        """What `<<: *anchor` or `<<: [*one, *other]` brings in; earlier ones win."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values: dict[str, Any] = {}
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                values = self.build(source, loc) | values
            else:
                self._document.report(loc, "has << without a mapping", "merge an alias of a mapping", _line(source))
        return values

    def _text(self, masked: str, loc: Loc) -> str:
        template = _unmasked(masked)
        names: list[str] = []
        missing: list[str] = []
        malformed = False

        def fill(match: re.Match[str]) -> str:
            nonlocal malformed
            name, default = match["name"], match["default"]
            if name is None:
                malformed |= match[0] == "${"
                return "${"
            names.append(name)
            value = self._env.get(name)
            if default is not None:
                return value or default  # as a shell's ${VAR:-default}: also where VAR is empty
            if value is None:
                missing.append(name)
            return value or ""

        text = _REFERENCE.sub(fill, template)
        if malformed:
            self._broken(loc, "has ${ without a name and }", "write ${NAME} or ${NAME:-default}; $${ is a plain ${")
        elif missing:
            which = ", ".join(dict.fromkeys(missing))
            hint = f"set it, or write ${{{missing[0]}:-default}}"
            self._broken(loc, f"needs {which} from the environment, which is not set", hint)
            self._document.unset.add(loc)
        return EnvText.of(text, "".join(f"${{{name}}}" for name in names)) if names else text

    def _broken(self, loc: Loc, message: str, hint: str) -> None:
        self._document.report(loc, message, hint)
        self._document.broken.add(loc)


def _unmasked(text: str) -> str:
    return text.replace(_OPEN, "{").replace(_CLOSE, "}")
