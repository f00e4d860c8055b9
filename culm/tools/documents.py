"""Search in the text files of a folder, by the BM25 of SQLite's full-text index (FTS5).

All texts are in the index, in memory, and `open` reads from there: no path of a model reaches the
file system.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.tools.function import ToolError, ToolFunction

SUFFIXES = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .yaml .yml .toml .html .xml .tex .py .sql .log".split()
)
LARGEST = 4 << 20  # bytes of a file
TOTAL = 256 << 20  # bytes of all files
FOUND = 5
SHOWN = 8000  # characters of one page of a document
WORD = re.compile(r"\w+")
STEPS = 1000  # of SQLite's machine between two readings of the clock


class Documents:
    """The text files of a folder and of its subfolders; links are not followed.

    Raises:
        SettingError: there is no text file in it, or there is too much text.
    """

    def __init__(self, folder: str | Path) -> None:
        root = Path(folder).expanduser()
        self._lock, self._texts = threading.Lock(), dict(_texts_in(root))
        if not self._texts:
            raise SettingError(f"{folder}: it has no text files to search in")
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        self._index.execute(
            "CREATE VIRTUAL TABLE pages USING fts5(path, text, tokenize='porter unicode61')"
        )
        self._index.executemany("INSERT INTO pages VALUES (?, ?)", self._texts.items())

    def search(self, query: str, seconds: float) -> list[tuple[str, str]]:
        """Paths of the best documents, each with a part of its text."""
        words = " OR ".join(f'"{word}"' for word in WORD.findall(query)[:64])
        if not words:
            raise ToolError("the query has no words")
        end = time.monotonic() + seconds
        asked = (
            "SELECT path, snippet(pages, 1, '', '', ' ... ', 40) FROM pages WHERE pages MATCH ? "
            "ORDER BY bm25(pages, 2.0, 1.0) LIMIT ?"
        )
        with self._lock:
            self._index.set_progress_handler(lambda: time.monotonic() > end, STEPS)
            try:
                return self._index.execute(asked, (words, FOUND)).fetchall()
            except sqlite3.OperationalError as error:
                raise ToolError(f"the search failed: {error}") from None

    def text(self, path: str) -> str:
        if path not in self._texts:
            raise ToolError(f"there is no document {path[:200]!r}; search gives the paths")
        return self._texts[path]

    def functions(self) -> Iterator[ToolFunction]:
        """`search` and `open`."""
        yield Search(self)
        yield Open(self)


class Search:
    name = "search"
    description = "Find documents by words; gives paths with a part of the text of each."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "maxLength": 1000}},
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        found = self._documents.search(str(arguments["query"]), seconds)
        listed = [f"{path}\n{' '.join(text.split())}" for path, text in found]
        return "\n\n".join(listed) or "no document has these words"


class Open:
    name = "open"
    description = "The text of a document, by the path that search gives."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "maxLength": 1000},
            "start": {"type": "integer", "minimum": 0, "description": "First character, from 0."},
        },
        "required": ["path"],
        "additionalProperties": False,
    }

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        return page(self._documents.text(str(arguments["path"])), int(arguments.get("start", 0)))


def page(text: str, start: int) -> str:
    """A part of a text, and where the next part starts."""
    end = start + SHOWN
    more = f"\n[{len(text) - end:,} characters follow; start={end}]" if len(text) > end else ""
    return text[start:end] + more or "(no text)"


def _texts_in(root: Path) -> Iterator[tuple[str, str]]:
    """Each text file by its path below the root."""
    if not root.is_dir():
        raise SettingError(f"{root}: this is no folder")
    total = 0
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix.lower() not in SUFFIXES or name.startswith(".") or path.is_symlink():
                continue
            if not path.is_file() or path.stat().st_size > LARGEST:
                continue
            total += path.stat().st_size
            if total > TOTAL:
                raise SettingError(f"{root}: more than {TOTAL >> 20} MB of text; use a subfolder")
            yield path.relative_to(root).as_posix(), path.read_text("utf-8", errors="replace")
