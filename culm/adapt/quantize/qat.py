"""Training with weights that are rounded as they will be: quantisation-aware training.

    forward    y = x rounded(W)^T, anew from W at every call
    backward   dL/dW = dL/d rounded(W) where W lies within the range, else 0

so the weights that are kept learn what rounding does to them (straight-through, arXiv 1308.3432).
Scales are recomputed from the weights, not learned. `convert` rounds once more and keeps the codes.
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
    """A linear layer that multiplies with its weights, and reads its input, as if quantised.

    Weight and bias are the very parameters of the layer in whose place it is put, under their
    names: optimizers, checkpoints and layouts see no difference.
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
    """Exactly `rounded`, whose gradient goes to the source; where not inside to nothing."""
    passed = rounded + (source - source.detach())  # adds zeros
    return passed if inside is None else torch.where(inside, passed, rounded)


def fake_quantize(model: Transformer, quantizers: Sequence[TrainableQuantizer]) -> int:
    """Let the quantisers' targets be trained as what they will be; gives how many.

    The weights of experts stay as they are.

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
    """Put quantised layers in the place of those that were trained as such; gives how many.

    Outputs stay the same up to the rounding of sums; where activations are rounded too, one that
    lies between two steps may fall the other way. A tied head is untied by it.
    """

    def made(name: str, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, FakeQuantizedLinear)
        return layer.quantizer.round(layer)

    count = replace(model, lambda _, module: isinstance(module, FakeQuantizedLinear), made)
    note_untied(model)
    return count
