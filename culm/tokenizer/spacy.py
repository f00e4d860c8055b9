"""Words of spaCy as tokens, with bytes for all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import tokenizers
from pydantic import Field
from tokenizers import decoders, models

from culm.source.pieces import PIECE, pieces
from culm.tokenizer.alphabet import CHARACTERS, written
from culm.tokenizer.patterns import splitter
from culm.tokenizer.spacy_words import WORDS, word_splitter
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.trained import Trained

KEPT = 4_000_000  # distinct words that are counted; of more, the rarest are forgotten


class Spacy(Trained):
    """language: whose rules split text into words, without a trained pipeline. min_frequency: a
    word that is rarer becomes its bytes.
    """

    kind: Literal["spacy"] = "spacy"
    language: str = Field(default="en", min_length=2)
    min_frequency: int = Field(default=2, ge=1)

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The most frequent words of `texts`."""
        split, counts = word_splitter(self.language), Counter[str]()
        for text in texts:
            for piece in pieces(text, PIECE):
                counts.update(split(piece))
            if len(counts) > KEPT:
                counts = Counter(dict(counts.most_common(KEPT // 2)))
        names = [*self.special_tokens, *(CHARACTERS[byte] for byte in range(256))]
        known = set(names)
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            name = written(word.encode())
            if count < self.min_frequency or len(names) >= self.vocabulary:
                break
            if name not in known:
                names.append(name)
        return self._built(names)

    def _built(self, names: list[str]) -> Tokenizer:
        ids = {name: id for id, name in enumerate(names)}
        inner = tokenizers.Tokenizer(models.BPE(ids, [], ignore_merges=True))
        inner.pre_tokenizer = splitter()
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(self.special_tokens)
        return Tokenizer(inner, {WORDS: self.language}, self.template)
