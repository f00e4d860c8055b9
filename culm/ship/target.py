"""What the targets of `culm export --for` have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch

from culm.config import Config, SettingError
from culm.convert import hf
from culm.convert.card import NAME as CARD
from culm.convert.load import read
from culm.dtype import dtype_of
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer


class TargetConfig(Config):
    """A program or service that runs a model. kind: its name for `--for`."""

    kind: str

    @abstractmethod
    def write(self, source: str, out: Path, dtype: str, family: str) -> None:
        """Write its folder. dtype, family: as in `culm.convert.export`; empty: the default.

        Raises:
            SettingError: the target does not take this model, or a setting does not fit it.
        """


def read_language_model(source: str, target: str) -> tuple[Transformer, Tokenizer]:
    """A model in fp32 with a head for the next token, and its tokenizer.

    Raises:
        SettingError: it is a reward model.
    """
    model, tokenizer = read(source, "cpu", torch.float32, mtp=False)
    if model.config.head != "vocabulary":
        raise SettingError(f"{source}: it gives rewards and no text; {target} generates text")
    return model.eval(), tokenizer


def write_folder(
    model: Transformer, tokenizer: Tokenizer, out: Path, dtype: str, family: str, usage: str
) -> None:
    """A Hugging Face folder whose card ends with `usage`, Markdown."""
    hf.export(model, tokenizer, out, dtype_of(dtype or "bfloat16"), family=family)
    with (out / CARD).open("a", encoding="utf-8") as card:
        card.write(f"\n{usage}")


def refuse_options(target: str, **given: str) -> None:
    """SettingError if an option of `culm export` is given that a target has no use for."""
    for name, value in given.items():
        if value:
            raise SettingError(f"--{name}: {value!r} has no effect with --for {target}")
