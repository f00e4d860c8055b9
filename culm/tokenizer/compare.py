"""How well tokenizers compress texts, and how fast they are."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from culm.tokenizer.tokenizer import Tokenizer


@dataclass
class Compression:
    """What a tokenizer makes of texts.

    words: parts between white space. unlike: texts that decoding does not give back. seconds: of
    encoding alone.
    """

    texts: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    unlike: int = 0
    seconds: float = 0.0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8; more is a better compression."""
        return self.bytes / max(self.tokens, 1)

    @property
    def tokens_per_word(self) -> float:
        """Of little use for a language that is written without spaces."""
        return self.tokens / max(self.words, 1)

    @property
    def megabytes_per_second(self) -> float:
        """Speed of encoding."""
        return self.bytes / 1e6 / max(self.seconds, 1e-9)

    def facts(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return {
            **vars(self),
            "bytes_per_token": self.bytes_per_token,
            "tokens_per_word": self.tokens_per_word,
            "megabytes_per_second": self.megabytes_per_second,
        }


def compression(tokenizer: Tokenizer, texts: Iterable[str]) -> Compression:
    """Encode texts one after the other, and decode them again."""
    found = Compression()
    tokenizer.encode("warm up")
    for text in texts:
        begin = time.perf_counter()
        ids = tokenizer.encode(text)
        found.seconds += time.perf_counter() - begin
        found.texts += 1
        found.bytes += len(text.encode())
        found.words += len(text.split())
        found.tokens += len(ids)
        found.unlike += tokenizer.decode(ids) != text
    return found
