"""Quantisation-aware training: the forward rounds weights as the quantised model will.

    forward    y = x rounded(W)^T, rounded again in every call
    backward   dL/dW = dL/d rounded(W) where W is within the range, else 0

so the weights adapt to the rounding (straight-through estimator, arXiv 1308.3432). Scales are
recomputed from the weights, not learned. `convert` rounds a last time and stores the codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.quantizer import TrainableQuantizer, assigned
from culm.adapt.quantize.w8a8 import W8A8
from culm.adapt.replace import note_untied, replace
from culm.config import some_of
from culm.model.linear import Linear
from culm.model.transformer import Transformer

QAT = some_of(Int8 | Int4 | W8A8)


class FakeQuantizedLinear(Linear):
    """A linear layer that rounds its weights and its input as if it were quantised.

    Weight and bias are the same parameters as those of the replaced layer, with their names:
    optimizers, checkpoints and layouts see no difference.
    """

    def __init__(self, linear: Linear, quantizer: TrainableQuantizer) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias, self.residual = linear.weight, linear.bias, linear.residual
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = _straight(x, self.quantizer.read(x.detach()), None)
        return F.linear(x, self.matrix().to(x.dtype), bias)

    def matrix(self) -> Tensor:
        values, inside = self.quantizer.rounded(self.weight)
        return _straight(self.weight, values.to(self.weight.dtype), inside)


def _straight(source: Tensor, rounded: Tensor, inside: Tensor | None) -> Tensor:
    """Exactly `rounded`, with its gradient for the source; none where not inside."""
    passed = rounded + (source - source.detach())  # adds zeros
    return passed if inside is None else torch.where(inside, passed, rounded)


def fake_quantize(model: Transformer, quantizers: Sequence[TrainableQuantizer]) -> int:
    """Train the quantisers' targets with rounding; returns their number.

    The weights of experts are not changed.

    Raises:
        ValueError: as `assigned`.
    """
    layers = assigned(model, quantizers, (Linear,))

    def fake(name: str, layer: nn.Module) -> nn.Module:
        quantizer = layers[name]
        assert isinstance(layer, Linear)
        assert isinstance(quantizer, TrainableQuantizer)
        return FakeQuantizedLinear(layer, quantizer)

    return replace(model, lambda name, _: name in layers, fake)


@torch.no_grad()
def convert(model: Transformer) -> int:
    """Replace the layers that were trained with rounding by quantised ones; returns their number.

    Outputs stay the same up to rounding of sums; where activations are rounded too, one halfway
    between two steps may be rounded the other way. A tied head is untied.
    """

    def made(name: str, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, FakeQuantizedLinear)
        return layer.quantizer.round(layer)

    count = replace(model, lambda _, module: isinstance(module, FakeQuantizedLinear), made)
    note_untied(model)
    return count
