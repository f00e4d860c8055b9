"""Questions of which a training text holds a part, so that their answers may be remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from culm.config import SettingError
from culm.data.overlap import Overlap, parts_of, text_of
from culm.eval.questions import Answered
from culm.source import open_source
from culm.task.task import Question


@dataclass(frozen=True)
class Contamination:
    """found: of each question, whether the text shares 13 words in a row with it; None: it has
    fewer words, so nothing can be said.
    """

    found: Sequence[bool | None]

    def report(self, answered: Sequence[Answered]) -> dict[str, Any]:
        """Of each task: how many questions are dirty, clean or short, and the scores of each."""
        groups: dict[str, dict[str, list[float]]] = {}
        for one, dirty in zip(answered, self.found, strict=True):
            name = "short" if dirty is None else "dirty" if dirty else "clean"
            groups.setdefault(one.task, {}).setdefault(name, []).append(one.score)
        return {
            task: {
                name: {"items": len(scores), "value": fmean(scores)}
                for name, scores in sorted(found.items())
            }
            for task, found in groups.items()
        }


def contamination(questions: Sequence[Question], path: str) -> Contamination:
    """Search the documents of a file, folder or dataset for parts of questions.

    Raises:
        SettingError: it cannot be read, or a record has no text.
    """
    parts = [parts_of(text_of(question)) for question in questions]
    overlap, met = Overlap(set().union(*parts)), set[str]()
    for number, record in enumerate(open_source(path, setting="contamination"), start=1):
        text = record.get("text")
        if not isinstance(text, str):
            raise SettingError(f"contamination: {path}: record {number} has no field text")
        met |= overlap.found_in(text)
    return Contamination([bool(part & met) if part else None for part in parts])
