"""Quantised linear layers: packed weights of few bits, dequantised when needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from culm.model.linear import GroupedLinear, Linear

FEW = 16  # rows of x up to which the packed kernels are faster than dequantising the weights


class QuantizedLinear(nn.Module, ABC):
    """x: (..., inputs) -> (..., outputs) with weights of few bits.

    The packed kernels of torch serve few rows in bf16 on a CPU, which is decoding: there the time
    goes into reading the weights. Elsewhere (long prompts, fp32, other devices) they are slower by
    an order of magnitude or missing, and a dense matmul is used. Weights are frozen; the gradient
    reaches x, which is all that an adapter on top of the layer needs.
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
        """Settings of the quantiser that builds this kind of layer."""

    @property
    def weight_bytes(self) -> int:
        """Bytes stored for the weights, scales included."""
        return sum(t.nbytes for name, t in self.state_dict().items() if name != "bias")

    def prepare(self) -> None:
        """Find out whether a packed kernel serves this layer, once the buffers are filled."""

    def decode(self, x: Tensor) -> Tensor:
        """x W^T by the packed kernel, which exists if `packed`; x: (N, inputs)."""
        raise NotImplementedError

    @abstractmethod
    def dequantize(self) -> Tensor:
        """The weights, (outputs, inputs) fp32."""

    def matrix(self) -> Tensor:
        """The weights, under the name that every linear layer has for them."""
        return self.dequantize()

    def dense(self, x: Tensor) -> Tensor:
        """x W^T with weights dequantised to the dtype of x; x: (N, inputs)."""
        return x @ self.dequantize().to(x.dtype).t()

    def matmul(self, x: Tensor) -> Tensor:
        """x W^T by the faster way; x: (N, inputs)."""
        decoding = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[0] <= FEW
        return self.decode(x) if self.packed and decoding else self.dense(x)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        if torch.is_grad_enabled() and x.requires_grad:
            out = _FrozenMatmul.apply(flat, self)
        else:
            out = self.matmul(flat)
        out = out.unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _FrozenMatmul(torch.autograd.Function):
    """x W^T whose backward dequantises the weights again instead of storing them."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.matmul(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0] @ ctx.layer.dequantize().to(grads[0].dtype), None


class QuantizedGrouped(nn.Module):
    """x: (M, inputs), sorted by expert -> (M, outputs), as `culm.model.linear.GroupedLinear`.

    Each expert is a quantised layer; only experts that have rows are computed. Each chooses between
    packed kernel and dense matmul by its number of rows. bias: (experts, outputs).
    """

    def __init__(self, each: Sequence[QuantizedLinear], bias: Tensor | None) -> None:
        super().__init__()
        self.each = nn.ModuleList(each)
        self.out_features = each[0].out_features
        self.register_buffer("bias", bias)
        self.bias: Tensor | None

    @property
    def layers(self) -> list[QuantizedLinear]:
        return cast("list[QuantizedLinear]", list(self.each))

    @property
    def settings(self) -> dict[str, str | int]:
        """Settings of the quantiser that builds this kind of layer."""
        return self.layers[0].settings

    def dequantize(self) -> Tensor:
        """The weights, (experts, outputs, inputs) fp32."""
        return torch.stack([layer.dequantize() for layer in self.layers])

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """ends: (experts,) int32, the row after the last one of each expert."""
        parts, start = [x.new_empty(0, self.out_features)], 0
        for number, end in enumerate(ends.tolist()):
            if end > start:
                part = self.each[number](x[start:end])
                parts.append(part if self.bias is None else part + self.bias[number].to(x.dtype))
            start = end
        return torch.cat(parts)


def expert(layer: GroupedLinear, number: int) -> Linear:
    """The weights of one expert as a linear layer, without its bias and without a copy."""
    with torch.device("meta"):
        single = Linear(layer.in_features, layer.out_features)
    single.weight = nn.Parameter(layer.weight[number].detach(), requires_grad=False)
    return single


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear | QuantizedGrouped]:
    """The quantised layers by name; all experts of a layer are one of them."""
    found: dict[str, QuantizedLinear | QuantizedGrouped] = {}
    last = ""
    for name, module in model.named_modules():
        within = last and name.startswith(f"{last}.")
        if isinstance(module, QuantizedLinear | QuantizedGrouped) and not within:
            found[name], last = module, name
    return found


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer is quantised, so that the model cannot be trained in full."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())
