"""Parts of a model whose weights are in fp32, whatever dtype the model gets."""

from __future__ import annotations

from torch import nn


class FullPrecision(nn.Module):
    """A module that computes in fp32 because rounded weights would cost much in it: a token or a
    patch chosen otherwise than in training, or an error shared by all that a norm scales. Its
    weights are neither cast nor quantised with those of the model around it.
    """


def full_precision(model: nn.Module) -> set[str]:
    """The names of all modules and parameters within such parts."""
    found: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, FullPrecision):
            found |= {inner for inner, _ in module.named_modules(prefix=name)}
            found |= {inner for inner, _ in module.named_parameters(prefix=name)}
    return found
