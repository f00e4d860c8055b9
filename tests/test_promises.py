"""The page of promises: every row has a command that parses, a test that exists, and a result."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from culm.cli import app
from culm.verbs.any_run import read_any_run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "promises.md"
LINES = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in LINES]
ROWS = [row for row in ROWS if row[0] not in ("promise", "---")]
RUNS = ("train", "plan", "launch")


def test_no_cell_is_empty() -> None:
    assert len(ROWS) >= 40
    assert all(len(row) == 5 for row in ROWS), [row for row in ROWS if len(row) != 5]
    assert all(cell for row in ROWS for cell in row)
    assert len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_promise_has_a_command_and_a_test(row: list[str]) -> None:
    _, command, tests, _, _ = row
    program, *words = shlex.split(command.strip("`"))
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "python":
        assert (ROOT / words[0]).is_file()
    else:
        assert program == "culm"
        name, *rest = words
        verb = get_command(app).commands[name]
        while rest and hasattr(verb, "commands"):
            verb, rest = verb.commands[rest[0]], rest[1:]
        given = verb.make_context(name, rest).params
        if name in RUNS and given["run"]:
            read_any_run(given["run"], given["settings"] or [])
    for test in re.findall(r"`(.+?)`", tests):
        assert (ROOT / test).is_file(), test
    assert tests
