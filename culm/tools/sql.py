"""Databases for a model, which may read them and nothing else: `sql` and `describe_tables`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.tools.database import Database
from culm.tools.duckdb import DuckDB
from culm.tools.function import ToolFunction, cut
from culm.tools.postgres import Postgres
from culm.tools.sqlite import SQLite

ROWS = 100
CELL = 500  # characters
MAX_QUERY = 20_000  # characters


def open_database(place: str) -> Database:
    """A database by the path of a file, SQLite or DuckDB, or by a URL postgresql://...

    Raises:
        SettingError: it is not a database, or its driver is not installed.
    """
    if place.startswith(("postgresql://", "postgres://")):
        return Postgres(place)
    path = Path(place).expanduser()
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SettingError(f"{place}: it cannot be read as a database: {error.strerror}") from None
    if head[8:12] == b"DUCK":
        return DuckDB(path)
    if head == b"SQLite format 3\x00":
        return SQLite(path)
    raise SettingError(f"{place}: it is neither an SQLite nor a DuckDB file")


def sql_functions(databases: Sequence[Database]) -> Iterator[ToolFunction]:
    """`sql` and `describe_tables` over some databases.

    Raises:
        SettingError: there is none, or two have the same name.
    """
    names = [one.name for one in databases]
    if not names or len(set(names)) < len(names):
        what = "two databases have the same name; rename one" if names else "sql needs a database"
        raise SettingError(f"tools: {what} (--database)")
    yield DescribeTables(databases)
    yield SqlQuery(databases)


class _OverDatabases:
    """Arguments of a function over some databases: the name of one, if there are several."""

    def __init__(self, databases: Sequence[Database]) -> None:
        self._databases = {one.name: one for one in databases}

    def _schema(self, **properties: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(self._databases) > 1:
            properties["database"] = {"type": "string", "enum": sorted(self._databases)}
        return {
            "type": "object", "properties": properties, "required": sorted(properties),
            "additionalProperties": False,
        }  # fmt: skip

    def _chosen(self, arguments: Mapping[str, Any]) -> Database:
        (only, *_) = self._databases
        return self._databases[str(arguments.get("database", only))]


class DescribeTables(_OverDatabases):
    name = "describe_tables"
    description = "The tables of a database with their columns. Read it before you write a query."

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self._schema()

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        database = self._chosen(arguments)
        return f"{database.dialect}\n{database.describe(seconds)}"


class SqlQuery(_OverDatabases):
    name = "sql"

    @property
    def description(self) -> str:
        dialects = " or ".join(sorted({one.dialect for one in self._databases.values()}))
        return (
            f"The rows of one SELECT statement of {dialects}, as CSV with a header, {ROWS} at most."
            " The database cannot be changed."
        )

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self._schema(query={"type": "string", "maxLength": MAX_QUERY})

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        found = self._chosen(arguments).query(str(arguments["query"]), ROWS, seconds)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(found.columns)
        writer.writerows([_cell(value) for value in row] for row in found.rows)
        count = f"more than {len(found.rows)} rows" if found.more else f"{len(found.rows)} rows"
        return f"{text.getvalue()}({count})"


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(bytes(value)):,} bytes)"
    return cut(str(value), CELL)
