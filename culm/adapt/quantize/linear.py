"""What every quantised linear layer is: packed weights that are multiplied out when needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from culm.adapt.quantize.grouped import QuantizedGrouped, expert
from culm.adapt.replace import Patterns, linears, note_untied, replace
from culm.config import Config
from culm.model.linear import GroupedLinear, Linear
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

    def matrix(self) -> Tensor:
        """The same, as every linear layer has it."""
        return self.dequantize()

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

    def rounds(self, layer: Linear | GroupedLinear) -> QuantizedLinear | QuantizedGrouped:
        """The nearest quantised layer, or one for each expert."""
        if isinstance(layer, Linear):
            return self.round(layer)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        each = [self.round(expert(layer, number)) for number in range(layer.experts)]
        return QuantizedGrouped(each, bias)

    def empty(self, layer: Linear | GroupedLinear) -> QuantizedLinear | QuantizedGrouped:
        """What takes the place of a layer, to be loaded into."""
        inputs, outputs, biased = layer.in_features, layer.out_features, layer.bias is not None
        if isinstance(layer, Linear):
            return self.build(inputs, outputs, biased)
        each = [self.build(inputs, outputs, False) for _ in range(layer.experts)]
        return QuantizedGrouped(each, torch.zeros(layer.experts, outputs) if biased else None)

    def divides(self, name: str, linear: Linear | GroupedLinear) -> None:
        """Refuse a layer whose inputs do not fill whole groups.

        Raises:
            ValueError: naming the setting.
        """

    def apply(self, model: Transformer) -> int:
        """Round the targets to nearest, in place; gives how many. A tied head is untied by it."""
        return round_to_nearest(model, assigned(model, [self]))


class TrainableQuantizer(LinearQuantizer, ABC):
    """One whose rounding weights can be trained for (`culm.adapt.quantize.qat`)."""

    @abstractmethod
    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What weights (outputs, inputs) become, fp32, and which of them lie within the range."""

    def read(self, x: Tensor) -> Tensor:
        """x: (..., inputs) as its layers read it; most take it as it is."""
        return x


def assigned(
    model: Transformer,
    quantizers: Sequence[LinearQuantizer],
    kinds: tuple[type[nn.Module], ...] = (Linear, GroupedLinear),
) -> dict[str, LinearQuantizer]:
    """Which quantiser takes which layer of these kinds: the first whose targets name it.

    Raises:
        ValueError: a pattern names no layer, a quantiser is left without any, or a layer cannot be
            quantised.
    """
    found: dict[str, LinearQuantizer] = {}
    for quantizer in quantizers:
        match, before = linears(model, quantizer.targets, *kinds), len(found)
        for name, layer in model.named_modules():
            if match(name, layer) and name not in found:
                assert isinstance(layer, Linear | GroupedLinear)
                quantizer.divides(name, layer)
                if not (layer.weight.is_meta or layer.weight.isfinite().all()):
                    raise ValueError(f"model: {name} holds NaN or infinity; take an earlier one")
                found[name] = quantizer
        if len(found) == before:
            raise ValueError(
                f"targets: those before {quantizer.kind} take all of its layers; put it first, or "
                "give it other targets"
            )
    return found


def round_to_nearest(model: Transformer, layers: Mapping[str, LinearQuantizer]) -> int:
    """Round these layers, in place; gives how many. A tied head is untied by it."""
    count = replace(
        model,
        lambda name, _: name in layers,
        lambda name, layer: layers[name].rounds(layer),  # type: ignore[arg-type]
    )
    note_untied(model)
    return count


def told_undivided(setting: str, size: int, name: str, linear: Linear | GroupedLinear) -> str:
    """The message where groups of this size do not fill the inputs of a layer."""
    fitting = [str(s) for s in (32, 64, 128) if linear.in_features % s == 0]
    remedy = f"take {' or '.join(fitting)}, or" if fitting else "take int8 there, or"
    inputs = f"the {linear.in_features} inputs of {name}"
    return f"{setting}: {size} does not divide {inputs}; {remedy} targets without it"


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear | QuantizedGrouped]:
    """Those that took the place of a layer, by its name; layers of experts as one."""
    found: dict[str, QuantizedLinear | QuantizedGrouped] = {}
    last = ""
    for name, module in model.named_modules():
        within = last and name.startswith(f"{last}.")
        if isinstance(module, QuantizedLinear | QuantizedGrouped) and not within:
            found[name], last = module, name
    return found


def is_quantized(model: nn.Module) -> bool:
    """Whether some of its weights have few bits, and so cannot be trained."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())
