"""Turns a matplotlib figure into SVG that can stand inside a page: colours follow the page, ids are its own, no links.

Owns the palette's names, the look all charts share, and what of a figure reaches the page. Knows no chart.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from xml.etree import ElementTree as ET

from bandit.errors import InvalidInput
from evaluation.report_text import printable

__all__ = ["GRID", "INK", "MUTED", "PAPER", "SERIES", "canvas", "inline_svg"]

# Colours of no chart: each stands for a variable of the page's style sheet, so one SVG serves light, dark and paper.
INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES: Final = tuple(f"#00001{i}" for i in range(8))
_VARIABLES: Final = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--c{i}" for i, colour in enumerate(SERIES)
}
_COLOUR: Final = re.compile("|".join(_VARIABLES))
_LOOK: Final[Any] = {
    "svg.fonttype": "none",  # the page's own font, which knows more scripts than the one that comes with matplotlib
    "text.parse_math": False,  # a $ in a name is a dollar
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
    "hatch.color": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "timezone": "UTC",
}
_NAMESPACE: Final = re.compile(r"\{[^}]*\}")


@contextmanager
def canvas(width_in: float, height_in: float) -> Iterator[Any]:
    """A figure to draw on, with the look all charts share. Raises InvalidInput without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidInput("charts", "need matplotlib: pip install 'pointsman[report]'") from None
    with mpl.rc_context(_LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")  # the page's font draws it, not matplotlib's
        yield Figure(figsize=(width_in, height_in), layout="constrained")


def inline_svg(figure: Any, name: str, label: str) -> str:
    """The figure as an element for a page; `name` is a prefix of its ids, `label` says what it shows."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    _, start, rest = written.getvalue().partition("<svg")  # without the document type, which names a place in the net
    root = ET.fromstring(start + rest)  # noqa: S314 - written just above
    for element in list(root):
        if element.tag.endswith("metadata") or element.find("{*}style") is not None:
            root.remove(element)  # a style would hold for the whole page
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", str(element.tag))
        element.attrib = {_NAMESPACE.sub("", key): _owned(key, value, name) for key, value in element.attrib.items()}
    for unused in ("version", "xmlns"):
        root.attrib.pop(unused, None)
    root.attrib |= {"role": "img", "aria-label": printable(label), "preserveAspectRatio": "xMinYMid"}
    return ET.tostring(root, encoding="unicode")


def _owned(key: str, value: str, name: str) -> str:
    """An attribute's value with the page's colours, and with references to this figure's own ids."""
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href") and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    value = re.sub(r"font-family: [^;]*;? ?", "", value)
    return _COLOUR.sub(lambda found: f"var({_VARIABLES[found[0]]})", value)
