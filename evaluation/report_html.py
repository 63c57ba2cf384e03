"""Elements of a report's page: everything that is not markup of this module's own is escaped on its way in.

Owns the page's frame and style; knows neither figures nor charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from evaluation.report_style import STYLE
from evaluation.report_text import printable

__all__ = [
    "Markup",
    "block",
    "cell",
    "definitions",
    "heading",
    "joined",
    "note",
    "page",
    "paragraph",
    "section",
    "strong",
    "table",
    "tiles",
]


@dataclass(frozen=True, slots=True)
class Markup:
    """Text that is markup already."""

    text: str


def escaped(text: str | Markup) -> str:
    """Markup as it is, anything else as text; what is no text at all is shown as such."""
    if isinstance(text, Markup):
        return text.text
    return escape(printable(text))


def page(title: str, contents: Iterable[tuple[str, str]], *body: Markup) -> str:
    """A whole document; `contents`: (id, name) of its sections."""
    links = "".join(f'<a href="#{escape(name)}">{escaped(text)}</a>' for name, text in contents)
    navigation = f'<nav aria-label="Contents">{links}</nav>' if links else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escaped(title)}</h1>{navigation}</header>\n<main>\n"
        + joined(body).text
        + "\n</main>\n</body>\n</html>\n"
    )


def section(name: str, title: str, *body: Markup) -> Markup:
    """A part of the page under a heading; `name` is its id."""
    inner = joined(body).text
    return Markup(f'<section id="{escape(name)}"><h2>{escaped(title)}</h2>\n{inner}\n</section>')


def block(chart: str | None, *beside: Markup, wide: bool = False) -> Markup:
    """A chart (an SVG element) with what stands beside it, or, where it is wide, below it."""
    inner = joined(beside).text
    if chart is None:
        return Markup(f'<div class="block plain"><div class="beside">{inner}</div></div>')
    kind = "block wide" if wide else "block"
    return Markup(f'<div class="{kind}"><figure>{chart}</figure><div class="beside">{inner}</div></div>')


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str | Markup]], *, words: frozenset[int] = frozenset()
) -> Markup:
    """A table whose first column names its rows; columns in `words` hold sentences, the others numbers."""
    heads = "".join(
        f'<th scope="col"{_kind(i, words)}>{escaped(text)}</th>' if text else "<td></td>" for i, text in enumerate(head)
    )
    body = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f"<td{_kind(i, words)}>{escaped(cell)}</td>" for i, cell in enumerate(row[1:], start=1))
        + "</tr>\n"
        for row in rows
    )
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}"><table>'
        f"<caption><span>{escaped(caption)}</span></caption><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _kind(i: int, words: frozenset[int]) -> str:
    return ' class="words"' if i in words else ""


def paragraph(*parts: str | Markup) -> Markup:
    """A paragraph of texts and markup."""
    return Markup(f"<p>{''.join(escaped(part) for part in parts)}</p>")


def definitions(rows: Iterable[tuple[str, str]]) -> Markup:
    """Names with what they stand for."""
    return Markup(
        "<dl>" + "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>" for name, text in rows) + "</dl>"
    )


def tiles(rows: Iterable[tuple[str, str, str]]) -> Markup:
    """A few numbers to see first: (number, what it is, a remark)."""
    shown = "".join(
        f'<div class="tile"><b>{escaped(value)}</b>{escaped(name)}<span>{escaped(more)}</span></div>'
        for value, name, more in rows
    )
    return Markup(f'<div class="tiles">{shown}</div>')


def heading(text: str) -> Markup:
    """A heading within a section."""
    return Markup(f"<h3>{escaped(text)}</h3>")


def strong(text: str) -> Markup:
    """Text that stands out."""
    return Markup(f"<b>{escaped(text)}</b>")


def cell(text: str, below: str = "") -> Markup:
    """A cell with something small below."""
    return Markup(escaped(text) + (f"<small>{escaped(below)}</small>" if below else ""))


def joined(parts: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("\n".join(part.text for part in parts))


def note(text: str) -> Markup:
    """A remark, less prominent."""
    return Markup(f'<p class="note">{escaped(text)}</p>')
