"""BPE-dropout (arXiv 1910.13267): merges are left out at random, so that a word has many spellings.

In each round every pair of a word that could be merged is left out with probability p, and the
first merge of the others is made; a word is done when all are left out. p = 0 is BPE, p = 1 bytes.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise

import tokenizers

from culm.config import SettingError
from culm.tokenizer.tokenizer import Tokenizer


class DropoutEncoder:
    """Text to ids of a byte-level BPE, with dropout.

    Raises:
        SettingError: the tokenizer has no merges.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        inner = tokenizers.Tokenizer.from_str(tokenizer.json)
        model = json.loads(tokenizer.json)["model"]
        if model["type"] != "BPE" or not model["merges"] or inner.pre_tokenizer is None:
            raise SettingError(
                "data.format.bpe_dropout: the tokenizer has no merges of bytes to leave out; use "
                "tokenizer=bpe or superbpe"
            )
        self._split = inner.pre_tokenizer
        self._vocabulary: dict[str, int] = model["vocab"]
        self._ranks = {(a, b): rank for rank, (a, b) in enumerate(model["merges"])}

    def encode(self, text: str, p: float, chance: random.Random) -> list[int]:
        """The ids of a text. chance: decides which merges are left out."""
        words = self._split.pre_tokenize_str(text)
        return [id for word, _ in words for id in self._word(word, p, chance)]

    def _word(self, word: str, p: float, chance: random.Random) -> list[int]:
        parts = list(word)
        while len(parts) > 1:
            ranked = (
                (self._ranks[pair], place)
                for place, pair in enumerate(pairwise(parts))
                if pair in self._ranks and chance.random() >= p
            )
            first = min(ranked, default=None)
            if first is None:
                break
            place = first[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return [self._vocabulary[part] for part in parts]
