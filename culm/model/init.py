"""Initial weights: drawn per parameter name from the seed, so the same for every layout.

Normal with standard deviation 0.02; projections into the residual stream are divided by
sqrt(2 * layers) as in GPT-2. Norm weights are one, biases zero.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from culm.model.linear import Linear
from culm.model.norm import RMSNorm
from culm.model.rope import Rotation

STD = 0.02


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the purpose alone, not on call order."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def initialize(model: nn.Module, seed: int, layers: int) -> None:
    """Fill every parameter and buffer of `model` in place."""
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, Rotation):
            module.reset()
        elif isinstance(module, Linear | nn.Embedding):
            residual = isinstance(module, Linear) and module.residual
            std = STD / (2 * layers) ** 0.5 if residual else STD
            drawn = torch.empty(module.weight.shape)
            drawn.normal_(0.0, std, generator=generator(seed, f"{name}.weight"))
            module.weight.copy_(drawn)
            if isinstance(module, Linear) and module.bias is not None:
                module.bias.zero_()
        elif own := [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            kind = type(module).__name__
            raise TypeError(f"{name}: nothing here says how the {len(own)} tensors of {kind} begin")
