"""What a run reads besides its data: models and a tokenizer, each by a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from culm import log
from culm.config import SettingError
from culm.parallel.ranks import Ranks
from culm.tokenizer.tokenizer import Tokenizer

SHOWN = 12  # digits of a digest in a message
TOKENIZER = "tokenizer"


def digest_of(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and numbers of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
    for rank, found in enumerate(ranks.gather(dict(reads))):
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
