"""The tools that the command line names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from culm.agent.approval import Person
from culm.agent.pins import check_pins, pins_file
from culm.agent.server_settings import read_servers
from culm.agent.servers import Servers
from culm.config import SettingError
from culm.tools.documents import Documents
from culm.tools.function import ToolFunction, check_names
from culm.tools.python import PythonFunction
from culm.tools.sql import open_database, sql_functions
from culm.tools.web import engine_of, web_functions

KNOWN = ("python", "sql", "search", "web")


@dataclass(frozen=True)
class ToolSettings:
    """tools: some of KNOWN. databases: files or URLs, for sql. folder: of texts, for search. web:
    a search engine, for web. mcp: a file of servers.
    """

    tools: Sequence[str] = ()
    databases: Sequence[str] = ()
    folder: str | None = None
    web: str | None = None
    mcp: str | None = None

    def __post_init__(self) -> None:
        for name in self.tools:
            if name not in KNOWN:
                raise SettingError(f"tools: {name!r} is not one of {', '.join(KNOWN)}")
        given = {"sql": self.databases, "search": self.folder, "web": self.web}
        options = {"sql": "--database", "search": "--folder", "web": "--web"}
        for name, value in given.items():
            if value and name not in self.tools:
                raise SettingError(f"{options[name]}: it is for --tools {name}, which is not given")
            if not value and name in self.tools:
                raise SettingError(f"tools: {name} needs {options[name]}")


@contextmanager
def opened(settings: ToolSettings, person: Person | None) -> Iterator[list[ToolFunction]]:
    """The functions, for one question. person: who is asked about definitions
    that have changed, and what servers want to know.

    Raises:
        SettingError: one cannot be used; none is left out for that.
    """
    functions: list[ToolFunction] = []
    python = PythonFunction() if "python" in settings.tools else None
    if python:
        functions.append(python)
    if "sql" in settings.tools:
        functions += sql_functions([open_database(place) for place in settings.databases])
    if settings.folder is not None:
        functions += Documents(settings.folder).functions()
    if settings.web is not None:
        functions += web_functions(engine_of(settings.web))
    try:
        if settings.mcp is None:
            yield functions
            return
        path = Path(settings.mcp)
        with Servers(read_servers(path), person) as servers:
            check_pins(pins_file(path), servers.functions, person)
            functions += servers.functions
            check_names(functions)
            yield functions
    finally:
        if python:
            python.close()
