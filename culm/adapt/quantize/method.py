"""Methods to find codes: rounding to nearest, or calibration on text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration
from culm.adapt.quantize.quantizer import LinearQuantizer, assigned, round_to_nearest
from culm.config import Config, SettingError
from culm.model.linear import GroupedLinear, Linear
from culm.model.transformer import Transformer


class Method(Config, ABC):
    """calibrated: whether it needs text."""

    kind: str
    calibrated: ClassVar[bool]

    @abstractmethod
    def apply(
        self, model: Transformer, quantizers: Sequence[LinearQuantizer], tokens: Tensor | None
    ) -> int:
        """Quantise the quantisers' targets in place; returns their number.

        The first quantiser that names a layer takes it.
        tokens: (N, T) text to calibrate on, one document per row.

        Raises:
            ValueError: the method does not support the quantisers, text is missing, or a layer
                cannot be quantised. The model is then unchanged.
        """


class RTN(Method):
    """Round to nearest; reads the weights only."""

    kind: Literal["rtn"] = "rtn"
    calibrated = False

    def apply(
        self, model: Transformer, quantizers: Sequence[LinearQuantizer], tokens: Tensor | None
    ) -> int:
        return round_to_nearest(model, assigned(model, quantizers))


Q = TypeVar("Q", bound=LinearQuantizer)


class Calibrated(Method, ABC, Generic[Q]):
    """Codes that preserve the outputs on text, found block by block.

    codes: the quantisers whose codes it finds; layers: the kinds of layers. Other layers, those
    outside the blocks, and those that no token reached are rounded to nearest.
    """

    calibrated = True
    codes: ClassVar[type[LinearQuantizer]]
    layers: ClassVar[tuple[type[Linear | GroupedLinear], ...]] = (Linear,)

    @abstractmethod
    def quantize(
        self,
        calibration: Calibration,
        block: nn.Module,
        stages: list[list[str]],
        quantizers: dict[str, Q],
    ) -> None:
        """Put quantised layers into a block; layers of a stage have a common input.

        quantizers: by the names in the stages.
        """

    @torch.no_grad()
    def apply(
        self, model: Transformer, quantizers: Sequence[LinearQuantizer], tokens: Tensor | None
    ) -> int:
        left = assigned(model, quantizers)
        count = len(left)
        found = {
            name
            for name, quantizer in left.items()
            if type(quantizer) is self.codes and isinstance(model.get_submodule(name), self.layers)
        }
        if not found:
            kinds = " and ".join(dict.fromkeys(quantizer.kind for quantizer in quantizers))
            codes = self.codes.model_fields["kind"].default
            wrong = f"{self.kind} finds codes of {codes}, not of {kinds}"
            raise SettingError(f"method: {wrong}; use method=rtn")
        rows = _enough([model.get_submodule(name) for name in found], tokens, self.kind)
        calibration = Calibration(model, rows)
        for prefix, block in calibration:
            inside = {n.removeprefix(f"{prefix}."): n for n in found if n.startswith(f"{prefix}.")}
            stages = calibration.trace(block).stages(inside)
            taken = {name: left.pop(inside[name]) for stage in stages for name in stage}
            self.quantize(calibration, block, stages, cast(dict[str, Q], taken))
        if left:
            round_to_nearest(model, left)
        return count


def plain_linear(parent: nn.Module, name: str) -> Linear:
    """The layer of this name, which is not quantised yet."""
    layer = parent.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer


def _enough(layers: Sequence[nn.Module], tokens: Tensor | None, kind: str) -> Tensor:
    if tokens is None:
        raise SettingError(f"calibrate: {kind} needs text; name a file, or use method=rtn")
    needed = max(int(layer.in_features) for layer in layers)  # type: ignore[arg-type]
    if tokens.numel() < needed:
        # Fewer tokens than inputs span only some directions of the input space.
        raise SettingError(
            f"calibrate: {tokens.numel():,} tokens to calibrate on are fewer than the {needed:,} "
            "inputs of the widest layer; give more text"
        )
    return tokens
