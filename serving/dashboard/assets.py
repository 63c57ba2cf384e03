"""The page's files: our own, which come with this package, and uPlot's, which come inside the package youplot.

Read once. It must never know what the page shows, and no file outside the table is ever read.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["POLICY", "Asset", "asset", "page"]

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES: Final = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_UPLOT: Final = {"uplot.js": "uplot.iife.min.js", "uplot.css": "uplot.min.css"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file's bytes, its content type, and an entity tag for caches."""

    body: bytes
    content_type: str
    etag: str


@cache
def asset(name: str) -> Asset | None:
    """The file of that name; None where the page has no such file."""
    known = {place.name: place for place in files("serving.dashboard").joinpath("page").iterdir()}
    if name in _UPLOT:
        body = (_uplot() / _UPLOT[name]).read_bytes()
    elif name in known and name != "dashboard.html":
        body = known[name].read_bytes()
    else:
        return None
    return Asset(body, _TYPES[Path(name).suffix], f'"{sha256(body).hexdigest()[:16]}"')


@cache
def page(*, asks_for_key: bool) -> bytes:
    """The page itself, which says whether it has to ask for the admin key."""
    text = files("serving.dashboard").joinpath("page", "dashboard.html").read_text(encoding="utf-8")
    return text.replace("{{key}}", "required" if asks_for_key else "none").encode()


def _uplot() -> Path:
    """Where uPlot's files are; the package itself is never imported."""
    found = find_spec("youplot")
    if found is None or found.origin is None:
        raise FileNotFoundError("the package youplot is not installed; install pointsman again")
    return Path(found.origin).parent / "vendor"


def integrity(name: str) -> str:
    """What an `integrity` attribute says of a file."""
    found = asset(name)
    return "" if found is None else f"sha256-{b64encode(sha256(found.body).digest()).decode()}"
