"""Shows code on the pages as it stands in the source: an extension of Python-Markdown.

A line that is a link with the full name of a function,

    [`culm.objective.kto.kto_loss`](../../culm/objective/kto.py)

becomes a block with its code. Where pages are read as files, it leads to the file.
"""

from __future__ import annotations

import inspect
import pydoc
import re
from textwrap import dedent
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

LINK = re.compile(r"^\[`(culm\.[\w.]+)`\]\((?:\.\./)+(culm/[\w/]+\.py)\)$", re.M)


def code(name: str) -> str:
    """The source of a function, class or method.

    Raises:
        ValueError: there is none of this name.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ValueError(f"{name}: a page shows its code, but there is nothing of this name")
    return dedent(inspect.getsource(found))


def shown(markdown: str) -> str:
    """A page with a block of code in the place of each such line."""
    return LINK.sub(lambda link: f'```python title="{link[2]}"\n{code(link[1])}```', markdown)


class SourceLinks(Preprocessor):
    """Before blocks of code are found."""

    def run(self, lines: list[str]) -> list[str]:
        return shown("\n".join(lines)).split("\n")


class SourceLinksExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name of the library
        md.preprocessors.register(SourceLinks(md), "source_links", priority=100)


def makeExtension(**settings: Any) -> SourceLinksExtension:  # noqa: N802 - the name of the library
    return SourceLinksExtension(**settings)
