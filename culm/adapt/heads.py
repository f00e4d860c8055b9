"""Replace the output head of a built model."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.adapt.lora import plain
from culm.model.init import generator
from culm.model.transformer import Transformer


@torch.no_grad()
def with_scalar_head(model: Transformer, seed: int, scores: int = 1) -> None:
    """Replace the output head by `Linear(width, scores)`, in place; its weights are trainable.

    Heads of multi-token prediction are removed.
    """
    model.drop_mtp()
    model.config = model.config.model_copy(
        update={"head": "scalar", "scores": scores, "tied": False}
    )
    model.head = plain(scalar_weight(model.config.width, seed, scores).to(model.device), None)


def scalar_weight(width: int, seed: int, scores: int = 1) -> Tensor:
    """(scores, width), normal with std 1 / sqrt(width + 1), as in InstructGPT's reward models
    (arXiv 2203.02155); depends on the seed alone.
    """
    weight = torch.empty(scores, width)
    return weight.normal_(0.0, (width + 1) ** -0.5, generator=generator(seed, "head.scalar"))
