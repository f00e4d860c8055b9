"""A tiny model for tests of the engine."""

import torch

from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig


def tiny_model(scale: float = 8, seed: int = 3, **settings) -> Transformer:
    """scale: of its matrices, so large that its choices are clear."""
    torch.set_num_threads(1)
    usual = {
        "vocabulary": 61, "width": 32, "layers": 2, "context": 96, "tied": False,
        "attention": GQA(heads=2),
    }  # fmt: skip
    model = TransformerConfig(**{**usual, **settings}).build(seed=seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(scale)
    return model
