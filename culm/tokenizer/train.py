"""Training a byte-level BPE vocabulary (arXiv 1508.07909; on bytes as in GPT-2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import tokenizers
from pydantic import AfterValidator, Field
from tokenizers import decoders, models, trainers

from culm.source.pieces import PIECE, pieces
from culm.tokenizer.alphabet import BYTES
from culm.tokenizer.patterns import Digits, checked, splitter, words_of
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.trained import Trained


class BPE(Trained):
    """pattern: how text is split into words: qwen2, gpt2, cl100k, llama3, or an own regular
    expression. digits: each is a token ("single"), or up to three may be ("grouped"), whatever the
    pattern says. min_frequency: a pair that is rarer is not merged.
    """

    kind: Literal["bpe"] = "bpe"
    # GPT-4's way to split words, but with one token per digit, so that arithmetic can be learned.
    pattern: Annotated[str, AfterValidator(checked)] = "qwen2"
    digits: Digits | None = None
    min_frequency: int = Field(default=2, ge=1)

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Memory grows with the number of distinct words alone."""
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = splitter(*words_of(self.pattern, self.digits))
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            min_frequency=self.min_frequency,
            special_tokens=self.special_tokens,
            initial_alphabet=list(BYTES),
            show_progress=False,
        )
        parts = (piece for text in texts for piece in pieces(text, PIECE))
        inner.train_from_iterator(parts, trainer)
        return Tokenizer(inner, template=self.template)
