"""Units of a corpus as token ids: what a process that tokenises does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from culm.data.divide import Unit
from culm.data.example import Example, RecordFormat
from culm.data.shards import Document
from culm.data.units import Numbers
from culm.source.record import not_used
from culm.tokenizer.tokenizer import Tokenizer

# The documents of each unit, or why it has none; and counts by a phrase that follows the number.
Encoded = tuple[Sequence[list[Document] | ValueError | RecursionError], Counter[str]]


class Encoder:
    """Encodes batches of units."""

    def __init__(self, format: RecordFormat, tokenizer: Tokenizer) -> None:
        self._format, self._tokenizer = format, tokenizer

    def __call__(self, units: Sequence[Unit]) -> Encoded:
        """One after the other: an example needs 20 times the memory of its arrays."""
        counts, start = Counter[str](), 0
        found: list[list[Document] | ValueError | RecursionError] = []
        while start < len(units):
            examples = self._examples(units[start:])
            for unit in units[start:]:
                start += 1
                try:
                    found.append(self._documents(unit, examples, counts))
                except (ValueError, RecursionError) as error:
                    found.append(error)
                    break  # `examples` ended with it
        return found, counts

    def _examples(self, units: Sequence[Unit]) -> Iterator[Example]:
        """Those of all units in order; nothing of held-out text is random."""
        plain = self._format.plain  # the same where nothing is random: then all are encoded at once
        for held_out, some in groupby(units, lambda u: u.held_out and plain is not self._format):
            format = plain if held_out else self._format
            contents = [content for unit in some for content in unit.contents]
            yield from format.encode(contents, self._tokenizer)

    def _documents(
        self, unit: Unit, examples: Iterator[Example], counts: Counter[str]
    ) -> list[Document]:
        numbers = unit.numbers or [()] * len(unit.contents)
        return [
            _document(next(examples), self._format, own, unit.difficulty, counts) for own in numbers
        ]


def _document(
    example: Example,
    format: RecordFormat,
    numbers: Numbers,
    difficulty: Numbers,
    counts: Counter[str],
) -> Document:
    counts.update(not_used("messages", example.unread, "the chat template does not use"))
    counts.update(example.remarks)
    tokens = np.array(example.tokens, dtype=np.uint32)
    learned = np.array(example.learned, dtype=bool)
    hard = tuple(np.array([number]) for number in difficulty)
    if format.per == "row":
        return tokens, learned, (*(np.array([number]) for number in numbers), *hard)
    column = np.full(len(tokens), np.nan, dtype=np.float32)
    column[learned] = numbers
    return tokens, learned, (column, *hard)
