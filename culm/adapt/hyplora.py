"""Low-rank adapters in hyperbolic space (HypLoRA, arXiv 2410.04010) on frozen linear layers.

    x --> exp at the origin --> space part s --> B A s, lifted --> log at the origin --> added

With c for the curvature -c, and the ratios of `culm.hyperbolic.ratios`:

    s = x sinh(sqrt(c)|x|) / (sqrt(c)|x|),   z = B A s,   added: z arsinh(sqrt(c)|z|) / (sqrt(c)|z|)

At c = 0 it is LoRA. Elsewhere the change is not linear in x: long inputs count exponentially more,
and long results logarithmically less. So it cannot be merged into W, and a model keeps its adapters
in its own folder. Tangent vectors are cut at LONGEST, as sinh overflows.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.replace import Patterns, linears, replace
from culm.config import Config
from culm.dtensor import local_shard
from culm.hyperbolic.ratios import arsinh_ratio, sinh_ratio, squared
from culm.model.init import generator
from culm.model.linear import Linear
from culm.model.transformer import Transformer

LONGEST = 8.0  # sqrt(c) |x|: sinh of it is 1,490


class HypLoRA(Config):
    """targets: patterns of linear layers, such as `blocks.*.attention.{q,v}`; default: all layers
    of the blocks. rank: inner width of an adapter. alpha: what it adds is scaled by alpha / rank.

    curvature: c, where the curvature of the space is -c.
    """

    kind: Literal["hyplora"] = "hyplora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    targets: Patterns = ("blocks.*",)
    curvature: PositiveFloat = 0.01

    def apply(self, model: Transformer, seed: int) -> int:
        """Freeze the model and add adapters to the targets; returns their number.

        Raises:
            ValueError: a pattern names no layer.
        """
        match = linears(model, self.targets, Linear, QuantizedLinear)
        model.requires_grad_(False)
        return replace(model, match, lambda name, base: self._initialised(name, base, seed))

    def _initialised(self, name: str, base: nn.Module, seed: int) -> HypLoRALinear:
        assert isinstance(base, Linear | QuantizedLinear)
        adapted = HypLoRALinear(base, self)
        if adapted.a.device.type != "meta":
            bound = adapted.a.shape[1] ** -0.5
            weight = torch.empty(adapted.a.shape)
            weight.uniform_(-bound, bound, generator=generator(seed, f"{name}.a"))
            adapted.a.data.copy_(weight)
        return adapted


class HypLoRALinear(nn.Module):
    """x: (..., inputs) -> (..., outputs); only `a` and `b` are trained. The maps are in fp32."""

    def __init__(self, base: Linear | QuantizedLinear, settings: HypLoRA) -> None:
        super().__init__()
        self.base, self.settings = base, settings
        device = base.weight.device
        self.a = nn.Parameter(torch.zeros(settings.rank, base.in_features, device=device))
        self.b = nn.Parameter(torch.zeros(base.out_features, settings.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        c, scale = self.settings.curvature, self.settings.alpha / self.settings.rank
        square = c * squared(x.float())
        space = x.float() * _limited(square)
        a, b = local_shard(self.a).float(), local_shard(self.b).float()
        found = F.linear(F.linear(space, a), b)
        added = found * arsinh_ratio(c * squared(found)) * scale
        return self.base(x) + added.to(x.dtype)


def _limited(square: Tensor) -> Tensor:
    """sinh(r) / r for z = r^2, as that of a vector that was cut at LONGEST beyond it."""
    cut = square.clamp(max=LONGEST**2)
    return sinh_ratio(cut) * (cut / square.clamp(min=1e-30)).sqrt().where(square > cut, 1.0)


def hyperbolic_adapters(model: nn.Module) -> dict[str, HypLoRALinear]:
    """The layers with such an adapter by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, HypLoRALinear)}
