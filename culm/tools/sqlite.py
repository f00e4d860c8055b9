"""An SQLite file that can be read and not changed, whatever the statement.

It is opened read-only, and each part of a statement passes an authorizer: only reading tables and
calling functions is allowed, so no other file is attached, written or loaded.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from culm.tools.database import QueryRows, limited
from culm.tools.function import ToolError

LARGEST = 1 << 20  # bytes of one value or row
STEPS = 1000  # of SQLite's machine between two readings of the clock
ALLOWED = (
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
)  # fmt: skip
REFUSED = ("load_extension", "fts3_tokenizer", "readfile", "writefile", "edit")  # functions


class SQLite:
    """A `Database`. Each query has a connection of its own."""

    dialect = "SQLite"

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.stem, path.resolve()

    def query(self, sql: str, rows: int, seconds: float) -> QueryRows:
        with self._opened(seconds) as connection:
            connection.set_authorizer(_authorize)
            return limited(connection.execute(sql), rows)

    def describe(self, seconds: float) -> str:
        listed = (
            "SELECT sql FROM sqlite_master WHERE type IN ('table', 'view') AND sql IS NOT NULL "
            "AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
        with self._opened(seconds) as connection:
            connection.set_authorizer(_authorize)
            return "\n".join(f"{sql};" for (sql,) in connection.execute(listed))

    @contextmanager
    def _opened(self, seconds: float) -> Iterator[sqlite3.Connection]:
        end = time.monotonic() + seconds
        uri = f"{self._path.as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=min(seconds, 5))) as connection:
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
                connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
                connection.text_factory = lambda text: text.decode("utf-8", "replace")
                connection.set_progress_handler(lambda: time.monotonic() > end, STEPS)
                yield connection
        except (sqlite3.Error, sqlite3.Warning) as error:
            if time.monotonic() > end:
                raise ToolError(f"the query took more than {seconds:g} s") from None
            raise ToolError(f"SQLite: {error}") from None


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, inner: str | None
) -> int:
    if action not in ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in REFUSED:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
