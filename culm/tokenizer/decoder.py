"""Token ids to text, one at a time."""

from __future__ import annotations

import codecs

from culm.tokenizer.tokenizer import Tokenizer


class Decoder:
    """Token ids to text, one at a time, for streaming.

    A character may take several tokens: `push` withholds an unfinished one and nothing else. The
    joined results are the decoded text, except for the space that sentencepiece adds before it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes; special tokens give none."""
        return self._utf8.decode(self._tokenizer.bytes_of(token))

    @property
    def unfinished(self) -> bool:
        """Whether a part of a character is withheld."""
        return bool(self._utf8.getstate()[0])

    def flush(self) -> str:
        """The withheld text, with U+FFFD for an unfinished character."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text
