"""The small model of bytes by which BLT decides where patches end, read when a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from culm import log
from culm.bytelatent.blt import BLT, BLTBridge
from culm.bytelatent.model import PatchModel
from culm.bytelatent.spacebyte import SpaceByte
from culm.config import SettingError
from culm.convert.load import load_model
from culm.model.transformer import Transformer, TransformerConfig
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer

SAMPLED = 4 << 20  # bytes of text among which rows are chosen
ROWS = 64  # by which the threshold is chosen
PATH = "model.patching.path"
EVERY_WIDTH = "".join(map(chr, range(1, 128))) + "\u00e9\u3042"  # characters of one to three bytes


def model_settings(config: RunConfig) -> TransformerConfig:
    """The settings of the run's new model, with those of the small model that it reads.

    Raises:
        SettingError: the small model is not there, or reads other tokens.
    """
    assert config.model is not None
    model: TransformerConfig = config.model
    if not isinstance(model, BLT) or model.patching.model is not None:
        return model
    if model.patching.path is None:
        raise SettingError(
            f"{PATH}: entropies need a small model of bytes; train one with `culm train bytes "
            "model=entropy folder=FOLDER`, and give its folder"
        )
    small = _small(model.patching.path).config
    patching = model.patching.model_copy(update={"model": small})
    try:
        return BLT(**{**dict(model), "patching": patching})
    except ValueError as error:
        raise SettingError(f"{PATH}: {model.patching.path}: {_reason(error)}") from None


def patcher_path(config: RunConfig) -> str | None:
    """Where a new BLT model reads its small model from."""
    return config.model.patching.path if isinstance(config.model, BLT) else None


def check_bytes(model: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Refuse ids that are no bytes for a model whose patches depend on the values of bytes.

    Raises:
        SettingError: the tokenizer gives other ids.
    """
    if isinstance(model, SpaceByte | BLT) and not _gives_bytes(tokenizer):
        raise SettingError(
            f"tokenizer: model={model.kind} ends patches by the values of bytes, and this "
            "tokenizer gives other ids; use tokenizer.kind=bytes"
        )


def _gives_bytes(tokenizer: Tokenizer) -> bool:
    return tokenizer.encode(EVERY_WIDTH) == list(EVERY_WIDTH.encode())


def read_patcher(model: Transformer, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Give a new BLT model the weights of its small model, and a threshold unless it has one.

    texts: of the run, by which the threshold is chosen.
    """
    if not isinstance(model, PatchModel) or not isinstance(model.bridge, BLTBridge):
        return
    patcher = model.bridge.patcher
    settings = patcher.config
    if settings.path is not None:
        patcher.model.load_state_dict(_small(settings.path).state_dict())
    if settings.threshold is not None:
        return
    size = patcher.fit(_rows(tokenizer, texts, model.config.context))
    log.say(
        f"Patches end where the entropy exceeds {float(patcher.threshold):.3f} nats: "
        f"{size:.2f} bytes each in a sample of the text."
    )


def _small(path: str) -> Transformer:
    try:
        model, tokenizer = load_model(path)
    except SettingError as error:
        raise SettingError(f"{PATH}: {error}") from error
    if type(model.config) is not TransformerConfig:
        raise SettingError(
            f"{PATH}: {path} is a {model.config.kind} model, whose patches would need entropies "
            "too; use a plain Transformer of bytes"
        )
    if not _gives_bytes(tokenizer):
        raise SettingError(f"{PATH}: {path} does not read bytes, but other tokens")
    return model.float()


def _rows(tokenizer: Tokenizer, texts: Iterable[str], context: int) -> Tensor:
    """Up to 64 rows (N, context), evenly spread over the start of the text."""
    ids = list[int]()
    for text in texts:
        ids += tokenizer.encode(text)
        if len(ids) >= SAMPLED:
            break
    count = len(ids) // context
    if not count:
        raise SettingError(
            f"model.patching.threshold: the text has {len(ids)} bytes, less than a row of "
            f"{context}, to choose it by; give it in nats"
        )
    rows = torch.tensor(ids[: count * context]).view(count, context)
    return rows[list(islice(range(0, count, max(1, count // ROWS)), ROWS))]


def _reason(error: ValueError) -> str:
    """The sentence of a validator."""
    lines = [line.strip() for line in str(error).splitlines() if "Value error" in line]
    return lines[0].partition("Value error, ")[2].partition(" [type=")[0] if lines else str(error)
