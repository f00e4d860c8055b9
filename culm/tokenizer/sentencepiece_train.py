"""Training with SentencePiece: unigram (arXiv 1804.10959) and BPE, both with bytes for unknown
characters (arXiv 1808.06226).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from culm.config import SettingError
from culm.log import say
from culm.source.pieces import pieces
from culm.tokenizer.sentencepiece_model import EXTRA, parts_of, read_model
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.trained import Trained

LINE = 1000  # characters: the library leaves out sentences of more than 4192 bytes
# Ends of a line, and two characters for which the library leaves out a sentence.
ENDS = re.compile("[\n\0\u2585]")
REQUIRED = "<0xABCDEF123456789>"  # the letters in the name of a byte


class SentencePiece(Trained):
    """algorithm: unigram or bpe. path: a `.model` file to read, in place of training. digits: each
    is a token ("single"), or they are merged as letters are. coverage: fraction of the characters
    in the texts that have a token; the rest are written as bytes. prefix: a space is added before
    a text, so that its first word is like any other. lines: of more lines than this, a sample of
    this many is trained on, the same one each time; memory grows with it.
    """

    kind: Literal["sentencepiece"] = "sentencepiece"
    algorithm: Literal["unigram", "bpe"] = "unigram"
    path: Path | None = None
    digits: Literal["single"] | None = "single"
    coverage: float = Field(default=0.9995, gt=0, le=1)
    prefix: bool = True
    lines: int = Field(default=500_000, ge=101)  # the library's least

    @model_validator(mode="after")
    def _read_only(self) -> SentencePiece:
        if self.path is not None:
            given = sorted(self.model_fields_set - {"kind", "path"})
            if given:
                raise ValueError(f"{given[0]}: it has no effect with path; leave one of them out")
        return self

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Trained on `texts`, or as in the file of `path`, where they are not read."""
        if self.path is not None:
            return Tokenizer(*read_model(self.path))
        inner, settings = parts_of(self._train(texts), "sentencepiece")
        return Tokenizer(inner, settings, self.template)

    def _train(self, texts: Iterable[str]) -> bytes:
        """The content of the `.model` file that the library writes."""
        try:
            import sentencepiece
        except ImportError:
            raise SettingError(f"tokenizer.kind: sentencepiece is not installed; {EXTRA}") from None
        end, *control = self.special_tokens
        content, count = io.BytesIO(), Count()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=count.lines(texts), model_writer=content,
                model_type=self.algorithm, vocab_size=self.vocabulary, hard_vocab_limit=False,
                character_coverage=self.coverage, required_chars=REQUIRED, byte_fallback=True,
                split_digits=self.digits == "single", allow_whitespace_only_pieces=True,
                normalization_rule_name="identity", remove_extra_whitespaces=False,
                add_dummy_prefix=self.prefix, input_sentence_size=self.lines,
                shuffle_input_sentence=True, control_symbols=control, unk_id=0, bos_id=-1,
                eos_id=1, pad_id=-1, eos_piece=end, num_threads=1, minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise SettingError(f"tokenizer: sentencepiece cannot train: {_plain(error)}") from None
        if count.lines_read > self.lines:
            say(
                f"tokenizer: trained on {self.lines:,} of {count.lines_read:,} lines, a random "
                "sample; tokenizer.lines=N takes more."
            )
        return content.getvalue()


class Count:
    """Counts the lines of texts while they are read."""

    def __init__(self) -> None:
        self.lines_read = 0

    def lines(self, texts: Iterable[str]) -> Iterator[str]:
        """The lines of texts, in parts of which none is too long for the library."""
        for text in texts:
            for line in ENDS.split(text):
                for part in pieces(line, LINE) if line else ():
                    self.lines_read += 1
                    yield part


def _plain(error: RuntimeError) -> str:
    """What the library says, without the place in its source; its condition if that is all."""
    text = str(error).strip()
    return text.rpartition("] ")[2] or text
