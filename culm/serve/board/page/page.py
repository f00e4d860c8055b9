"""The board's page, with the plots of uPlot (MIT, https://github.com/leeoniya/uPlot) in it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from starlette.responses import HTMLResponse

from culm.serve.http.document import PARTS, Document

HERE = Path(__file__).parent
SCRIPTS = ("words", "charts", "list", "details", "board")


@cache
def _document() -> Document:
    return Document(
        HERE / "board.html",
        [PARTS / "theme.css", _uplot("uPlot.min.css"), HERE / "board.css"],
        [
            HERE / "licence.js",  # which must go wherever uPlot goes
            _uplot("uPlot.iife.js"),
            *(PARTS / f"{name}.js" for name in ("elements", "server")),
            *(HERE / f"{name}.js" for name in SCRIPTS),
        ],
    )


def page() -> HTMLResponse:
    """The page as a response."""
    return _document().response()


def _uplot(name: str) -> Path:
    """A file of uPlot; its package is not imported, since it imports IPython."""
    return Path(str(distribution("uplot-python").locate_file(f"uplot/static/{name}")))
