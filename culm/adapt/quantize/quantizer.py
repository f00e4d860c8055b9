"""Quantisers: settings that build quantised layers, and rounding to nearest with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from culm.adapt.quantize.linear import QuantizedGrouped, QuantizedLinear, expert
from culm.adapt.replace import Patterns, linears, note_untied, replace
from culm.config import Config
from culm.dtype import NOT_FINITE, is_finite
from culm.model.linear import GroupedLinear, Linear
from culm.model.precision import full_precision
from culm.model.transformer import Transformer


class LinearQuantizer(Config, ABC):
    """Settings of a kind of quantised layer; `settings` of the layer are its own fields.

    targets: patterns of linear layers.
    """

    kind: str
    targets: Patterns = ("blocks.*",)

    @abstractmethod
    def build(self, inputs: int, outputs: int, bias: bool) -> QuantizedLinear:
        """An empty layer, to be filled from a file."""

    @abstractmethod
    def round(self, linear: Linear) -> QuantizedLinear:
        """The nearest quantised layer."""

    def rounds(self, layer: Linear | GroupedLinear) -> QuantizedLinear | QuantizedGrouped:
        """The nearest quantised layer; for experts, one each."""
        if isinstance(layer, Linear):
            return self.round(layer)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        each = [self.round(expert(layer, number)) for number in range(layer.experts)]
        return QuantizedGrouped(each, bias)

    def empty(self, layer: Linear | GroupedLinear) -> QuantizedLinear | QuantizedGrouped:
        """The layer that replaces this one, to be filled from a file."""
        inputs, outputs, biased = layer.in_features, layer.out_features, layer.bias is not None
        if isinstance(layer, Linear):
            return self.build(inputs, outputs, biased)
        each = [self.build(inputs, outputs, False) for _ in range(layer.experts)]
        return QuantizedGrouped(each, torch.zeros(layer.experts, outputs) if biased else None)

    def divides(self, name: str, linear: Linear | GroupedLinear) -> None:
        """Refuse a layer whose inputs do not fill complete groups.

        Raises:
            ValueError: naming the setting.
        """

    def apply(self, model: Transformer) -> int:
        """Round the targets to nearest, in place; gives their number. A tied head is untied."""
        return round_to_nearest(model, assigned(model, [self]))


class TrainableQuantizer(LinearQuantizer, ABC):
    """A quantiser for which weights can be trained (`culm.adapt.quantize.qat`)."""

    @abstractmethod
    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded weights (outputs, inputs) in fp32, and which of them are within the range."""

    def read(self, x: Tensor) -> Tensor:
        """x: (..., inputs) as its layers read it; most read it unchanged."""
        return x


def assigned(
    model: Transformer,
    quantizers: Sequence[LinearQuantizer],
    kinds: tuple[type[nn.Module], ...] = (Linear, GroupedLinear),
) -> dict[str, LinearQuantizer]:
    """The quantiser of each layer of these kinds: the first whose targets name it. None for layers
    of parts that compute in fp32 (`culm.model.precision`).

    Raises:
        ValueError: a pattern names no layer, a quantiser gets no layer, or a layer cannot be
            quantised.
    """
    found: dict[str, LinearQuantizer] = {}
    kept = full_precision(model)
    for quantizer in quantizers:
        match, before = linears(model, quantizer.targets, *kinds), len(found)
        for name, layer in model.named_modules():
            taken = name in found or name in kept or _is_scalar_head(model, name)
            if match(name, layer) and not taken:
                assert isinstance(layer, Linear | GroupedLinear)
                quantizer.divides(name, layer)
                if not (layer.weight.is_meta or is_finite(layer.weight)):
                    raise ValueError(f"model: {name} {NOT_FINITE}")
                found[name] = quantizer
        if len(found) == before:
            raise ValueError(
                f"targets: no layer is left for {quantizer.kind}; put it before the other "
                "quantisers, or give it other targets (a scalar head is never quantised)"
            )
    return found


def _is_scalar_head(model: Transformer, name: str) -> bool:
    """Whether this is a scalar head, which is too small to quantise and decides every score."""
    return name == "head" and model.config.head == "scalar"


def round_to_nearest(model: Transformer, layers: Mapping[str, LinearQuantizer]) -> int:
    """Round these layers, in place; gives their number. A tied head is untied."""
    count = replace(
        model,
        lambda name, _: name in layers,
        lambda name, layer: layers[name].rounds(layer),  # type: ignore[arg-type]
    )
    note_untied(model)
    return count


def undivided(setting: str, size: int, name: str, linear: Linear | GroupedLinear) -> ValueError:
    """The error for groups of this size that do not fill the inputs of a layer."""
    fitting = [str(s) for s in (32, 64, 128) if linear.in_features % s == 0]
    remedy = f"use {' or '.join(fitting)}, or" if fitting else "use int8 there, or"
    inputs = f"the {linear.in_features} inputs of {name}"
    return ValueError(f"{setting}: {size} does not divide {inputs}; {remedy} targets without it")
