"""What a run begins from, beside a model of its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Field, Tag

from culm import log
from culm.config import Config, SettingError
from culm.convert.grow import grow
from culm.convert.importer import load_pretrained
from culm.loading import read
from culm.model.transformer import Transformer
from culm.tokenizer.marks import with_chat
from culm.tokenizer.tokenizer import Tokenizer


class Pretrained(Config):
    """Weights and tokenizer from Hugging Face.

    hf: a folder, or an id on the hub, which is downloaded once.
    chat: give a tokenizer that has no chat template ours, with the special tokens of its turns.

    Where the tokenizer has more tokens than the embedding, rows are added; see
    `culm.convert.grow`.
    """

    hf: str = Field(min_length=1)
    chat: bool = False

    def load(self) -> tuple[Transformer, Tokenizer]:
        """In fp32 on the CPU.

        Raises:
            SettingError: it is not there, or cannot be read.
        """
        model, tokenizer = load_pretrained(self.hf)
        model.dtype = torch.float32
        for weight in model.parameters():
            weight.data = weight.data.float()
        known = tokenizer.vocabulary
        if self.chat:
            tokenizer = with_chat(tokenizer)
        used = min(known, model.config.vocabulary)
        if tokenizer.vocabulary > used:
            grow(model, used, tokenizer.vocabulary)
            log.say(
                f"{self.hf}: {tokenizer.vocabulary - used} tokens are new to the model; their rows "
                f"begin as the mean of the other {used:,}. Beside an adapter they learn only with "
                f"train.adapter.also={'embed' if model.config.tied else '[embed,head]'}."
            )
        return model, tokenizer


def _tag(value: Any) -> str:
    return "[hf]" if isinstance(value, Mapping | Pretrained) else "[path]"  # told in no message


# A path (a run or model folder, a Hugging Face folder or id, a .gguf file), or more words about it.
Start = Annotated[
    Annotated[str, Tag("[path]")] | Annotated[Pretrained, Tag("[hf]")], Discriminator(_tag)
]


def named(start: str | Pretrained) -> str:
    """The path or hub id of the model."""
    return start.hf if isinstance(start, Pretrained) else start


def start_of(start: str | Pretrained) -> tuple[Transformer, Tokenizer]:
    """What a run goes on from.

    Raises:
        SettingError: it cannot be read, or is not there.
    """
    try:
        if isinstance(start, Pretrained):
            return start.load()
        return read(start, "cpu", torch.float32, mtp=True)
    except SettingError as error:
        if isinstance(start, Pretrained):
            raise SettingError(f"start.hf: {error}") from None
        if Path(start).exists():
            raise
        raise SettingError(f"start: {error}; train that first, or give another start=") from None
