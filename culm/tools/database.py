"""The contract of a database that a model may read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from culm.tools.function import ToolError


class QueryRows(NamedTuple):
    """more: there are further rows, which were not read."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    more: bool


class Database(Protocol):
    """What can be read of one database; it must be safe against any query."""

    @property
    def name(self) -> str: ...

    @property
    def dialect(self) -> str:
        """As a model knows it: SQLite, PostgreSQL."""
        ...

    def query(self, sql: str, rows: int, seconds: float) -> QueryRows:
        """The first rows that one statement gives.

        Raises:
            ToolError: it is refused, fails, or takes too long.
        """
        ...

    def describe(self, seconds: float) -> str:
        """Tables with their columns, as statements that would create them.

        Raises:
            ToolError: it takes too long.
        """
        ...


def limited(cursor: Any, rows: int) -> QueryRows:
    """The first rows of a DB-API cursor.

    Raises:
        ToolError: the statement gives no rows.
    """
    if cursor.description is None:
        raise ToolError("the statement gives no rows; write one SELECT")
    found = cursor.fetchmany(rows + 1)
    return QueryRows([str(one[0]) for one in cursor.description], found[:rows], len(found) > rows)
