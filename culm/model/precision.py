"""Parts of a model whose weights stay as they are when the model gets another dtype."""

from __future__ import annotations

from torch import nn


class FullPrecision(nn.Module):
    """A module that decides or samples in fp32: with rounded weights it would decide otherwise than
    in training. Its weights are neither cast nor quantised with those of the model around it.
    """


def full_precision(model: nn.Module) -> set[str]:
    """The names of all modules and parameters within such parts."""
    found: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, FullPrecision):
            found |= {inner for inner, _ in module.named_modules(prefix=name)}
            found |= {inner for inner, _ in module.named_parameters(prefix=name)}
    return found
