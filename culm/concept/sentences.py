"""Text into sentences, by rules that know no language.

>>> split("Mr. Hyde left. He ran!")
['Mr. Hyde left. ', 'He ran!']

The sentences joined give the text: white space belongs to the sentence before it.
"""

# ruff: noqa: RUF001 - marks of other scripts look like ours

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_CHARACTERS = 200  # of a sentence, as in arXiv 2412.08821
END = "End of text."  # the sentence after the last one of a document

_CLOSING = "\"'”’»›)\\]}」』）】》"
_MARKS = ".!?…؟۔।॥።"
# A mark of the end: before white space, or anywhere for scripts that are written without it. A
# blank line ends a sentence too. A run of marks or spaces is tried from its first one only: from
# each of them, a long run without an end would take the square of its length.
_END = re.compile(
    rf"(?<![{_MARKS}])[{_MARKS}]++[{_CLOSING}]*+(?:\s+|$)|[。！？｡]++[{_CLOSING}]*+\s*"
    r"|(?<!\s)\s*\n[^\S\n]*\n\s*"
)
_SEPARATORS = (re.compile(r"[;:—–；：]\s*"), re.compile(r"[,，、،]\s*"), re.compile(r"\s+"))
_ABBREVIATED = re.compile(r"(?:^|[^\w])(\w+)\.\s+$")
_VOWELS = frozenset("aeiouyàáâäåæèéêëìíîïòóôöøùúûü")
_LONGEST = 4  # letters of a capitalised abbreviation without vowels, such as Mrs


def split(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """The sentences of a text; those above the limit are split at separators, at white space, or
    where the limit is.

    A point ends no sentence after a single letter or a capitalised abbreviation without vowels, or
    before a small letter.
    """
    return [part for one in _sentences(text) for part in _capped(one, max_characters)]


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(text):
        end = match.end()
        blank = match.start() == start and match.group().isspace()
        if blank or not _ends(text, start, match):
            continue
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether a mark ends the sentence that begins at `start`."""
    mark = match.group()
    if mark[0] not in ".…" or "\n\n" in mark:
        return True
    if text[match.end() : match.end() + 1].islower():
        return False
    word = _ABBREVIATED.search(text[max(start, match.start() - _LONGEST - 2) : match.end()])
    if word is None:
        return True
    letters = word.group(1)
    initial = len(letters) == 1 and letters.isalpha()
    short = letters[0].isupper() and len(letters) <= _LONGEST and letters.isalpha()
    return not (initial or (short and _VOWELS.isdisjoint(letters[1:].lower())))


def _capped(sentence: str, limit: int) -> Iterator[str]:
    """Parts of up to `limit` characters, each as long as its separators allow."""
    start = 0
    while len(sentence) - start > limit:
        cut = _cut(sentence, start, start + limit)
        yield sentence[start:cut]
        start = cut
    if start < len(sentence):
        yield sentence[start:]


def _cut(sentence: str, start: int, end: int) -> int:
    """Behind the last separator of the best kind in the second half of a part, or its end."""
    for separator in _SEPARATORS:
        ends = [match.end() for match in separator.finditer(sentence, start, end)]
        if ends and 2 * (ends[-1] - start) >= end - start:
            return ends[-1]
    return end
