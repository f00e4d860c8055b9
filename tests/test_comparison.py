"""The comparison with other projects: every row has a peer, a verdict and a number or why not."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "comparison.md"
LINES = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in LINES]
ROWS = [row for row in ROWS if len(row) == 4 and row[0] != "part"]


def test_every_row_has_a_verdict_and_says_what_was_measured() -> None:
    assert len(ROWS) >= 45
    for row in ROWS:
        assert all(row), row
        assert row[2].startswith(("ahead", "equal", "behind")), row


def test_being_ahead_is_shown_by_a_link_or_a_test() -> None:
    """No claim without a link to what shows it."""
    bare = [row[0] for row in ROWS if row[2].startswith("ahead") and row[3] == "-"]
    assert bare == []


def test_peers_are_ahead_in_some() -> None:
    assert sum(row[2].startswith("behind") for row in ROWS) >= 10
