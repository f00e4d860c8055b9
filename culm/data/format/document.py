"""Text to continue: everything is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import PositiveInt

from culm.data.example import Example, RecordFormat
from culm.data.format.fim import FIM
from culm.source.pieces import pieces
from culm.source.record import kind_of_value, shape_of
from culm.tokenizer.tokenizer import Tokenizer


class DocumentFormat(RecordFormat):
    """text: the field that holds the text.

    max_characters: a longer document is split at white space, so that memory stays bounded. A small
    value also makes several documents of a corpus that has only one. fim: rearrange some documents,
    so that the model learns to fill in a middle.
    """

    kind: Literal["document"] = "document"
    text: str = "text"
    max_characters: PositiveInt = 1 << 22
    fim: FIM | None = None

    def check(self, tokenizer: Tokenizer) -> None:
        if self.fim is not None:
            self.fim.sentinels(tokenizer)

    def contents(self, record: dict[str, Any]) -> Iterator[str]:
        for text in self.texts(record):
            yield from (piece for piece in pieces(text, self.max_characters) if piece.strip())

    def encode(self, contents: Sequence[str], tokenizer: Tokenizer) -> Iterator[Example]:
        encoded = tokenizer.encode_batch(contents)
        for tokens, text in zip(encoded, contents, strict=True):
            if self.fim is not None:
                tokens[:] = self.fim.rearranged(text, tokenizer) or tokens
            tokens[:0] = tokenizer.start  # in place: it may be long
            tokens.append(tokenizer.end_of_text)
            yield Example(tokens, [True] * len(tokens))

    def texts(self, record: dict[str, Any]) -> Iterator[str]:
        text = record.get(self.text)
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise ValueError(f"{self.text!r} is {kind_of_value(text)}, not text")
        else:
            raise ValueError(
                f"no text in {self.text!r}; {shape_of(record)}; name the field with "
                "data.format.text=FIELD"
            )
