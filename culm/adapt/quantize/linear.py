"""What every quantised linear layer is: packed weights that are multiplied out when needed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from culm.adapt.replace import Patterns, linears, note_untied, replace
from culm.config import Config
from culm.model.linear import Linear
from culm.model.transformer import Transformer

FEW = 16  # rows of x up to which the packed kernels win over multiplying out the weights


class QuantizedLinear(nn.Module, ABC):
    """x: (..., inputs) -> (..., outputs) with weights of few bits.

    The packed kernels of torch are taken for few rows in bf16 on a CPU, which is decoding: there
    reading the weights is all the time. Elsewhere (long prompts, fp32, other devices) they are
    slower by an order of magnitude or missing, and a dense product is taken. Weights are frozen;
    the gradient goes through to x, which is what an adapter beside the layer needs.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.packed = False
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)

    @property
    @abstractmethod
    def settings(self) -> dict[str, str | int]:
        """What its quantiser builds this kind of layer from, as a mapping."""

    @property
    def weight_bytes(self) -> int:
        """What is stored in the place of the weights, scales included."""
        return sum(t.nbytes for name, t in self.state_dict().items() if name != "bias")

    def prepare(self) -> None:
        """After the buffers were filled: find out whether a packed kernel serves this layer."""

    def decode(self, x: Tensor) -> Tensor:
        """The packed kernel's product, where `packed` says that there is one; x: (N, inputs)."""
        raise NotImplementedError

    @abstractmethod
    def dequantize(self) -> Tensor:
        """The weights multiplied out: (outputs, inputs) fp32."""

    def dense(self, x: Tensor) -> Tensor:
        """x W^T through weights in the dtype of x; x: (N, inputs)."""
        return x @ self.dequantize().to(x.dtype).t()

    def product(self, x: Tensor) -> Tensor:
        """x W^T by the faster way; x: (N, inputs)."""
        decoding = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[0] <= FEW
        return self.decode(x) if self.packed and decoding else self.dense(x)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        if torch.is_grad_enabled() and x.requires_grad:
            out = _Product.apply(flat, self)
        else:
            out = self.product(flat)
        out = out.unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """x W^T whose backward multiplies the weights out again instead of keeping them."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0] @ ctx.layer.dequantize().to(grads[0].dtype), None


class LinearQuantizer(Config, ABC):
    """Settings of a kind of quantised layer; `settings` of the layer are its own fields.

    targets: patterns of linear layers.
    """

    kind: str
    targets: Patterns = ("blocks.*",)

    @abstractmethod
    def build(self, inputs: int, outputs: int, bias: bool) -> QuantizedLinear:
        """An empty layer, to be loaded into."""

    @abstractmethod
    def round(self, linear: Linear) -> QuantizedLinear:
        """The nearest quantised layer."""

    def divides(self, name: str, linear: Linear) -> None:
        """Refuse a layer whose inputs do not fill whole groups.

        Raises:
            ValueError: naming the setting.
        """

    def chosen(self, model: Transformer) -> dict[str, Linear]:
        """The targets by name.

        Raises:
            ValueError: a pattern names no layer, or a layer cannot be quantised.
        """
        match = linears(model, self.targets)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear) and match(n, m)}
        for name, layer in layers.items():
            self.divides(name, layer)
        return layers

    def apply(self, model: Transformer) -> int:
        """Round the targets to nearest, in place; gives how many. A tied head is untied by it."""
        names = set(self.chosen(model))  # not the layers: each is let go when it is replaced
        count = replace(model, lambda name, _: name in names, lambda _, m: self.round(m))  # type: ignore[arg-type]
        note_untied(model)
        return count


def is_quantized(model: nn.Module) -> bool:
    """Whether some of its weights have few bits, and so cannot be trained."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())
