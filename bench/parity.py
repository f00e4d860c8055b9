"""The differences between Culm's objectives and their references as a table.

python bench/parity.py

Runs the tests that compare a loss with TRL, transformers, PyTorch or golden numbers (pytest -m
parity), and shows what they measured. A variant that several tests compare has one row, with the
largest difference. Golden numbers have no gradients.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OBJECTIVES = ("next_token", "reward", "preference", "kto", "ppo", "grpo", "distill")
PACKAGES = ("trl", "transformers", "torch")


@dataclass
class Row:
    """One variant: what it is compared with, and the largest differences."""

    references: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Of the table."""
        gradients = shown(max(self.gradients)) if self.gradients else "-"
        references = ", ".join(dict.fromkeys(self.references))
        only = " only" if references == "golden numbers" else ""
        return [f"{references}{only}", shown(max(self.losses)), gradients]


def main() -> None:
    """Run the tests and print the table; the exit status is that of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "parity.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "parity", "tests",
                   "-o", "junit_family=xunit1", f"--junitxml={report}"]  # fmt: skip
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        cases = list(ElementTree.parse(report).iter("testcase"))
    rows: dict[tuple[str, str], Row] = {}
    for objective, variant, reference, loss, gradients in measured(cases):
        row = rows.setdefault((objective, variant), Row())
        row.references.append(reference)
        row.losses.append(loss)
        row.gradients += [] if gradients is None else [gradients]
    print("| objective | variant | reference | loss | gradients |")
    print("|---|---|---|--:|--:|")
    for objective, variant in sorted(rows, key=lambda key: OBJECTIVES.index(key[0])):
        print(f"| {' | '.join([objective, variant, *rows[objective, variant].cells()])} |")
    print(f"\n{', '.join(versions())}. {summary(cases)}")
    if ran.returncode:
        sys.stderr.write(ran.stdout)
    sys.exit(ran.returncode)


def shown(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def measured(
    cases: list[ElementTree.Element],
) -> Iterator[tuple[str, str, str, float, float | None]]:
    """Objective, variant, reference, and the differences of the loss and the gradients."""
    for case in cases:
        if not failed(case):
            for value in case.iterfind("properties/property[@name='parity']"):
                yield tuple(json.loads(value.get("value", "")))


def failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def summary(cases: list[ElementTree.Element]) -> str:
    """How many tests compared, failed, and could not run."""
    skipped = sum(case.find("skipped") is not None for case in cases)
    wrong = sum(map(failed, cases))
    return f"{len(cases) - skipped} tests, {wrong} failed, {skipped} skipped."


def versions() -> Iterator[str]:
    """Of the libraries that are installed."""
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"without {name}"


if __name__ == "__main__":
    main()
