"""Which parameters an optimizer treats how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from culm.adapt.lora import adapters_of
from culm.model.linear import Linear

Named = tuple[str, nn.Parameter]


def trainable(module: nn.Module) -> list[Named]:
    """Parameters that learn, in a fixed order, shared ones once."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def groups_of(
    module: nn.Module, named: Iterable[Named], rate: float, weight_decay: float
) -> list[dict]:
    """Parameters of `module` that share a rate and a weight decay.

    Only matrices decay; norms, biases (those of experts too) and other vectors are left alone. B
    of an adapter has a multiple of the rate, if the adapter says so (LoRA+, arXiv 2402.12354).
    """
    multiples = {m.b: m.b_rate for m in adapters_of(module).values()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        matrix = parameter.ndim >= 2 and not name.endswith("bias")
        decay = weight_decay if matrix else 0.0
        key = (rate * multiples.get(parameter, 1.0), decay)
        groups.setdefault(key, []).append(parameter)
    return [{"params": held, "lr": r, "weight_decay": d} for (r, d), held in groups.items()]


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Weights of the linear layers inside blocks: not embeddings, not output heads."""
    tables = {m.weight for m in module.modules() if isinstance(m, nn.Embedding)}
    found: set[nn.Parameter] = set()
    for name, part in module.named_modules():
        inside = ".blocks." in f".{name}."
        if isinstance(part, Linear) and inside and part.weight not in tables:
            found.add(cast(nn.Parameter, part.weight))
    return found
