"""Text in sentences: each is an example, and neighbours stay together in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from culm.batch import Reads
from culm.concept.sentences import END, MAX_CHARACTERS, split
from culm.data.example import Example, RecordFormat
from culm.data.format.document import DocumentFormat
from culm.tokenizer.tokenizer import Tokenizer


class SentencesFormat(RecordFormat):
    """text: the field that holds the text.

    sentences: of a row at most; longer documents are read in several rows. max_characters: of a
        sentence (`culm.concept.sentences.split`).

    The last sentence of a document is `culm.concept.sentences.END`: its concept says that nothing
    follows, to a trained model too. A sentence is `<|endoftext|> its tokens <|endoftext|>`: a
    decoder has its vector in place of the first token, and learns all others. The column `place`
    counts the sentences of a row from 0.
    """

    gives: ClassVar[Reads] = "sentences"
    group: ClassVar[int] = 0
    kind: Literal["sentences"] = "sentences"
    text: str = "text"
    sentences: int = Field(16, ge=2)
    max_characters: PositiveInt = MAX_CHARACTERS

    @property
    def columns(self) -> tuple[str, ...]:
        return ("place",)

    def check(self, tokenizer: Tokenizer) -> None:
        """Any tokenizer will do."""

    def contents(self, record: dict[str, Any]) -> Iterator[str]:
        said = [
            sentence
            for text in self.texts(record)
            for sentence in split(text, self.max_characters)
            if sentence.strip()
        ]
        yield from [*said, END] if said else said

    def numbers(self, record: dict[str, Any]) -> Sequence[tuple[float, ...]]:
        """The place of each sentence in its row."""
        count = sum(1 for _ in self.contents(record))
        return [(float(index % self.sentences),) for index in range(count)]

    def encode(self, contents: Sequence[str], tokenizer: Tokenizer) -> Iterator[Example]:
        for ids in tokenizer.encode_batch(contents):
            tokens = [tokenizer.end_of_text, *ids, tokenizer.end_of_text]
            yield Example(tokens, [True] * len(tokens))

    def texts(self, record: dict[str, Any]) -> Iterator[str]:
        yield from DocumentFormat(text=self.text).texts(record)
