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
from culm.tokenizer.alphabet import BYTES
from culm.tokenizer.fast import is_plain_bpe
from culm.tokenizer.tokenizer import Tokenizer


class DropoutEncoder:
    """Text to ids of a byte-level BPE, with dropout.

    Raises:
        SettingError: the tokenizer is another one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        parts = json.loads(tokenizer.json)
        model, of_bytes = parts["model"], '"ByteLevel"' in json.dumps(parts["pre_tokenizer"])
        plain = of_bytes and is_plain_bpe(parts) and BYTES.keys() <= model["vocab"].keys()
        if not plain or not model["merges"]:
            raise SettingError(
                "data.format.bpe_dropout: it needs a byte-level BPE that has merges, changes "
                "nothing of a text, and has no added tokens in it; use tokenizer=bpe or superbpe"
            )
        self._split = tokenizers.Tokenizer.from_str(tokenizer.json).pre_tokenizer
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
