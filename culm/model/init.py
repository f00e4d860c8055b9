"""Initial weights: a function of seed and parameter name, so the same for every layout.

Matrices are normal around zero, with a standard deviation that the settings below give. Norms start
without effect, and biases at zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import nn

from culm.config import Config, one_of
from culm.model.linear import GroupedLinear, Linear
from culm.model.norm import Norm
from culm.model.rope import Rotation
from culm.seed import keyed_digest

Matrix = Linear | GroupedLinear | nn.Embedding


class GPT2(Config):
    """std: of every matrix; projections into the residual stream have std / sqrt(2 * layers), so
    that the sum of all layers does not grow with their number (GPT-2).
    """

    kind: Literal["gpt2"] = "gpt2"
    std: PositiveFloat = 0.02

    def std_of(self, name: str, matrix: Matrix, layers: int) -> float:
        """The initial standard deviation of a matrix."""
        return self.std / (2 * layers) ** 0.5 if _residual(matrix) else self.std


class Llama(Config):
    """std: of every matrix, at any depth (Llama, as published for Hugging Face)."""

    kind: Literal["llama"] = "llama"
    std: PositiveFloat = 0.02

    def std_of(self, name: str, matrix: Matrix, layers: int) -> float:
        """The initial standard deviation of a matrix."""
        return self.std


class Zero(Config):
    """Projections into the residual stream and the head start at zero (as nanochat): at first
    every layer passes its input on, and all tokens are equally likely.

    std: of the other matrices. embedding: of the embedding.
    """

    kind: Literal["zero"] = "zero"
    std: PositiveFloat = 0.02
    embedding: PositiveFloat = 1.0

    def std_of(self, name: str, matrix: Matrix, layers: int) -> float:
        """The initial standard deviation of a matrix."""
        if isinstance(matrix, nn.Embedding):
            return self.embedding
        return 0.0 if _residual(matrix) or name == "head" else self.std


def _residual(matrix: Matrix) -> bool:
    return not isinstance(matrix, nn.Embedding) and matrix.residual


InitConfig = GPT2 | Llama | Zero
Initialization = one_of(InitConfig)


class CustomInit(ABC):
    """A module that initialises its own tensors."""

    @abstractmethod
    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        """Fill them in place.

        generator: the random generator of a tensor, by its name. std: of matrices.
        """


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on seed and purpose alone, not on the order of calls."""
    return torch.Generator().manual_seed(keyed_digest(seed, purpose))


@torch.no_grad()
def initialize(model: nn.Module, seed: int, layers: int, config: InitConfig = GPT2()) -> None:
    """Fill every parameter and buffer of `model` in place."""
    for name, module in model.named_modules():
        if isinstance(module, Norm | Rotation):
            module.reset()
        elif isinstance(module, CustomInit):
            module.init_weights(partial(_generator, seed, name), config.std)
        elif isinstance(module, Matrix):
            std = config.std_of(name, module, layers)
            weight = torch.empty(module.weight.shape)
            weight.normal_(0.0, std, generator=_generator(seed, name, "weight"))
            module.weight.copy_(weight)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                module.bias.zero_()
        elif own := [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            kind = type(module).__name__
            raise TypeError(f"{name}: no rule initialises the {len(own)} tensors of {kind}")


def _generator(seed: int, module: str, name: str) -> torch.Generator:
    return generator(seed, f"{module}.{name}")
