"""The table of faults names tests that exist."""

import re
from pathlib import Path


def test_every_row_has_a_test(root: Path) -> None:
    page = (root / "docs" / "reference" / "faults.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 43))
    for row in rows:
        cell = row.split("|")[4]
        named = re.findall(r"`([\w/.]+)(?:::(\w+))?`", cell)
        assert named or re.search(r"\bas (8|29)\b", cell), row
        for file, name in named:
            if not file.startswith("bench/"):
                file = f"tests/{file}"
            text = (root / file).read_text()
            assert not name or f"def {name}(" in text, (file, name)
            slow = "(slow)" in cell.partition(f"::{name}`")[2].partition(",")[0]
            marked = re.search(rf"slow[^\n]*\n(?:@[^\n]*\n)*def {name}\(", text) if name else None
            whole = re.search(r"pytestmark = (?:\[[^\]]*|.*)slow", text)
            assert not name or slow == bool(marked or whole), (file, name)
