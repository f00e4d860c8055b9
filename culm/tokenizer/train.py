"""Training a byte-level BPE vocabulary (arXiv 1508.07909; on bytes as in GPT-2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import tokenizers
from pydantic import Field, model_validator
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from culm.config import Config
from culm.source.pieces import PIECE, pieces
from culm.tokenizer.alphabet import BYTES
from culm.tokenizer.chat import FIM_TOKENS, SPECIALS, TEMPLATE
from culm.tokenizer.tokenizer import Tokenizer

# GPT-4's way to split words, but with one token per digit, so that arithmetic can be learned. It is
# Qwen2's pattern; llama.cpp calls it "qwen2".
PATTERN = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class BPE(Config):
    """vocabulary: number of tokens, including the 256 bytes and the special tokens; that of the
    model unless given. fim: with special tokens for fill-in-the-middle.
    """

    kind: Literal["bpe"] = "bpe"
    vocabulary: int = Field(default=4096, ge=256 + len(SPECIALS))
    fim: bool = False

    @model_validator(mode="after")
    def _enough(self) -> BPE:
        if self.fim and self.vocabulary < (least := 256 + len(SPECIALS) + len(FIM_TOKENS)):
            raise ValueError(f"vocabulary: with fim at least {least}")
        return self

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Train on `texts`; the same texts in the same order give the same tokenizer.

        A small text may give fewer tokens.
        """
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = splitter(PATTERN)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            min_frequency=2,
            special_tokens=[*SPECIALS, *FIM_TOKENS] if self.fim else list(SPECIALS),
            initial_alphabet=list(BYTES),
            show_progress=False,
        )
        parts = (piece for text in texts for piece in pieces(text, PIECE))
        inner.train_from_iterator(parts, trainer)
        return Tokenizer(inner, template=TEMPLATE)


def splitter(*words: str) -> pre_tokenizers.PreTokenizer:
    """Splits text into words by regular expressions, in order, and writes them as bytes."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(each), behavior="isolated") for each in words),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
