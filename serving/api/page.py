"""The page at /docs: Swagger UI, whose files come inside the package flask-swagger-ui (extra `docs`), and its start.

Read once; the package itself is never imported, and nothing is fetched from elsewhere. It must never know what the
document says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["POLICY", "File", "file", "page"]

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".png": "image/png"}
_THEIRS: Final = ("swagger-ui.css", "index.css", "swagger-ui-bundle.js", "favicon-32x32.png")
_START: Final = b"""window.onload = () => {
  window.ui = SwaggerUIBundle({
    url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
    docExpansion: "list", defaultModelsExpandDepth: 0, persistAuthorization: false,
  });
};
"""
_PAGE: Final = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pointsman: the API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/index.css">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class File:
    """A file's bytes, its content type, and an entity tag for caches."""

    body: bytes
    content_type: str
    etag: str


def page() -> bytes | None:
    """The page; None where the extra is not installed."""
    return None if _folder() is None else _PAGE


@cache
def file(name: str) -> File | None:
    """The file of that name; None where the page has no such file, or the extra is not installed."""
    folder = _folder()
    if folder is None or name not in (*_THEIRS, "start.js"):
        return None
    body = _START if name == "start.js" else (folder / name).read_bytes()
    return File(body, _TYPES[Path(name).suffix], f'"{sha256(body).hexdigest()[:16]}"')


def _folder() -> Path | None:
    found = find_spec("flask_swagger_ui")
    return None if found is None or found.origin is None else Path(found.origin).parent / "dist"
