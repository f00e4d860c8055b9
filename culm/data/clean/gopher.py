"""The rules of quality of MassiveText (Gopher, arXiv 2112.11446, appendix A.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from culm.data.clean.lines import ELLIPSES, is_sign, share, tokens_of
from culm.data.clean.stage import Filter, Stage, Step

BULLETS = ("•", "●", "‣", "-", "*")
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class Gopher(Stage):
    """Each rule drops a document; null turns it off. Words are counted without punctuation.

    min_words, max_words: in a document. min_word_length, max_word_length: mean, in characters.
    max_hashes, max_ellipses: signs for each word. max_bullets: share of the lines that begin with a
        bullet. max_ellipsis_lines: share of the lines that end with an ellipsis.
    min_alphabetic: share of the words that have a letter.
    min_stop_words: how many distinct stop words stand there. stop_words: those of English, unless
        given.
    """

    kind: Literal["gopher"] = "gopher"
    min_words: int | None = 50
    max_words: int | None = 100_000
    min_word_length: float | None = 3
    max_word_length: float | None = 10
    max_hashes: float | None = 0.1
    max_ellipses: float | None = 0.1
    max_bullets: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alphabetic: float | None = 0.8
    min_stop_words: int | None = 2
    stop_words: tuple[str, ...] = STOP_WORDS
    documents_only: ClassVar[bool] = True

    def build(self) -> Step:
        return _Gopher(self)


class _Gopher(Filter):
    def __init__(self, settings: Gopher) -> None:
        self._settings, self._stop_words = settings, frozenset(settings.stop_words)

    def reason(self, text: str) -> str | None:
        tokens = tokens_of(text)
        words = [token for token in tokens if not is_sign(token)]
        return self._of_words(words) or self._of_signs(text, len(words)) or self._of_lines(text)

    def _of_words(self, words: Sequence[str]) -> str | None:
        s, count = self._settings, len(words)
        mean = sum(map(len, words)) / max(1, count)
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / max(1, count)
        if s.min_words is not None and count < s.min_words:
            return f"fewer than {s.min_words:,} words"
        if s.max_words is not None and count > s.max_words:
            return f"more than {s.max_words:,} words"
        if s.min_word_length is not None and mean < s.min_word_length:
            return f"words of fewer than {s.min_word_length:g} letters on average"
        if s.max_word_length is not None and mean > s.max_word_length:
            return f"words of more than {s.max_word_length:g} letters on average"
        if s.min_alphabetic is not None and alphabetic < s.min_alphabetic:
            return f"a letter in less than {s.min_alphabetic:.0%} of the words"
        found = len(self._stop_words.intersection(words))
        if s.min_stop_words is not None and found < s.min_stop_words:
            return f"fewer than {s.min_stop_words} stop words"
        return None

    def _of_signs(self, text: str, words: int) -> str | None:
        s, words = self._settings, max(1, words)
        if s.max_hashes is not None and text.count("#") / words > s.max_hashes:
            return f"more than {s.max_hashes:g} hash signs for each word"
        ellipses = sum(map(text.count, ELLIPSES))
        if s.max_ellipses is not None and ellipses / words > s.max_ellipses:
            return f"more than {s.max_ellipses:g} ellipses for each word"
        return None

    def _of_lines(self, text: str) -> str | None:
        s = self._settings
        lines = text.splitlines()
        bullets = share(lines, sum(line.lstrip().startswith(BULLETS) for line in lines))
        if s.max_bullets is not None and bullets > s.max_bullets:
            return f"a bullet before more than {s.max_bullets:.0%} of the lines"
        ends = share(lines, sum(line.rstrip().endswith(ELLIPSES) for line in lines))
        if s.max_ellipsis_lines is not None and ends > s.max_ellipsis_lines:
            return f"an ellipsis after more than {s.max_ellipsis_lines:.0%} of the lines"
        return None
