"""What the rules of quality measure of a text: its words, its lines, and what is in it twice."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

TERMINAL = (".", "?", "!", '"', "'", "\u201d", "\u2019", "\u3002", "\uff1f", "\uff01", "\u2026")
ELLIPSES = ("...", "…")
# Words of English and of what has spaces; a sign by itself counts as one, as in NLTK's tokenizer.
TOKENS = re.compile(r"\w+(?:['\u2019.-]\w+)*|[^\w\s]+")
SENTENCE = re.compile(r"[.?!][\"'\u201d\u2019)]*(?=\s|$)")


def tokens_of(text: str) -> list[str]:
    """Words, and runs of signs between them."""
    return TOKENS.findall(text)


def is_sign(token: str) -> bool:
    """Whether a token is punctuation alone."""
    return not token[0].isalnum() and all(letter in string.punctuation for letter in token)


def sentences_in(line: str) -> int:
    """How many, at least one in a line with text."""
    return max(1, len(SENTENCE.findall(line)))


def repeated(parts: Iterable[str]) -> tuple[int, int]:
    """How many parts stand there before, and how many characters they have."""
    known, count, characters = set[str](), 0, 0
    for part in parts:
        if part in known:
            count += 1
            characters += len(part)
        known.add(part)
    return count, characters


def share(lines: Sequence[str], count: int) -> float:
    """Of the lines; 0 of none."""
    return count / len(lines) if lines else 0.0
