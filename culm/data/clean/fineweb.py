"""The rules that FineWeb adds to those of Gopher and C4 (arXiv 2406.17557, section 3.5)."""

from __future__ import annotations

from typing import ClassVar, Literal

from culm.data.clean.lines import TERMINAL, repeated, share, tokens_of
from culm.data.clean.stage import Filter, Stage, Step


class FineWeb(Stage):
    """Each rule drops a document; null turns it off. Lines without text do not count.

    min_punctuation: share of the lines that end with a terminal punctuation mark.
    max_short_lines: share of the lines that are short; short_line: characters that such a line has
        at most.
    max_duplicate_characters: share of the characters in lines that stand there before.
    max_line_feeds: line feeds for each word.
    """

    kind: Literal["fineweb"] = "fineweb"
    min_punctuation: float | None = 0.12
    max_short_lines: float | None = 0.67
    short_line: int = 30
    max_duplicate_characters: float | None = 0.01
    max_line_feeds: float | None = 0.3
    documents_only: ClassVar[bool] = True

    def build(self) -> Step:
        return _FineWeb(self)


class _FineWeb(Filter):
    def __init__(self, settings: FineWeb) -> None:
        self._settings = settings

    def reason(self, text: str) -> str | None:
        s = self._settings
        lines = [line for line in text.split("\n") if line.strip()]
        ended = share(lines, sum(line.endswith(TERMINAL) for line in lines))
        if s.min_punctuation is not None and ended < s.min_punctuation:
            return f"terminal punctuation after less than {s.min_punctuation:.0%} of the lines"
        short = share(lines, sum(len(line) <= s.short_line for line in lines))
        if s.max_short_lines is not None and short > s.max_short_lines:
            return f"more than {s.max_short_lines:.0%} of the lines are short"
        characters = max(1, len(text) - text.count("\n"))
        limit = s.max_duplicate_characters
        if limit is not None and repeated(lines)[1] > limit * characters:
            return f"duplicate lines are more than {limit:.0%} of the characters"
        feeds = text.count("\n") / max(1, len(tokens_of(text)))
        if s.max_line_feeds is not None and feeds > s.max_line_feeds:
            return f"more than {s.max_line_feeds:g} line feeds for each word"
        return None
