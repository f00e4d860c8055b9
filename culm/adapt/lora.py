"""Low-rank adapters (arXiv 2106.09685) beside frozen linear layers.

x ---+---- base (frozen) ----(+)---> y = W x + scale * B A x
     |                        |
     +---- A ---- B * scale --+      A: (rank, inputs), B: (outputs, rank) from zero
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.replace import Patterns, linears, note_untied, replace
from culm.config import Config
from culm.model.init import generator
from culm.model.linear import Linear
from culm.model.transformer import Transformer


class LoRA(Config):
    """targets: patterns of linear layers, such as `blocks.*.attention.{q,v}`; all of the blocks.

    The product is scaled by alpha / rank, or with rslora by alpha / sqrt(rank) (arXiv 2312.03732).
    """

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Patterns = ("blocks.*",)
    rslora: bool = False

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def apply(self, model: Transformer, seed: int) -> int:
        """Freeze the model and put adapters beside the targets; gives how many.

        A is drawn by name from the seed, so it is the same for every layout. The targets may be
        quantised already (QLoRA, arXiv 2305.14314).
        """
        match = linears(model, self.targets, Linear, QuantizedLinear)
        model.requires_grad_(False)
        return replace(model, match, lambda name, base: self._beside(name, base, seed))

    def _beside(self, name: str, base: nn.Module, seed: int) -> LoRALinear:
        assert isinstance(base, Linear | QuantizedLinear)
        adapted = LoRALinear(base, self.rank, self.scale, self.dropout)
        if adapted.a.device.type != "meta":
            bound = (
                adapted.a.shape[1] ** -0.5
            )  # Kaiming-uniform with a = sqrt(5), as the paper's code
            drawn = torch.empty(adapted.a.shape)
            drawn.uniform_(-bound, bound, generator=generator(seed, f"{name}.a"))
            adapted.a.data.copy_(drawn)
        return adapted


class LoRALinear(nn.Module):
    """x: (..., inputs) -> (..., outputs); only `a` and `b` are trained."""

    def __init__(
        self, base: Linear | QuantizedLinear, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        outputs, inputs = base.out_features, base.in_features
        self.base, self.scale, self.dropout = base, scale, dropout
        self.enabled = True
        self.a = nn.Parameter(torch.zeros(rank, inputs, device=base.weight.device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        narrow = F.linear(F.dropout(x, self.dropout, self.training), self.a.to(x.dtype))
        return self.base(x) + F.linear(narrow, self.b.to(x.dtype)) * self.scale

    def merged(self) -> Linear:
        """One plain layer W + scale * B A, added in fp32; a quantised base is multiplied out."""
        base = self.base
        weight = base.dequantize() if isinstance(base, QuantizedLinear) else base.weight.detach()
        dtype = weight.dtype
        product = self.b.detach().float() @ self.a.detach().float()
        return plain((weight.float() + self.scale * product).to(dtype), base.bias)


def plain(weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear layer around weight: (outputs, inputs) and bias: (outputs,)."""
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def merge(model: Transformer) -> int:
    """Fold every adapter into its layer, in place, and let all weights be trained again.

    A head that shared the embedding's weights has its own afterwards: the embedding is not adapted.
    """
    count = replace(model, lambda _, m: isinstance(m, LoRALinear), lambda _, m: m.merged())  # type: ignore[operator]
    model.requires_grad_(True)
    note_untied(model)
    return count


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer has an adapter beside it."""
    return any(isinstance(module, LoRALinear) for module in model.modules())


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The model without its adapters, for the duration: the reference of a preference loss."""
    adapters = [module for module in model.modules() if isinstance(module, LoRALinear)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True
