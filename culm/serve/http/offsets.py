"""Where each token starts in the text of a plain completion (`text_offset`)."""

from __future__ import annotations

from culm.serve.answer import TextPiece
from culm.tokenizer.decoder import Decoder
from culm.tokenizer.tokenizer import Tokenizer


class TextOffsets:
    """Counts the characters of one choice, token by token.

    A token without text of its own, such as the start of a document, starts where the next one
    does, and so does a part of a character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, Decoder(tokenizer)
        self._shown = 0

    def of(self, piece: TextPiece) -> list[int]:
        """The offset of each token of the next piece."""
        echoed = bool(piece.scores) and piece.scores[0].logprob is None
        offsets = []
        for score in piece.scores:
            offsets.append(self._shown)
            written = self._written(score.token)
            if echoed:
                written = self._as_given(score.token, written, piece.text)
            self._shown += len(written)
        return offsets

    def _written(self, token: int) -> str:
        return self._decoder.push(token) if token < self._tokenizer.vocabulary else ""

    def _as_given(self, token: int, written: str, text: str) -> str:
        """The part of a prompt that a token stands for: names of special tokens can be in it, and
        a space that the tokenizer adds is not."""
        if not written and not self._tokenizer.bytes_of(token):
            name = self._tokenizer.decode([token], specials=True)
            return name if text.startswith(name, self._shown) else ""
        added = written.startswith(" ") and not text.startswith(written, self._shown)
        return written[1:] if added else written
