"""Databases that a model may read and not change."""

import sqlite3
import sys
import time
from contextlib import closing

import pytest

from culm.config import SettingError
from culm.tools.function import fault_of, run
from culm.tools.sql import ROWS, open_database, sql_functions


def sqlite_file(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE towns (name TEXT, size INTEGER)")
        connection.execute("CREATE VIEW big AS SELECT * FROM towns WHERE size > 100")
        connection.executemany("INSERT INTO towns VALUES (?, ?)", [("Rome", n) for n in range(150)])
        connection.commit()
    return path


def duckdb_file(path):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE towns AS SELECT 'Rome' AS name, i AS size FROM range(150) t(i)"
        )
        connection.execute("CREATE VIEW big AS SELECT * FROM towns WHERE size > 100")
    return path


@pytest.fixture(params=[sqlite_file, duckdb_file])
def place(request, tmp_path):
    return request.param(tmp_path / "geo.db")


@pytest.fixture
def ask(place):
    describe, query = sql_functions([open_database(str(place))])

    def ask(text=None, seconds=5.0):
        return run(describe, {}, seconds) if text is None else run(query, {"query": text}, seconds)

    return ask


def test_rows_and_tables(ask):
    found = ask("SELECT name, size, NULL AS n FROM towns WHERE size IN (7, 120) ORDER BY size")
    assert found == ("name,size,n\nRome,7,NULL\nRome,120,NULL\n(2 rows)", False)
    tables = ask().text
    assert "towns" in tables
    assert "size" in tables
    assert ask("SELECT * FROM big").text.endswith("(49 rows)")
    many = ask("SELECT * FROM towns").text
    assert many.endswith(f"(more than {ROWS} rows)")
    assert many.count("\n") == ROWS + 1


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM towns", "DROP TABLE towns", "INSERT INTO towns VALUES ('x', 1)",
        "UPDATE towns SET size = 0", "CREATE TABLE t (a INTEGER)",
        "CREATE TEMP TABLE t (a INTEGER)", "ATTACH '{folder}/other.db' AS other", "VACUUM",
        "VACUUM INTO '{folder}/copy.db'",
        "PRAGMA writable_schema = 1", "PRAGMA journal_mode = DELETE", "BEGIN", "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE towns", "SELECT load_extension('x')", "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM read_csv('/etc/passwd')",
        "COPY towns TO '{folder}/out.csv'", "EXPORT DATABASE '{folder}'", "INSTALL httpfs",
        "LOAD httpfs", "SET enable_external_access = true", "RESET enable_external_access",
        "WITH x AS (SELECT 1) DELETE FROM towns", "SELECT * FROM nothing", "nonsense", "",
        "SELECT writefile('{folder}/f', 'x')", "SELECT zeroblob(1000000000)",
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r",
    ],
)  # fmt: skip
def test_nothing_is_changed_and_nothing_else_is_read(ask, place, statement, tmp_path):
    before = place.read_bytes()
    start = time.monotonic()
    assert ask(statement.format(folder=tmp_path), 0.5).failed
    assert time.monotonic() - start < 4
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"] == ["geo.db"]
    assert ask("SELECT count(*) FROM towns").text.endswith("150\n(1 rows)")


def test_cells_are_cut(tmp_path):
    _, query = sql_functions([open_database(str(sqlite_file(tmp_path / "geo.db")))])
    found = run(
        query, {"query": "SELECT replace(hex(zeroblob(1000)), '0', 'ab') AS t, x'00ff' AS b"}, 5
    )
    assert "[cut: 3,500 of 4,000 characters are left out]" in found.text
    assert "(2 bytes)" in found.text


def test_one_of_several_databases_is_named(tmp_path):
    places = [sqlite_file(tmp_path / name) for name in ("a.db", "b.db")]
    functions = {one.name: one for one in sql_functions([open_database(str(p)) for p in places])}
    assert "database" in fault_of("sql", {"query": "SELECT 1"}, functions)
    assert fault_of("sql", {"query": "SELECT 1", "database": "c"}, functions)
    assert fault_of("sql", {"query": "SELECT 1", "database": "b"}, functions) is None
    assert run(functions["sql"], {"query": "SELECT 1", "database": "b"}, 5).text == "1\n1\n(1 rows)"
    with pytest.raises(SettingError, match="same name"):
        list(sql_functions([open_database(str(places[0]))] * 2))


def test_what_is_no_database_is_refused(tmp_path, monkeypatch):
    (tmp_path / "text.db").write_text("hello, this is a text")
    with pytest.raises(SettingError, match="neither"):
        open_database(str(tmp_path / "text.db"))
    with pytest.raises(SettingError, match="No such file"):
        open_database(str(tmp_path / "none.db"))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingError, match="psycopg"):
        open_database("postgresql://localhost/geo")


def test_postgres_reads_within_a_read_only_transaction(monkeypatch):
    """By a driver that only notes what is done with it: no server runs here."""
    noted = []

    class Cursor:
        description = (("n",),)

        def __init__(self, name=None):
            noted.append(("cursor", name))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def execute(self, sql):
            noted.append(sql)
            return self

        def fetchmany(self, count):
            return [(1,)]

    class Connection:
        read_only = False
        cursor = Cursor

        def execute(self, sql):
            noted.append((sql, self.read_only))

        def cancel(self):
            noted.append("cancel")

        def close(self):
            noted.append("close")

    class Driver:
        Error = ZeroDivisionError

        @staticmethod
        def connect(url, options, connect_timeout):
            noted.append(options)
            return Connection()

    monkeypatch.setitem(sys.modules, "psycopg", Driver)
    _, query = sql_functions([open_database("postgresql://reader@localhost/geo")])
    assert run(query, {"query": "SELECT 1 AS n"}, 2).text == "n\n1\n(1 rows)"
    assert noted == [
        "-c default_transaction_read_only=on -c statement_timeout=2000", ("SELECT 1", True),
        ("cursor", "agent"), "SELECT 1 AS n", "close",
    ]  # fmt: skip
