"""Questions about databases and documents, with the calls that answer them: for `tool_use.py`.

A question names a thing, such as an album; its answer is what one or two calls find. Things are
divided by a hash of their names: those of test questions are in no training question, call or
answer. Tables are divided too: some are in test questions alone, of the kind `unseen`.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from culm.seed import keyed
from culm.task.task import Question, split_of
from culm.task.tool_questions import ToolQuestions

DATABASES = ("academic", "advising", "atis", "chinook", "geography", "restaurants", "scholar")
FILES = ("BFCL_v4_simple_python", "BFCL_v4_multiple", "BFCL_v4_irrelevance")  # of functions
TESTS = ("rows", "joins", "documents", "unseen")  # kinds of test questions, each a file
PER_TABLE = 600  # questions about the rows of a table
CHARACTERS = 200  # of a result
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .&()/_-]{1,29}")  # what needs no quotes in SQL and CSV

ROWS = (
    "In {database}, what is the {column} of the {table} with {key} '{value}'?",
    "{database}: give the {column} in {table} where {key} is '{value}'.",
    "Find the {column} in the table {table} of {database} for {key} '{value}'.",
)
ARTIST = (
    "SELECT Artist.Name FROM Artist JOIN Album USING (ArtistId) WHERE Title = '{0}'",
    "Which artist made the album '{0}'?", "Who recorded the album '{0}'?",
)  # fmt: skip
ALBUM = (
    "SELECT Title FROM Album JOIN Track USING (AlbumId) WHERE Name = '{0}'",
    "Which album has the track '{0}'?", "On which album is the track '{0}'?",
)  # fmt: skip
COUNT = (
    "SELECT count(*) FROM Track JOIN Album USING (AlbumId) WHERE Title = '{0}'",
    "How many tracks has the album '{0}'?", "Count the tracks of the album '{0}'.",
)  # fmt: skip
BOTH = ("Which artist recorded the track '{0}'?", "Whose is the track '{0}'?")
NEEDED = ("What must be given to '{0}'?", "Which arguments does '{0}' require?")
MEANT = ("Which function does this: '{0}'?", "What is the function for '{0}'?")


class Asked(NamedTuple):
    """kind: one of TESTS. names: of things in it; the first one is asked about."""

    kind: str
    names: tuple[str, ...]
    question: str
    answer: str
    replies: tuple[str, ...]

    @property
    def split(self) -> str | None:
        """test if it asks about a thing of the test split; train if it names none; else neither."""
        if self.kind == "unseen" or split_of(self.names[0]) == "test":
            return "test"
        return "train" if all(split_of(name) == "train" for name in self.names) else None

    @property
    def record(self) -> dict[str, Any]:
        return {"question": self.question, "answer": self.answer, "replies": list(self.replies)}


def write_dialogues(data: Path, folder: Path, seed: int, training: int, tests: int) -> int:
    """Write what a seed asks and what the tools read: the databases, the documents, train.jsonl
    with up to `training` questions, whose number it gives, practice.jsonl with others about things
    that it does not ask about, for reinforcement learning, and up to `tests` of each kind.

    data: the folder `tool_use`.
    """
    _write_databases(data, folder / "databases")
    _write_documents(data, folder / "documents")
    (folder / "train.jsonl").touch()  # a task has a file
    chance, asked = keyed(seed, "tool dialogues"), list(_asked(data, folder))
    chance.shuffle(asked)
    task = tool_task(folder, "train.jsonl", "train")
    known = (one for one in asked if one.split == "train" and _is_right(task, one))
    chosen = {"train": list(islice(known, training))}
    shown = {one.names[0] for one in chosen["train"]}
    further = (one for one in known if one.names[0] not in shown)
    chosen["practice"] = list(islice(further, training))
    for kind in TESTS:
        own = (one for one in asked if (one.kind, one.split) == (kind, "test"))
        chosen[kind] = list(islice((one for one in own if _is_right(task, one)), tests))
    for name, ones in chosen.items():
        lines = "".join(json.dumps(one.record) + "\n" for one in ones)
        (folder / f"{name}.jsonl").write_text(lines)
    return len(chosen["train"])


def tool_task(folder: Path, file: str, split: str) -> ToolQuestions:
    """The task that asks the questions of a file with tools."""
    return ToolQuestions.model_validate(tool_settings(folder, file, split))


def tool_settings(folder: Path, file: str, split: str) -> dict[str, Any]:
    return {
        "kind": "tool_questions", "name": Path(file).stem, "path": str(folder / file),
        "split": split, "tools": ["sql", "search"], "listed": False,
        "databases": [str(folder / "databases" / f"{name}.sqlite") for name in DATABASES],
        "folder": str(folder / "documents"), "characters": CHARACTERS, "steps": 3,
    }  # fmt: skip


def call(name: str, **arguments: str) -> str:
    """A call as a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def query(sql: str, database: str = "chinook") -> str:
    return call("sql", query=sql, database=database)


def _is_right(task: ToolQuestions, asked: Asked) -> bool:
    """Whether the calls find the answer, by the tools themselves."""
    question = Question(asked.question, asked.answer)
    found = [task.follow(question, asked.replies[:n]) for n in range(1, len(asked.replies))]
    return asked.answer in str(found[-1]) and "error: " not in str(found)


def _asked(data: Path, folder: Path) -> Iterator[Asked]:
    for database in DATABASES:
        with closing(sqlite3.connect(folder / "databases" / f"{database}.sqlite")) as connection:
            yield from _about_rows(database, connection)
            if database == "chinook":
                yield from _about_albums(connection)
    yield from _about_functions(_functions(data))


def _about_rows(database: str, connection: sqlite3.Connection) -> Iterator[Asked]:
    """Cells of rows that a text names, in columns whose values differ."""
    for table, columns, rows in _tables(connection):
        kind = "unseen" if split_of(f"{database}.{table}") == "test" else "rows"
        keys = [column for column in columns if _names(rows, column)]
        pairs = [
            (key, column) for key in keys for column in columns
            if column != key and 2 * len({row[column] for row in rows}) >= len(rows)
        ]  # fmt: skip
        chance = keyed(0, database, table)
        cells = [(pair, row) for pair in pairs for row in rows]
        for (key, column), row in chance.sample(cells, min(PER_TABLE, len(cells))):
            value, answer = row[key], str(row[column])
            if row[column] is None or not PLAIN.fullmatch(answer) or not PLAIN.fullmatch(value):
                continue
            form = chance.choice(ROWS)
            said = form.format(database=database, table=table, column=column, key=key, value=value)
            sql = f"SELECT {column} FROM {table} WHERE {key} = '{value}'"
            names = (value, answer) if re.search("[A-Za-z]", answer) else (value,)
            yield Asked(kind, names, said, answer, (query(sql, database), answer))


def _tables(
    connection: sqlite3.Connection,
) -> Iterator[tuple[str, list[str], list[dict[str, Any]]]]:
    """Each table with its columns and rows."""
    named = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
    for (table,) in connection.execute(named).fetchall():
        cursor = connection.execute(f'SELECT * FROM "{table}" ORDER BY rowid')
        columns = [one[0] for one in cursor.description]
        yield table, columns, [dict(zip(columns, row, strict=True)) for row in cursor]


def _names(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether texts with letters name the rows."""
    values = [row[column] for row in rows]
    texts = [one for one in values if isinstance(one, str) and re.search("[A-Za-z]", one)]
    return len(values) >= 3 and len(texts) == len(values) == len(set(values))


def _about_albums(connection: sqlite3.Connection) -> Iterator[Asked]:
    """Who made an album or a track, and what an album has, by joins; one takes two calls."""
    chance = keyed(0, "albums")
    rows = connection.execute(
        "SELECT Track.Name, Title, Artist.Name, count(*) OVER (PARTITION BY AlbumId), "
        "count(*) OVER (PARTITION BY Track.Name) FROM Track "
        "JOIN Album USING (AlbumId) JOIN Artist USING (ArtistId) ORDER BY TrackId"
    ).fetchall()
    albums = {title: (artist, str(count)) for _, title, artist, count, _ in rows}
    for title, (artist, count) in albums.items():
        if PLAIN.fullmatch(title) and PLAIN.fullmatch(artist):
            yield _joined(ARTIST, title, artist, chance.choice(ARTIST[1:]))
            yield _joined(COUNT, title, count, chance.choice(COUNT[1:]))
    single = [(track, title, artist) for track, title, artist, _, times in rows if times == 1]
    plain = [one for one in single if all(map(PLAIN.fullmatch, one))]
    for track, title, artist in plain:
        yield _joined(ALBUM, track, title, chance.choice(ALBUM[1:]))
        calls = query(ALBUM[0].format(track)), query(ARTIST[0].format(title))
        said = chance.choice(BOTH).format(track)
        yield Asked("joins", (track, title, artist), said, artist, (*calls, artist))


def _joined(forms: Sequence[str], name: str, answer: str, form: str) -> Asked:
    names = (name,) if answer.isdigit() else (name, answer)
    replies = query(forms[0].format(name)), answer
    return Asked("joins", names, form.format(name), answer, replies)


def _about_functions(functions: Mapping[str, Mapping[str, Any]]) -> Iterator[Asked]:
    """What a function needs, and which one does what, by a search."""
    chance = keyed(0, "functions")
    for name, one in functions.items():
        found, answer = call("search", query=name), ", ".join(one["parameters"]["required"])
        if 0 < len(answer) <= 40:
            said = chance.choice(NEEDED).format(name)
            yield Asked("documents", (name,), said, answer, (found, answer))
        meaning = one["description"].rstrip(".")
        if len(meaning) <= 60 and '"' not in meaning and "'" not in meaning:
            said = chance.choice(MEANT).format(meaning)
            yield Asked("documents", (name,), said, name, (call("search", query=meaning), name))


def _write_databases(data: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in DATABASES:
        if name == "chinook":
            shutil.copyfile(data / "Chinook_Sqlite.sqlite", folder / "chinook.sqlite")
        else:
            packed = (data / "sqlite" / f"{name}.sqlite.gz").read_bytes()
            (folder / f"{name}.sqlite").write_bytes(gzip.decompress(packed))


def _write_documents(data: Path, folder: Path) -> None:
    """A page for each function: how it is called, and what it does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in _functions(data).items():
        arguments = ", ".join(one["parameters"]["required"])
        (folder / f"{name}.txt").write_text(f"({arguments})\n{one['description']}\n")


def _functions(data: Path) -> dict[str, dict[str, Any]]:
    """The functions that are described in one way only, by name."""
    found: dict[str, dict[str, Any]] = {}
    several: set[str] = set()
    for file in FILES:
        for line in gzip.decompress((data / f"{file}.json.gz").read_bytes()).splitlines():
            for one in json.loads(line)["function"]:
                if found.setdefault(one["name"], one) != one:
                    several.add(one["name"])
    return {name: found[name] for name in sorted(found.keys() - several)}
