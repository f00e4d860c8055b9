"""Token ids to text, one at a time."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from culm.tokenizer.tokenizer import Tokenizer


class Decoder:
    """Text as it grows, for streaming.

    A character may be spread over several tokens: `push` holds back an unfinished one and nothing
    else. What was pushed and flushed, joined, is what the whole decodes to, but for the space that
    sentencepiece puts before a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes; special tokens give none."""
        return self._utf8.decode(self._tokenizer.bytes_of(token))

    def flush(self) -> str:
        """What was held back, with U+FFFD for a character that never ended."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text
