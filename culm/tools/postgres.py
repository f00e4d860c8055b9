"""A Postgres database in read-only transactions. Needs the package `psycopg`.

A read-only transaction stops statements that change tables. Functions with other effects, such as
reading files of the server, are a matter of the role, which should be allowed to read and no more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from culm.config import SettingError
from culm.tools.database import QueryRows, limited
from culm.tools.function import ToolError

COLUMNS = """\
SELECT table_schema || '.' || table_name,
       string_agg(column_name || ' ' || data_type, ', ' ORDER BY ordinal_position)
FROM information_schema.columns
WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
GROUP BY 1 ORDER BY 1"""


class Postgres:
    """A `Database`.

    Raises:
        SettingError: the package is not installed.
    """

    dialect = "PostgreSQL"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise SettingError("Postgres needs psycopg: pip install 'psycopg[binary]'") from None
        self._psycopg: Any = psycopg
        self.name, self._url = urlsplit(url).path.strip("/") or "postgres", url

    def query(self, sql: str, rows: int, seconds: float) -> QueryRows:
        # A cursor of the server takes one statement, a SELECT, and gives only the rows asked for.
        with self._opened(seconds) as connection, connection.cursor(name="agent") as cursor:
            cursor.execute(sql)
            return limited(cursor, rows)

    def describe(self, seconds: float) -> str:
        with self._opened(seconds) as connection, connection.cursor() as cursor:
            found = cursor.execute(COLUMNS).fetchall()
        return "\n".join(f"CREATE TABLE {table} ({columns});" for table, columns in found)

    @contextmanager
    def _opened(self, seconds: float) -> Iterator[Any]:
        """A connection within a transaction that has read, so that it stays read-only."""
        milliseconds = max(1, int(seconds * 1000))
        options = f"-c default_transaction_read_only=on -c statement_timeout={milliseconds}"
        try:
            connection = self._psycopg.connect(
                self._url, options=options, connect_timeout=max(2, int(seconds))
            )
        except self._psycopg.Error as error:
            raise ToolError(f"PostgreSQL: {type(error).__name__}") from None  # it names the role
        timer = threading.Timer(seconds, connection.cancel)
        timer.daemon = True
        timer.start()
        try:
            connection.read_only = True
            # After a first query nothing can make a transaction read-write any more.
            connection.execute("SELECT 1")
            yield connection
        except self._psycopg.Error as error:
            raise ToolError(f"PostgreSQL: {error}") from None
        finally:
            timer.cancel()
            connection.close()
