"""What a run reads besides its data: models and a tokenizer, each by a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from culm import log
from culm.config import SettingError
from culm.convert import hf, native, peft
from culm.convert.load import HUB_ID, download, find_model
from culm.convert.peft.settings import base_of
from culm.files import sha256
from culm.parallel.ranks import Ranks
from culm.tokenizer.tokenizer import Tokenizer

SHOWN = 12  # digits of a digest in a message
TOKENIZER = "tokenizer"
WEIGHTS = (".safetensors", ".bin", ".gguf")
SETTINGS = ("model.json", "config.json", "adapter_config.json")


def digest_of(model: str, revision: str | None = None) -> str:
    """SHA-256 of the files that hold a model's weights and settings; of an adapter, with its base.

    Of files and not of tensors: those of a merged adapter differ in rounding between machines.

    model: a path or hub id that `culm.convert.load.load_model` can read. revision: on the hub.
    """
    place = find_model(model)
    if not place.exists() and HUB_ID.fullmatch(model):
        place = Path(download(model, revision))
    inside = [place] if place.is_file() else sorted(place.iterdir())
    files = [file for file in inside if file.suffix in WEIGHTS or file.name in SETTINGS]
    parts = [f"{file.name} {sha256(file)}" for file in files]
    if not (native.is_model(place) or hf.is_model(place)) and peft.is_adapter(place):
        parts.append(digest_of(*base_of(place)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of its tokens, its chat template and the ids that end a generation."""
    facts = (tokenizer.fingerprint, tokenizer.template_fingerprint, sorted(tokenizer.stop_ids))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def is_read(model: nn.Module) -> bool:
    """Whether a run still needs the weights that a model came with: some of them are not trained,
    so no checkpoint holds them.
    """
    return any(not parameter.requires_grad for parameter in model.parameters())


def check_ranks(reads: Mapping[str, str], ranks: Ranks) -> None:
    """Every rank takes part.

    Raises:
        SettingError: a rank reads another model than the others.
    """
    for rank, found in enumerate(ranks.everyone(dict(reads))):
        for name, digest in found.items():
            if reads.get(name) != digest:
                raise SettingError(
                    f"{name}: rank {rank} reads other contents than rank {ranks.rank} (SHA-256 "
                    f"{digest[:SHOWN]} and {reads.get(name, 'none')[:SHOWN]}); give all ranks the "
                    "same files"
                )


def check_unchanged(
    then: Mapping[str, str], now: Mapping[str, str], needed: set[str], folder: object
) -> None:
    """Compare what a run reads with what its checkpoint was trained with.

    needed: those whose contents are not in the checkpoint.

    Raises:
        SettingError: one of these changed.
    """
    for name, digest in now.items():
        was = then.get(name, digest)
        if was == digest:
            continue
        digests = f"SHA-256 {was[:SHOWN]} then, {digest[:SHOWN]} now"
        if name in needed:
            raise SettingError(
                f"{name}: not what {folder} was trained with ({digests}); put that back, or give a "
                "new run another folder=..."
            )
        log.say(f"{name} changed since ({digests}); {folder} goes by its checkpoint alone.")
