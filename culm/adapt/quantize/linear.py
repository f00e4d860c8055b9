"""What every quantised linear layer is: packed weights that are multiplied out when needed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

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

    @abstractmethod
    def prepare(self) -> None:
        """After the buffers were filled: find out whether the packed kernel serves this layer."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """The packed kernel's product; x: (N, inputs) bf16."""

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


def is_quantized(model: nn.Module) -> bool:
    """Whether some of its weights have few bits, and so cannot be trained."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())
