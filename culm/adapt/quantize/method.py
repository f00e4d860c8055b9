"""How codes are found: rounding to nearest, or with the help of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.linear import LinearQuantizer
from culm.adapt.replace import note_untied
from culm.config import Config, SettingError
from culm.model.linear import Linear
from culm.model.transformer import Transformer


class Method(Config, ABC):
    """calibrated: whether it needs text."""

    kind: str
    calibrated: ClassVar[bool]

    @abstractmethod
    def apply(self, model: Transformer, quantizer: LinearQuantizer, tokens: Tensor | None) -> int:
        """Quantise the quantiser's targets in place; gives how many.

        tokens: (N, T) rows of text to calibrate on, each one document.

        Raises:
            SettingError: the method and the quantiser do not go together, or text is missing.
        """


class RTN(Method):
    """Round to nearest; knows the weights alone."""

    kind: Literal["rtn"] = "rtn"
    calibrated = False

    def apply(self, model: Transformer, quantizer: LinearQuantizer, tokens: Tensor | None) -> int:
        return quantizer.apply(model)


class Calibrated(Method, ABC):
    """int4 codes that keep the outputs on text, found block by block.

    Layers outside of the blocks, and those that no token reached, are rounded to nearest.
    """

    calibrated = True

    @abstractmethod
    def quantize(
        self, calibration: Calibration, block: nn.Module, stages: list[list[str]], group: int
    ) -> None:
        """Put Int4Linear layers into a block; those of a stage read the same input."""

    @torch.no_grad()
    def apply(self, model: Transformer, quantizer: LinearQuantizer, tokens: Tensor | None) -> int:
        if not isinstance(quantizer, Int4):
            kinds = f"{self.kind} finds codes of int4, not of {quantizer.kind}"
            raise SettingError(f"method: {kinds}; take method=rtn")
        left = set(_checked(quantizer.chosen(model), tokens, self.kind))
        count = len(left)
        assert tokens is not None
        calibration = Calibration(model, tokens)
        for prefix, block in calibration:
            stages = calibration.trace(block).stages(
                name.removeprefix(f"{prefix}.") for name in left if name.startswith(f"{prefix}.")
            )
            self.quantize(calibration, block, stages, quantizer.group)
            left -= {f"{prefix}.{name}" for stage in stages for name in stage}
        for name in left:
            model.set_submodule(name, quantizer.round(plain_linear(model, name)))
        note_untied(model)
        return count


def plain_linear(parent: nn.Module, name: str) -> Linear:
    """The layer of that name, which is not quantised yet."""
    layer = parent.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer


def _checked(layers: dict[str, Linear], tokens: Tensor | None, kind: str) -> dict[str, Linear]:
    if tokens is None:
        raise SettingError(f"calibrate: {kind} needs text; name a file, or take method=rtn")
    needed = max(layer.in_features for layer in layers.values())
    if tokens.numel() < needed:
        # Fewer tokens than inputs span only some of the directions that the inputs can take.
        raise SettingError(
            f"calibrate: {tokens.numel():,} tokens to calibrate on are fewer than the {needed:,} "
            "inputs of the widest layer; give more text"
        )
    return layers
