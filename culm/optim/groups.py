"""Which parameters an optimizer treats how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from culm.model.linear import Linear

Named = tuple[str, nn.Parameter]


def trainable(module: nn.Module) -> list[Named]:
    """Parameters that learn, in a fixed order, shared ones once."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def decay_groups(named: Iterable[Named], weight_decay: float) -> list[dict]:
    """Weight decay on matrices only; norms, biases and other vectors are left alone."""
    named = list(named)
    matrices = [p for _, p in named if p.ndim >= 2]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Weights of the linear layers inside blocks: not embeddings, not output heads."""
    tables = {m.weight for m in module.modules() if isinstance(m, nn.Embedding)}
    found: set[nn.Parameter] = set()
    for name, part in module.named_modules():
        inside = ".blocks." in f".{name}."
        if isinstance(part, Linear) and inside and part.weight not in tables:
            found.add(cast(nn.Parameter, part.weight))
    return found
