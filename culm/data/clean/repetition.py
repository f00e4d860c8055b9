"""The rules of repetition of MassiveText (Gopher, arXiv 2112.11446, table A1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from culm.data.clean.lines import repeated, tokens_of
from culm.data.clean.stage import Filter, Stage, Step
from culm.data.words import hashes_of, runs_of

PARAGRAPHS = re.compile(r"\n{2,}")
TOP = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class Repetition(Stage):
    """Each rule drops a document; null, or a length that is not there, turns one off.

    max_lines, max_paragraphs: share of the lines or paragraphs that stand there before; those
        without text do not count.
    max_line_characters, max_paragraph_characters: share of the characters in such lines or
        paragraphs. max_top: share of the characters in the most frequent n-gram of words, by n.
    max_duplicate: share of the characters in n-grams that stand there before, by n.
    """

    kind: Literal["repetition"] = "repetition"
    max_lines: float | None = 0.3
    max_paragraphs: float | None = 0.3
    max_line_characters: float | None = 0.2
    max_paragraph_characters: float | None = 0.2
    max_top: Mapping[int, float] = TOP
    max_duplicate: Mapping[int, float] = DUPLICATE
    documents_only: ClassVar[bool] = True

    def build(self) -> Step:
        return _Repetition(self)


class _Repetition(Filter):
    def __init__(self, settings: Repetition) -> None:
        self._settings = settings

    def reason(self, text: str) -> str | None:
        s = self._settings
        paragraphs = PARAGRAPHS.split(text.strip())
        lines = [line for line in text.splitlines() if line.strip()]
        return (
            _parts(
                "paragraphs", paragraphs, len(text), s.max_paragraphs, s.max_paragraph_characters
            )
            or _parts("lines", lines, len(text), s.max_lines, s.max_line_characters)
            or self._of_words(text)
        )

    def _of_words(self, text: str) -> str | None:
        tokens = tokens_of(text)
        hashes = hashes_of(tokens)
        ends = np.concatenate([[0], np.cumsum([len(token) for token in tokens])])
        for length, limit in self._settings.max_top.items():
            if _top(hashes, ends, length) > limit * len(text):
                return f"one {length}-gram is more than {limit:.0%} of the characters"
        for length, limit in sorted(self._settings.max_duplicate.items()):
            again = _again(runs := runs_of(hashes, length))
            if not again.any():  # so no longer one stands there twice
                break
            if _characters(runs, again, ends, length) > limit * len(text):
                return f"duplicate {length}-grams are more than {limit:.0%} of the characters"
        return None


def _parts(
    what: str, parts: Sequence[str], size: int, limit: float | None, characters: float | None
) -> str | None:
    count, letters = repeated(parts)
    if limit is not None and count > limit * len(parts):
        return f"more than {limit:.0%} of the {what} are duplicates"
    if characters is not None and letters > characters * size:
        return f"duplicate {what} are more than {characters:.0%} of the characters"
    return None


def _top(hashes: np.ndarray, ends: np.ndarray, length: int) -> int:
    """Characters in the most frequent n-gram, the first of those that are equally frequent."""
    runs = runs_of(hashes, length)
    ordered = np.sort(runs)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if len(starts) >= len(runs):  # nothing is repeated
        return 0
    counts = np.diff(np.append(starts, len(runs)))
    most = ordered[starts[counts == counts.max()]]
    first = int(np.isin(runs, most).argmax())
    return int(counts.max() * (ends[first + length] - ends[first]))


def _again(runs: np.ndarray) -> np.ndarray:
    """(n,) bool: which of these stand there before."""
    order = np.argsort(runs, kind="stable")
    ordered = runs[order]
    again = np.zeros(len(runs), dtype=bool)
    again[order[1:]] = ordered[1:] == ordered[:-1]
    return again


def _characters(runs: np.ndarray, again: np.ndarray, ends: np.ndarray, length: int) -> int:
    """The number of characters in n-grams that occurred earlier; each character counts once."""
    at = total = 0
    known = set[int]()
    given, repeats = runs.tolist(), set(runs[again].tolist())
    while at < len(given):
        if given[at] in known:
            total += int(ends[at + length] - ends[at])
            at += length
        else:
            if given[at] in repeats:
                known.add(given[at])
            at += 1
    return total
