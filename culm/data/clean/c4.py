"""The rules of C4 (arXiv 1910.10683, section 2.2), for lines and for documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

from culm.config import SettingError
from culm.data.clean.lines import TERMINAL, sentences_in
from culm.data.clean.stage import Changes, Dropped, Stage, Step
from culm.source.text import decoded

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip


class C4(Stage):
    """Removes lines, then drops documents; null and false turn a rule off.

    punctuation: remove lines that do not end with a terminal punctuation mark. min_line_words: of
        the lines that stay. max_word_length: of the words in them, in characters.
    javascript, policy: remove lines with the word JavaScript, or about cookies and terms of use.
    citations: remove marks such as [1], [edit] and [citation needed].
    min_sentences: of the documents that stay. lorem_ipsum, curly_brackets: drop documents that have
        them.
    bad_words: a file with a word or phrase in each line; a document with one of them is dropped.
    """

    kind: Literal["c4"] = "c4"
    punctuation: bool = True
    min_line_words: int | None = 3
    max_word_length: int | None = 1000
    javascript: bool = True
    policy: bool = True
    citations: bool = True
    min_sentences: int | None = 5
    lorem_ipsum: bool = True
    curly_brackets: bool = True
    bad_words: Path | None = None
    documents_only: ClassVar[bool] = True

    @property
    def files(self) -> tuple[Path, ...]:
        return () if self.bad_words is None else (self.bad_words,)

    def build(self) -> Step:
        return _C4(self)


class _C4(Step):
    def __init__(self, settings: C4) -> None:
        self._settings, self._bad_words = settings, None
        if settings.bad_words is not None:
            self._bad_words = _pattern(settings.bad_words)

    def apply(self, texts: list[str], changes: Changes) -> list[str] | Dropped:
        found = []
        for text in texts:
            if (why := self._reason(text)) is not None:
                return Dropped(why)
            kept = self._lines(text, changes)
            least = self._settings.min_sentences
            if least is not None and sum(map(sentences_in, kept)) < least:
                return Dropped(f"fewer than {least} sentences in the lines that stay")
            found.append("\n".join(kept))
        return found

    def _reason(self, text: str) -> str | None:
        s, lower = self._settings, text.lower()
        if s.lorem_ipsum and "lorem ipsum" in lower:
            return "lorem ipsum"
        if s.curly_brackets and "{" in text:
            return "a curly bracket"
        if self._bad_words is not None and self._bad_words.search(lower):
            return "a word of bad_words"
        return None

    def _lines(self, text: str, changes: Changes) -> list[str]:
        kept = []
        for line in text.splitlines():
            shown = CITATION.sub("", line.strip()) if self._settings.citations else line.strip()
            why = self._why_not(shown)
            if why is None:
                kept.append(shown)
            elif shown:
                changes[f"lines are removed: {why}"] += 1
        return kept

    def _why_not(self, line: str) -> str | None:
        s, lower, words = self._settings, line.lower(), line.split()
        if not words:
            return "empty"
        if s.max_word_length is not None and max(map(len, words)) > s.max_word_length:
            return f"a word of more than {s.max_word_length:,} characters"
        if s.punctuation and (not line.endswith(TERMINAL) or line.endswith(("...", "…"))):
            return "no terminal punctuation"
        if s.min_line_words is not None and len(words) < s.min_line_words:
            return f"fewer than {s.min_line_words} words"
        if s.javascript and "javascript" in lower:
            return "JavaScript"
        if s.policy and any(phrase in lower for phrase in POLICIES):
            return "a policy"
        return None


def _pattern(path: Path) -> re.Pattern[str]:
    lines = "".join(decoded(path)).lower().splitlines()
    words = [re.escape(line.strip()) for line in lines if line.strip()]
    if not words:
        raise SettingError(f"data.clean.c4.bad_words: {path} has no words; leave it out")
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)")
