"""A DuckDB file that can be read and not changed. Needs the package `duckdb`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.tools.database import QueryRows, limited
from culm.tools.function import ToolError

# No other file and no network, two threads, and none of this can be set back.
SETTINGS = {
    "enable_external_access": "false", "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false", "allow_community_extensions": "false",
    "memory_limit": "512MB", "max_temp_directory_size": "0KB", "threads": "2",
    "lock_configuration": "true",
}  # fmt: skip


class DuckDB:
    """A `Database`.

    Raises:
        SettingError: the package is not installed.
    """

    dialect = "DuckDB"

    def __init__(self, path: Path) -> None:
        try:
            import duckdb
        except ImportError:
            raise SettingError(f"{path}: it needs duckdb: pip install duckdb") from None
        self._duckdb: Any = duckdb
        self.name, self._path = path.stem, path.resolve()

    def query(self, sql: str, rows: int, seconds: float) -> QueryRows:
        with self._opened(seconds) as connection:
            statements = connection.extract_statements(sql)
            select = self._duckdb.StatementType.SELECT
            if len(statements) != 1 or statements[0].type != select:
                raise ToolError("only one SELECT statement is allowed")
            return limited(connection.execute(statements[0]), rows)

    def describe(self, seconds: float) -> str:
        listed = "SELECT sql FROM duckdb_tables() UNION ALL SELECT sql FROM duckdb_views() " \
            "WHERE NOT internal"  # fmt: skip
        with self._opened(seconds) as connection:
            return "\n".join(str(sql) for (sql,) in connection.execute(listed).fetchall())

    @contextmanager
    def _opened(self, seconds: float) -> Iterator[Any]:
        end = time.monotonic() + seconds
        try:
            connection = self._duckdb.connect(str(self._path), read_only=True, config=SETTINGS)
        except self._duckdb.Error as error:
            raise ToolError(f"DuckDB: {error}") from None
        timer = threading.Timer(seconds, connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield connection
        except self._duckdb.Error as error:
            if time.monotonic() >= end:
                raise ToolError(f"the query took more than {seconds:g} s") from None
            raise ToolError(f"DuckDB: {error}") from None
        finally:
            timer.cancel()
            connection.close()
