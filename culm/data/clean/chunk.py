"""One chunk of a corpus through all stages: what a worker process does.

The result is bytes: it goes from process to process, and into a file that a later call reads in
place of cleaning the chunk again.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from culm.data.clean.stage import Changes, Dropped, Stage, Step

EMPTY = "no text is left"
EQUAL = "its answers are the same after cleaning"

Texts = tuple[list[str], list[int]]  # those of a unit, and how many belong to each of its contents


@dataclass
class Outcome:
    """What became of a unit.

    texts: None if they are as they were. dropped: the number of the stage, and why. changes: for
    each stage that changed something. marks: for each stage that has an index.
    """

    texts: list[str] | None = None
    dropped: tuple[int, str] | None = None
    changes: dict[int, Changes] = field(default_factory=dict)
    marks: dict[int, np.ndarray] = field(default_factory=dict)


def clean_unit(steps: Sequence[Step], given: list[str], sizes: Sequence[int]) -> Outcome:
    """A unit through all steps, up to the one that drops it. sizes: texts in each content."""
    outcome, texts = Outcome(), given
    for number, step in enumerate(steps):
        changes = Counter[str]()
        found = step.apply(texts, changes)
        if changes:
            outcome.changes[number] = changes
        if isinstance(found, Dropped):
            outcome.dropped = (number, found.reason)
            return outcome
        if found != texts and (why := _spoiled(texts, found, sizes)) is not None:
            outcome.dropped = (number, why)
            return outcome
        texts = found
        if (marks := step.marks(texts)) is not None:
            outcome.marks[number] = marks
    outcome.texts = None if texts == given else texts
    return outcome


def _spoiled(before: list[str], after: list[str], sizes: Sequence[int]) -> str | None:
    """Whether rewritten texts cannot be learned from any more."""
    if not any(text.strip() for text in after):
        return EMPTY
    if len(sizes) > 1 and _distinct(after, sizes) < _distinct(before, sizes):
        return EQUAL
    return None


def _distinct(texts: list[str], sizes: Sequence[int]) -> int:
    rest = iter(texts)
    return len({tuple(islice(rest, size)) for size in sizes})


def pack(outcomes: Sequence[Outcome]) -> bytes:
    """The outcomes of a chunk as an .npz file."""
    said = [
        [one.texts, one.dropped, {str(n): dict(c) for n, c in one.changes.items()}]
        for one in outcomes
    ]
    arrays: dict[str, Any] = {"said": np.frombuffer(json.dumps(said).encode(), dtype=np.uint8)}
    for number in sorted({number for one in outcomes for number in one.marks}):
        rows = [row for row, one in enumerate(outcomes) if number in one.marks]
        arrays[f"rows{number}"] = np.array(rows)
        arrays[f"marks{number}"] = np.stack([outcomes[row].marks[number] for row in rows])
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def unpack(data: bytes) -> list[Outcome]:
    """What `pack` wrote.

    Raises:
        ValueError, KeyError, zipfile.BadZipFile: it is damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        outcomes = [
            Outcome(
                texts,
                None if dropped is None else (dropped[0], dropped[1]),
                {int(number): Counter(counts) for number, counts in changes.items()},
            )
            for texts, dropped, changes in json.loads(arrays["said"].tobytes())
        ]
        for name in arrays.files:
            if name.startswith("rows"):
                number = int(name.removeprefix("rows"))
                for row, marks in zip(arrays[name], arrays[f"marks{number}"], strict=True):
                    outcomes[row].marks[number] = marks
    return outcomes


class Worker:
    """Cleans chunks, in whatever process: stages are built once in each."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._steps = [stage.build() for stage in stages]

    def __call__(self, units: Sequence[Texts]) -> bytes:
        """The packed outcomes of a chunk."""
        return pack([clean_unit(self._steps, texts, sizes) for texts, sizes in units])
