"""What all tokenizers that are trained on texts have in common: their size and special tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable

from pydantic import Field, model_validator

from culm.config import Config
from culm.tokenizer.chat import FIM_TOKENS, SPECIALS, TEMPLATE
from culm.tokenizer.tokenizer import Tokenizer


class Trained(Config, ABC):
    """vocabulary: number of tokens, including the 256 bytes and the special tokens; that of the
    model unless given. chat: with special tokens for dialogues, and Culm's chat template. fim: with
    special tokens for fill-in-the-middle. specials: names of further special tokens. reserved:
    number of ids for special tokens that are named later, `<|reserved_0|>` and so on.
    """

    vocabulary: int = Field(default=4096, ge=257)
    chat: bool = True
    fim: bool = False
    specials: tuple[str, ...] = ()
    reserved: int = Field(default=0, ge=0)

    @abstractmethod
    def build(self, texts: Iterable[str]) -> Tokenizer:
        """Train on `texts`; the same texts in the same order give the same tokenizer.

        A small text may give fewer tokens.
        """

    @property
    def special_tokens(self) -> list[str]:
        """The names of all special tokens, in the order of their ids."""
        return [
            *(SPECIALS if self.chat else SPECIALS[:1]),
            *(FIM_TOKENS if self.fim else ()),
            *self.specials,
            *(f"<|reserved_{number}|>" for number in range(self.reserved)),
        ]

    @property
    def template(self) -> str | None:
        """The chat template."""
        return TEMPLATE if self.chat else None

    @model_validator(mode="after")
    def _named(self) -> Trained:
        counts = Counter(self.special_tokens)
        if "" in counts:
            raise ValueError("specials: a name is empty; remove it")
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise ValueError(f"specials: {twice!r} is there already; remove it")
        return self

    @model_validator(mode="after")
    def _enough(self) -> Trained:
        if self.vocabulary < (least := 256 + len(self.special_tokens)):
            raise ValueError(
                f"vocabulary: it should be at least {least}: 256 bytes and "
                f"{len(self.special_tokens)} special tokens"
            )
        return self
