"""The chat page."""

from __future__ import annotations

from functools import cache

from starlette.responses import HTMLResponse

from culm.serve.http.document import PARTS, Document

STYLES = ("theme", "style")
SCRIPTS = (
    "markdown", "dialogue", "server", "elements", "view", "state", "turns", "ask", "page",
)  # fmt: skip


@cache
def _document() -> Document:
    return Document(
        PARTS / "page.html",
        [PARTS / f"{name}.css" for name in STYLES],
        [PARTS / f"{name}.js" for name in SCRIPTS],
    )


def page() -> HTMLResponse:
    """The page as a response."""
    return _document().response()
