"""The grid of objectives, kinds of weights and layouts as a table; each cell is a test.

python bench/grid.py

Runs tests/parallel/test_grid.py, which says what a cell checks, and draws what passed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ONE = re.compile(r"test_on_one_process\[([^-\]]+)-([^-\]]+)\]")
TWO = re.compile(r"test_on_two_processes\[([^-\]]+)-([^-\]]+)-([^-\]]+)\]")
COLUMNS = {"one": "1 process", "ddp": "2, DDP", "fsdp": "2, FSDP2"}


def main() -> None:
    """Run the tests and print the table; the exit status is that of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "grid.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", f"--junitxml={report}",
                   "tests/parallel/test_grid.py"]  # fmt: skip
        status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        cells = dict(cells_of(report))
    objectives = list(dict.fromkeys(name for name, _, _ in cells))
    kinds = list(dict.fromkeys(kind for _, kind, _ in cells))
    head = [f"{kind}, {COLUMNS[layout]}" for kind in kinds for layout in COLUMNS]
    print(f"| objective | {' | '.join(head)} |")
    print("|---" * (len(head) + 1) + "|")
    for name in objectives:
        row = [
            "exact" if cells.get((name, kind, layout)) else "FAILS"
            for kind in kinds
            for layout in COLUMNS
        ]
        print(f"| {name} | {' | '.join(row)} |")
    sys.exit(status)


def cells_of(report: Path):
    """Pairs ((objective, weights, layout), whether it passed) of the tests."""
    for case in ElementTree.parse(report).iter("testcase"):
        passed = not list(case.iter("failure")) and not list(case.iter("error"))
        if found := ONE.fullmatch(case.get("name", "")):
            yield (found[1], found[2], "one"), passed
        elif found := TWO.fullmatch(case.get("name", "")):
            yield (found[1], found[2], found[3]), passed


if __name__ == "__main__":
    main()
