"""Text to continue: everything is learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from culm.data.example import Example, RecordFormat
from culm.data.format.fim import FIM
from culm.seed import keyed
from culm.source.pieces import pieces
from culm.source.record import kind_of_value, shape_of
from culm.tokenizer.dropout import DropoutEncoder
from culm.tokenizer.tokenizer import Tokenizer


class DocumentFormat(RecordFormat):
    """text: the field that holds the text.

    max_characters: a longer document is split at white space, so that memory stays bounded. A small
    value also makes several documents of a corpus that has only one. fim: rearrange some documents,
    so that the model learns to fill in a middle. bpe_dropout: probability with which a merge of the
    tokenizer is left out of training text (`culm.tokenizer.dropout`), 0.1 in the paper; decided
    once, by the text.
    """

    kind: Literal["document"] = "document"
    text: str = "text"
    max_characters: PositiveInt = 1 << 22
    fim: FIM | None = None
    bpe_dropout: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_change(self) -> DocumentFormat:
        if self.fim is not None and self.bpe_dropout:
            raise ValueError("bpe_dropout: it does not go with fim; leave one of them out")
        return self

    @property
    def plain(self) -> DocumentFormat:
        return self.model_copy(update={"bpe_dropout": 0.0}) if self.bpe_dropout else self

    def check(self, tokenizer: Tokenizer) -> None:
        if self.fim is not None:
            self.fim.sentinels(tokenizer)
        if self.bpe_dropout:
            DropoutEncoder(tokenizer)

    def contents(self, record: dict[str, Any]) -> Iterator[str]:
        for text in self.texts(record):
            yield from (piece for piece in pieces(text, self.max_characters) if piece.strip())

    def encode(self, contents: Sequence[str], tokenizer: Tokenizer) -> Iterator[Example]:
        if self.bpe_dropout:
            dropout = DropoutEncoder(tokenizer)
            encoded = [self._dropped(text, dropout) for text in contents]
        else:
            encoded = tokenizer.encode_batch(contents)
        for tokens, text in zip(encoded, contents, strict=True):
            if self.fim is not None:
                tokens[:] = self.fim.rearranged(text, tokenizer) or tokens
            tokens[:0] = tokenizer.start  # in place: it may be long
            tokens.append(tokenizer.end_of_text)
            yield Example(tokens, [True] * len(tokens))

    def _dropped(self, text: str, dropout: DropoutEncoder) -> list[int]:
        chance = keyed(0, "bpe_dropout", hashlib.sha256(text.encode()).hexdigest())
        return dropout.encode(text, self.bpe_dropout, chance)

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
