"""Bytes as tokens: nothing to train and no text that cannot be written (as in arXiv 2105.13626)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from culm.config import Config
from culm.tokenizer.alphabet import CHARACTERS
from culm.tokenizer.tokenizer import SPECIALS, TEMPLATE, Tokenizer


class Bytes(Config):
    """Token id = byte, so the vocabulary is 256.

    specials: six more ids for the special tokens of a chat, from 256 on. Without them a document
    ends with byte 0, which text does not contain (a line end would be ambiguous).
    """

    kind: Literal["bytes"] = "bytes"
    specials: bool = False

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """The tokenizer; `texts` is not looked at."""
        names = {CHARACTERS[byte]: byte for byte in range(256)}
        inner = tokenizers.Tokenizer(models.BPE(vocab=names, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        if not self.specials:
            return Tokenizer(inner, {"end_of_text_id": 0})
        inner.add_special_tokens(list(SPECIALS))
        return Tokenizer(inner, template=TEMPLATE)
