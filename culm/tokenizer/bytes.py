"""Bytes as tokens: no training, and every text can be encoded (as in arXiv 2105.13626)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from culm.config import Config
from culm.tokenizer.alphabet import CHARACTERS
from culm.tokenizer.chat import FIM_TOKENS, SPECIALS, TEMPLATE
from culm.tokenizer.tokenizer import Tokenizer


class Bytes(Config):
    """Token id = byte, so the vocabulary is 256.

    specials: adds six ids, from 256 on, for the special tokens of a chat. Without them a document
    ends with byte 0, which text does not contain. fim: adds three for fill-in-the-middle.
    """

    kind: Literal["bytes"] = "bytes"
    specials: bool = False
    fim: bool = False

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """The tokenizer; `texts` is not read."""
        names = {CHARACTERS[byte]: byte for byte in range(256)}
        inner = tokenizers.Tokenizer(models.BPE(vocab=names, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        if not self.specials:
            plain = Tokenizer(inner, {"end_of_text_id": 0})
            return plain.with_fim() if self.fim else plain
        inner.add_special_tokens([*SPECIALS, *FIM_TOKENS] if self.fim else list(SPECIALS))
        return Tokenizer(inner, template=TEMPLATE)
