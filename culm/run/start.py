"""What a run starts from, if it does not build a new model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Field, Tag, model_validator

from culm import log
from culm.adapt.grow import grow
from culm.config import Config, SettingError
from culm.convert.load import load_pretrained, read
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.turns import with_turn_end


class Pretrained(Config):
    """Weights and tokenizer of another model; give either `hf` or `path`.

    hf: a folder of Hugging Face, or an id on the hub, which is downloaded once.
    path: a folder or file of any kind, also of a run.
    chat: add our chat template, and its special tokens, to a tokenizer without one.
    fim: add special tokens for fill-in-the-middle (`data.format.fim`) to a tokenizer without them.
    template_arguments: further variables of the chat template, such as enable_thinking: false; the
        trained model keeps them.

    Where the tokenizer has more tokens than the embedding, rows are added; see
    `culm.adapt.grow`.
    """

    hf: str | None = Field(None, min_length=1)
    path: str | None = Field(None, min_length=1)
    chat: bool = False
    fim: bool = False
    template_arguments: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_place(self) -> Pretrained:
        if (self.hf is None) == (self.path is None):
            raise ValueError("give hf or path, one of them")
        return self

    @property
    def source(self) -> str:
        """The folder, file or hub id."""
        return self.hf or self.path or ""

    def load(self) -> tuple[Transformer, Tokenizer]:
        """In fp32 on the CPU.

        Raises:
            SettingError: it is not there, or cannot be read.
        """
        if self.hf is None:
            model, tokenizer = _read(self.source)
        else:
            model, tokenizer = load_pretrained(self.hf)
            model.dtype = torch.float32
            for weight in model.parameters():
                weight.data = weight.data.float()
        known = tokenizer.vocabulary
        if self.chat:
            tokenizer = tokenizer.with_chat()
        if self.fim:
            tokenizer = tokenizer.with_fim()
        if self.template_arguments and tokenizer.template is None:
            raise SettingError(
                f"start.template_arguments: {self.source} has no chat template to take them"
            )
        if self.template_arguments:
            tokenizer = tokenizer.with_template_arguments(self.template_arguments)
        tokenizer = with_turn_end(tokenizer, self.source)
        if model.config.masked and tokenizer.vocabulary > model.config.mask_id:
            raise SettingError(
                f"{self.source}: a model that fills in masked tokens cannot get new tokens; "
                "leave out start.chat and start.fim"
            )
        used = min(known, model.config.vocabulary)
        if tokenizer.vocabulary > used:
            grow(model, used, tokenizer.vocabulary)
            trained = "embed" if model.config.tied else "[embed,head]"
            log.say(
                f"{self.source}: {tokenizer.vocabulary - used} tokens are new to the model; their "
                f"embeddings start as the mean of the other {used:,}. With an adapter they are "
                f"trained only with train.adapter.train_also={trained}."
            )
        return model, tokenizer


def _tag(value: Any) -> str:
    return "[hf]" if isinstance(value, Mapping | Pretrained) else "[path]"  # never shown


# A path (a run or model folder, a Hugging Face folder or id, a .gguf file), or more words about it.
Start = Annotated[
    Annotated[str, Tag("[path]")] | Annotated[Pretrained, Tag("[hf]")], Discriminator(_tag)
]


def model_id(start: str | Pretrained) -> str:
    """The path or hub id of the model."""
    return start.source if isinstance(start, Pretrained) else start


def start_of(start: str | Pretrained, setting: str = "start") -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a start. setting: that names it.

    Raises:
        SettingError: it cannot be read, or is not there.
    """
    try:
        if isinstance(start, Pretrained):
            return start.load()
        model, tokenizer = _read(start)
        return model, with_turn_end(tokenizer, start)
    except SettingError as error:
        if isinstance(start, Pretrained):
            raise SettingError(f"start.{'hf' if start.hf else 'path'}: {error}") from None
        if Path(start).exists():
            raise
        advice = f"train that first, or give another {setting}="
        raise SettingError(f"{setting}: {error}; {advice}") from None


def _read(path: str) -> tuple[Transformer, Tokenizer]:
    return read(path, "cpu", torch.float32)
