"""Initial weights: drawn per parameter name from the seed, so the same for every layout.

Normal with standard deviation 0.02; projections into the residual stream are divided by
sqrt(2 * layers) as in GPT-2. Norms change nothing, biases are zero.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from culm.model.linear import GroupedLinear, Linear
from culm.model.norm import Norm
from culm.model.rope import Rotation

STD = 0.02


class Fresh(ABC):
    """A module with tensors of its own that begin in its own way."""

    @abstractmethod
    def reset(self, drawn: Callable[[str], torch.Generator]) -> None:
        """Fill them in place; drawn: gives the generator of the tensor of a name."""


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the purpose alone, not on call order."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def initialize(model: nn.Module, seed: int, layers: int) -> None:
    """Fill every parameter and buffer of `model` in place."""
    for name, module in model.named_modules():
        if isinstance(module, Norm | Rotation):
            module.reset()
        elif isinstance(module, Fresh):
            module.reset(partial(_drawn, seed, name))
        elif isinstance(module, Linear | GroupedLinear | nn.Embedding):
            residual = not isinstance(module, nn.Embedding) and module.residual
            std = STD / (2 * layers) ** 0.5 if residual else STD
            drawn = torch.empty(module.weight.shape)
            drawn.normal_(0.0, std, generator=_drawn(seed, name, "weight"))
            module.weight.copy_(drawn)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                module.bias.zero_()
        elif own := [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            kind = type(module).__name__
            raise TypeError(f"{name}: nothing here says how the {len(own)} tensors of {kind} begin")


def _drawn(seed: int, module: str, name: str) -> torch.Generator:
    return generator(seed, f"{module}.{name}")
