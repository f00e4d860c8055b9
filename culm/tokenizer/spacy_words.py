"""Text as the words that spaCy finds in it, with nothing lost.

    "I can't  stop."  ->  "I" " ca" "n't" " " " stop" "."

One space before a word belongs to it, as in GPT-2's pattern; other white space is a word.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

from culm.config import SettingError
from culm.tokenizer.alphabet import CHARACTERS, written

WORDS = "spacy_words"  # the setting of a tokenizer that names the language

Split = Callable[[str], list[str]]


def word_splitter(language: str) -> Split:
    """Splits text by the rules of a language, such as "en"; the parts join to the text.

    Raises:
        SettingError: spaCy is not installed, or has no such language.
    """
    try:
        import spacy
    except ImportError:
        raise SettingError(
            "tokenizer.kind: spacy is not installed; install it with: pip install 'culm[spacy]'"
        ) from None
    try:
        pipeline = spacy.blank(language)
    except ImportError:
        raise SettingError(f"tokenizer.language: spaCy has no {language!r}") from None
    lock = threading.Lock()  # a memory zone is one at a time

    def split(text: str) -> list[str]:
        with lock, pipeline.memory_zone():  # forgets its words, so that memory stays bounded
            places = [
                (token.idx, token.idx + len(token.text))
                for token in pipeline.make_doc(text)
                if not token.text.isspace()
            ]
        return list(_with_spaces(text, places))

    return split


def _with_spaces(text: str, places: list[tuple[int, int]]) -> Iterator[str]:
    """The words at these places, and what is between them."""
    end = 0
    for start, stop in places:
        first = start - (end < start and text[start - 1] == " ")
        if end < first:
            yield text[end:first]
        yield text[first:stop]
        end = stop
    if end < len(text):
        yield text[end:]


def word_encoder(language: str, names: Mapping[str, int]) -> Callable[[str], list[int]]:
    """Text to ids: those of words, and bytes for a word without an id. names: the id of each
    token, by its bytes as printable characters.
    """
    split, single = word_splitter(language), [names[CHARACTERS[byte]] for byte in range(256)]

    def encode(text: str) -> list[int]:
        ids = list[int]()
        for word in split(text):
            bytes_of = word.encode()
            id = names.get(written(bytes_of))
            if id is None and word[0] == " ":  # the word may be known without the space
                ids.append(single[ord(" ")])
                bytes_of = bytes_of[1:]
                id = names.get(written(bytes_of))
            ids += [single[byte] for byte in bytes_of] if id is None else [id]
        return ids

    return encode
